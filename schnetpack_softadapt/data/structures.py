"""A labelled structure: what importers produce, databases hold and generators label."""

from dataclasses import dataclass, field
from os import PathLike

import ase.io
import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from schnetpack_softadapt.neighbors.cells import volumes

__all__ = ["Structure", "read_atoms"]


@dataclass
class Structure:
    """Atoms in a cell with their labels, float64, ASE units.

    Attributes:
        numbers: (n,) atomic numbers.
        positions: (n, 3) Ang.
        cell: (3, 3) lattice vectors in rows, Ang.
        pbc: (3,) periodic along each lattice vector.
        energy: eV, of the whole cell; None if not known.
        forces: (n, 3) eV/Ang.
        stress: (3, 3) symmetric, eV/Ang^3, positive = tension; (6,) is read in ASE's order.
        group: name of the family the structure belongs to, for reports by group.
        info: anything else worth keeping, such as the strain state; not used in training.

    Raises:
        ValueError: arrays of other shapes.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    group: str = ""
    info: dict = field(default_factory=dict)

    def __post_init__(self):
        self.numbers = np.asarray(self.numbers, dtype=np.int64)
        self.positions = np.asarray(self.positions, dtype=np.float64).reshape(-1, 3)
        self.cell = np.asarray(self.cell, dtype=np.float64).reshape(3, 3)
        self.pbc = np.broadcast_to(np.asarray(self.pbc, dtype=bool), 3).copy()
        n = self.n_atoms
        if len(self.positions) != n:
            raise ValueError(f"{n} atomic numbers but {len(self.positions)} positions")
        if self.energy is not None:
            self.energy = float(self.energy)
        if self.forces is not None:
            forces = np.asarray(self.forces, dtype=np.float64)
            if forces.size != 3 * n:
                raise ValueError(f"wrong number of forces: shape {forces.shape} for {n} atoms")
            self.forces = forces.reshape(n, 3)
        if self.stress is not None:
            stress = np.asarray(self.stress, dtype=np.float64)
            if stress.shape == (6,):
                stress = voigt_6_to_full_3x3_stress(stress)
            self.stress = stress.reshape(3, 3)

    @classmethod
    def from_atoms(cls, atoms: Atoms, group: str = "", info: dict | None = None) -> "Structure":
        """Geometry, and the labels that the calculator of ASE atoms holds."""
        results = atoms.calc.results if atoms.calc is not None else {}
        labels = {name: results.get(name) for name in ("energy", "forces", "stress")}
        geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        info = dict(info or {})
        if "calculator" in atoms.info:
            info.setdefault("calculator", atoms.info["calculator"])
        return cls(*geometry, **labels, group=group, info=info)

    @property
    def n_atoms(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Cell volume in Ang^3, also of a left-handed cell; 0 without a cell."""
        return float(volumes(self.cell))

    @property
    def stress_voigt(self) -> np.ndarray | None:
        """Stress as (6,), ASE's order xx yy zz yz xz xy."""
        return None if self.stress is None else full_3x3_to_voigt_6_stress(self.stress)

    def to_atoms(self) -> Atoms:
        """The geometry as ASE atoms, without labels."""
        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)


def read_atoms(path: str | PathLike) -> Atoms:
    try:
        return ase.io.read(path)
    except OSError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise ValueError(f"{path} is no structure file that ASE reads ({error!r})") from error
