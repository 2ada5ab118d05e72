"""What to generate: prototypes, strains, displacements, supercells and vacancies, enumerated.

The random numbers of each structure follow from the seed and from what the structure is, not from
its place in the list: another order, more processes or a finer grid change no other structure.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

__all__ = ["STRAINS", "Prototype", "Recipe", "Sample", "build", "samples", "strain_matrices"]

STRAINS = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass
class Prototype:
    """A relaxed structure to start from.

    Attributes:
        name: goes into `info["prototype"]` and `info["group"]` of what is made from it.
        atoms: without calculator and constraints.
        calculator_args: added to those of the recipe, such as the k points of this cell.
    """

    name: str
    atoms: Atoms
    calculator_args: dict = field(default_factory=dict)


@dataclass
class Recipe:
    """What to generate and how to label it.

    Attributes:
        prototypes: what to start from.
        strains: (S, 6) components eps_ab in the order of `STRAINS` (tensor components: shears not
            doubled); the cell becomes cell @ (1 + eps).
        sigmas: standard deviations of each displaced Cartesian component, Ang.
        repeats: draws of each random case (a case without displacements and vacancies has one).
        max_displacement: longer displacements are shortened to this length, Ang.
        supercells: (3,) repetitions each.
        vacancies: numbers of atoms removed at random.
        vacancy_element: which element is removed; None: any.
        min_distance: structures with closer atoms are not labelled, Ang; None: 0.6 times the sum
            of the covalent radii.
        seed: of all random numbers.
        calculator: import path "module:name" of an ASE calculator, or of a function making one.
        calculator_args: keyword arguments for it.
    """

    prototypes: list[Prototype]
    strains: np.ndarray = field(default_factory=lambda: np.zeros((1, 6)))
    sigmas: tuple[float, ...] = (0.0,)
    repeats: int = 1
    max_displacement: float | None = None
    supercells: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)
    vacancies: tuple[int, ...] = (0,)
    vacancy_element: str | None = None
    min_distance: float | None = None
    seed: int = 0
    calculator: str | None = None
    calculator_args: dict = field(default_factory=dict)

    def __post_init__(self):
        self.strains = np.asarray(self.strains, dtype=np.float64).reshape(-1, 6)
        if not self.prototypes:
            raise ValueError("no prototypes to start from")
        if min(self.sigmas) < 0:
            raise ValueError(f"sigma is a standard deviation, not {min(self.sigmas)}")
        if self.repeats < 1:
            raise ValueError(f"repeats is a number of draws from 1 on, not {self.repeats}")
        for cell in self.supercells:
            if len(cell) != 3 or min(cell) < 1 or any(n != int(n) for n in cell):
                raise ValueError(f"supercell {list(cell)} is not three repetitions from 1 on")
        determinants = np.linalg.det(np.eye(3) + strain_matrices(self.strains))
        if determinants.min() <= 0:
            worst = self.strains[int(np.argmin(determinants))]
            raise ValueError(f"strain {worst.tolist()} turns the cell inside out")
        self._check_vacancies()

    def _check_vacancies(self) -> None:
        if min(self.vacancies) < 0:
            raise ValueError(f"vacancies is a number of atoms, not {min(self.vacancies)}")
        for prototype in self.prototypes:
            symbols = prototype.atoms.get_chemical_symbols()
            n_atoms, element = len(symbols), self.vacancy_element
            n_there = n_atoms if element is None else symbols.count(element)
            for cell in self.supercells:
                n_cells = int(np.prod(cell))
                most = max(self.vacancies)
                if most > n_there * n_cells or most >= n_atoms * n_cells:
                    raise ValueError(
                        f"{most} vacancies{f' of {element}' if element else ''} are too many for"
                        f" {prototype.name} repeated {list(cell)} ({n_there * n_cells} atoms)"
                    )


@dataclass(frozen=True)
class Sample:
    """One structure to make: everything that determines it besides prototype and seed."""

    prototype: str
    supercell: tuple[int, int, int]
    strain: tuple[float, ...]
    sigma: float
    vacancies: int
    repeat: int

    @property
    def key(self) -> str:
        """Name of this structure, the same in every run."""
        return (
            f"{self.prototype}|{'x'.join(map(str, self.supercell))}|{self.strain_state}"
            f"|sigma {self.sigma:.6g}|vacancies {self.vacancies}|{self.repeat}"
        )

    @property
    def strain_state(self) -> str:
        """The components that are not zero, such as "xx-0.1 xy+0.02"; "0" without strain."""
        parts = [f"{n}{e:+.6g}" for n, e in zip(STRAINS, self.strain, strict=True) if e]
        return " ".join(parts) or "0"

    def child_seed(self, seed: int) -> int:
        """Seed of this structure's own random numbers."""
        digest = hashlib.sha256(f"{seed}|{self.key}".encode()).digest()
        return int.from_bytes(digest[:6], "little")  # 48 bits: exact in every file format


def samples(recipe: Recipe) -> Iterator[Sample]:
    """All structures of a recipe, prototype by prototype and strain by strain."""
    for prototype, supercell, strain, n_vacancies, sigma in itertools.product(
        recipe.prototypes, recipe.supercells, recipe.strains, recipe.vacancies, recipe.sigmas
    ):
        is_random = sigma > 0 or n_vacancies > 0
        for repeat in range(recipe.repeats if is_random else 1):
            yield Sample(
                prototype.name,
                tuple(map(int, supercell)),
                tuple(map(float, strain)),
                float(sigma),
                int(n_vacancies),
                repeat,
            )


def build(sample: Sample, recipe: Recipe) -> Atoms:
    """Make a structure: strain, repeat, remove atoms, displace; `info` says what was done."""
    (prototype,) = (p for p in recipe.prototypes if p.name == sample.prototype)
    atoms = prototype.atoms.copy()
    deformation = np.eye(3) + strain_matrices(np.array([sample.strain]))[0]
    # not `scale_atoms`, which needs a cell of non-zero volume
    atoms.positions = atoms.positions @ deformation
    atoms.cell = atoms.cell.array @ deformation
    atoms = atoms.repeat(sample.supercell)
    child_seed = sample.child_seed(recipe.seed)
    rng = np.random.default_rng(child_seed)
    if sample.vacancies:
        element = recipe.vacancy_element
        candidates = [i for i, s in enumerate(atoms.symbols) if element in (None, s)]
        del atoms[sorted(rng.choice(candidates, sample.vacancies, replace=False).tolist())]
    if sample.sigma:
        displacements = rng.normal(0.0, sample.sigma, atoms.positions.shape)
        if recipe.max_displacement is not None:
            lengths = np.linalg.norm(displacements, axis=1, keepdims=True)
            displacements *= np.minimum(1.0, recipe.max_displacement / np.maximum(lengths, 1e-300))
        atoms.positions += displacements
    atoms.info = {
        "group": sample.prototype,
        "prototype": sample.prototype,
        "strain_state": sample.strain_state,
        "strain": np.array(sample.strain),
        "sigma": sample.sigma,
        "supercell": np.array(sample.supercell),
        "vacancies": sample.vacancies,
        "repeat": sample.repeat,
        "seed": recipe.seed,
        "child_seed": child_seed,
    }
    return atoms


def strain_matrices(strains: np.ndarray) -> np.ndarray:
    """Symmetric (S, 3, 3) of components (S, 6) in the order of `STRAINS`."""
    matrices = np.zeros((len(strains), 3, 3))
    for k, name in enumerate(STRAINS):
        a, b = ("xyz".index(letter) for letter in name)
        matrices[:, a, b] = matrices[:, b, a] = strains[:, k]
    return matrices
