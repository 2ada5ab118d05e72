"""Energy, forces and stress: units, names in files, labels in plots, Voigt order; once for all.

Inside, values are in ASE's units; stress is (3, 3), symmetric, positive = tension. Errors are shown
in meV/atom, meV/Ang and MPa.
"""

from dataclasses import dataclass
from typing import Final

from ase import units

__all__ = [
    "BY_NAME",
    "ENERGY",
    "FORCES",
    "METRICS",
    "QUANTITIES",
    "STRESS",
    "SUBSETS",
    "VOIGT",
    "VOIGT_COLUMNS",
    "VOIGT_IN_FULL",
    "VOIGT_OF_FULL",
    "VOIGT_ROWS",
    "Quantity",
    "full_to_voigt",
    "voigt_to_full",
]


@dataclass(frozen=True)
class Quantity:
    """One predicted quantity."""

    #: SchNetPack's key in batches and databases, and the name in our files
    name: str
    title: str
    #: in the progress bar
    letter: str
    #: of one row: an atom's if `per_atom`, else a structure's
    shape: tuple[int, ...]
    per_atom: bool
    #: inside, as SchNetPack can parse it
    unit: str
    #: of the errors in history.csv
    history_unit: str
    #: of errors for readers, and how many of it make one `history_unit`
    shown_unit: str
    shown_factor: float
    #: of values on the axes of plots, and how many of it make one `history_unit`
    axis_unit: str
    axis_factor: float
    #: ending of the keys in metrics.json
    suffix: str
    #: argument of SchNetPack's output modules that names the key
    module_key: str

    def metric_key(self, metric: str) -> str:
        """Name of an error in metrics.json, for instance `forces_mae_meV_per_Ang`."""
        return f"{self.name}_{metric}_{self.suffix}"


ENERGY: Final = Quantity(
    name="energy",
    title="Energy",
    letter="E",
    shape=(),
    per_atom=False,
    unit="eV",
    history_unit="eV/atom",
    shown_unit="meV/atom",
    shown_factor=1e3,
    axis_unit="eV/atom",
    axis_factor=1.0,
    suffix="meV_per_atom",
    module_key="energy_key",
)
FORCES: Final = Quantity(
    name="forces",
    title="Forces",
    letter="F",
    shape=(3,),
    per_atom=True,
    unit="eV/Ang",
    history_unit="eV/Ang",
    shown_unit="meV/Å",
    shown_factor=1e3,
    axis_unit="eV/Å",
    axis_factor=1.0,
    suffix="meV_per_Ang",
    module_key="force_key",
)
STRESS: Final = Quantity(
    name="stress",
    title="Stress",
    letter="S",
    shape=(3, 3),
    per_atom=False,
    unit="eV/Ang/Ang/Ang",
    history_unit="eV/Ang^3",
    shown_unit="MPa",
    shown_factor=1e3 / units.GPa,
    axis_unit="GPa",
    axis_factor=1.0 / units.GPa,
    suffix="MPa",
    module_key="stress_key",
)

QUANTITIES: Final = (ENERGY, FORCES, STRESS)
BY_NAME: Final = {quantity.name: quantity for quantity in QUANTITIES}

#: subsets in the order of tables, and their names in words
SUBSETS: Final = {"train": "training", "val": "validation", "test": "test"}

METRICS: Final = ("rmse", "mae")

#: order of the six numbers of a symmetric tensor (ASE's)
VOIGT: Final = ("xx", "yy", "zz", "yz", "xz", "xy")
#: row and column of each Voigt component
VOIGT_ROWS: Final = (0, 1, 2, 1, 0, 0)
VOIGT_COLUMNS: Final = (0, 1, 2, 2, 2, 1)
#: where each Voigt component stands in a flattened 3x3 matrix
VOIGT_IN_FULL: Final = (0, 4, 8, 5, 2, 1)
#: which Voigt component each entry of a flattened 3x3 matrix is
VOIGT_OF_FULL: Final = (0, 5, 4, 5, 1, 3, 4, 3, 2)


def full_to_voigt(full):
    """Symmetric part of tensors (..., 3, 3), NumPy's or torch's, as (..., 6)."""
    rows, columns = list(VOIGT_ROWS), list(VOIGT_COLUMNS)
    return 0.5 * (full[..., rows, columns] + full[..., columns, rows])


def voigt_to_full(six):
    """Tensors (..., 3, 3) from their Voigt components (..., 6), NumPy's or torch's."""
    return six[..., list(VOIGT_OF_FULL)].reshape(*six.shape[:-1], 3, 3)
