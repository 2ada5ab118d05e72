"""The three quantities a report speaks of: what is compared, in which unit it is shown."""

from dataclasses import dataclass
from typing import Final

from ase import units

__all__ = ["ENERGY", "FORCES", "METRICS", "QUANTITIES", "STRESS", "SUBSETS", "Quantity"]


@dataclass(frozen=True)
class Quantity:
    """One predicted quantity with its units.

    Errors are shown in `unit` (`error_scale` times the ASE unit), axes with whole values in
    `axis_unit` (`axis_scale` times the ASE unit). The ASE unit is eV/atom for energies (total
    energies divided by the number of atoms), eV/Ang for forces, eV/Ang^3 for stress.
    """

    name: str
    title: str
    unit: str
    error_scale: float
    axis_unit: str
    axis_scale: float
    #: ending of the keys in metrics.json, as in `energy_rmse_meV_per_atom`
    suffix: str
    #: unit of the value as SchNetPack's units module reads it
    ase_unit: str
    #: argument of the modules of a model that names its key there
    module_key: str

    def metric_key(self, metric: str) -> str:
        """Name of this error in metrics.json, for instance `forces_mae_meV_per_Ang`."""
        return f"{self.name}_{metric}_{self.suffix}"


_MPA_PER_ASE: Final[float] = 1000.0 / units.GPa

ENERGY: Final = Quantity(
    name="energy",
    title="Energy",
    unit="meV/atom",
    error_scale=1000.0,
    axis_unit="eV/atom",
    axis_scale=1.0,
    suffix="meV_per_atom",
    ase_unit="eV",
    module_key="energy_key",
)
FORCES: Final = Quantity(
    name="forces",
    title="Forces",
    unit="meV/Å",
    error_scale=1000.0,
    axis_unit="eV/Å",
    axis_scale=1.0,
    suffix="meV_per_Ang",
    ase_unit="eV/Ang",
    module_key="force_key",
)
STRESS: Final = Quantity(
    name="stress",
    title="Stress",
    unit="MPa",
    error_scale=_MPA_PER_ASE,
    axis_unit="GPa",
    axis_scale=1.0 / units.GPa,
    suffix="MPa",
    ase_unit="eV/Ang/Ang/Ang",
    module_key="stress_key",
)

QUANTITIES: Final[tuple[Quantity, ...]] = (ENERGY, FORCES, STRESS)

#: the order in which subsets are tabulated, and their names in words
SUBSETS: Final[dict[str, str]] = {"train": "training", "val": "validation", "test": "test"}

METRICS: Final[tuple[str, ...]] = ("rmse", "mae")
