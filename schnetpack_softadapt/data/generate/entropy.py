"""Structures whose atoms have environments as different from each other as can be.

Atoms move in the artificial potential of M. Karabin and D. Perez, J. Chem. Phys. 153, 094110
(2020), and D. Montes de Oca Zapiain et al., npj Comput. Mater. 8, 189 (2022),

    V = V_repulsive(r) - K n S,

with the entropy of their descriptors x_i (D numbers), as J. Beirlant et al., Int. J. Math. Stat.
Sci. 6, 17 (1997), estimate it from the distance rho_i of each to the nearest other one,

    S = D [ (1/n) sum_i ln rho_i ] + constants,    rho_i = min_j |x_i - x_j|.

K > 0 spreads the environments, K < 0 makes them alike. Here S stands for the bracket, an entropy
for each of the D dimensions; K n instead of K keeps forces independent of the number of atoms n;
x are descriptors whitened by a sample of random structures, so that neither units nor correlations
of the components count; and ln rho is ln sqrt(rho^2 + e^2), which is finite for equal atoms.
Atoms are compared with those of their own element: of the structure, and of known ones if given.

Random numbers of a structure follow from the seed and its number alone: more structures, more
processes or an interruption change no other structure.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.optimize import FIRE
from scipy.spatial.distance import cdist

from schnetpack_softadapt.data.executors import Spec
from schnetpack_softadapt.data.generate.journal import Task, compute, journal_of
from schnetpack_softadapt.data.generate.label import read_geometries
from schnetpack_softadapt.data.generate.recipe import read_settings
from schnetpack_softadapt.data.importing.checks import closest_contact
from schnetpack_softadapt.descriptors.ambient import ambient_volume, default_descriptor
from schnetpack_softadapt.descriptors.protocol import (
    Descriptor,
    descriptor_from_dict,
    read_descriptor,
)
from schnetpack_softadapt.descriptors.whitening import Whitening
from schnetpack_softadapt.files import locked, replacing
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs
from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces

__all__ = ["EntropyPotential", "EntropyRecipe", "entropy", "generate_diverse", "make_structure"]

#: of the sum of covalent radii: the exclusion radius where none is given, 2.1 Ang in W
_EXCLUDED = 0.65
#: e above, in units of a standard deviation
_SOFTENING = 0.1
#: V_repulsive of a pair begins at this many exclusion radii; its factor, eV: 3 eV at that radius
_ONSET, _STRENGTH = 1.25, 50.0
_LONGEST_STEP = 0.1  # Ang
_SAMPLE = 50  # structures that descriptors are whitened by
_KNOWN_ATOMS = 1000  # of each element that new ones are compared with
_ATTEMPTS = 10


@dataclass
class EntropyRecipe:
    """What to generate; the settings of a YAML file have these names.

    Attributes:
        elements: symbols; with several, each structure has a random composition.
        n: number of structures.
        n_atoms: least and largest number of atoms.
        volume: of an atom, Ang^3; None: that of the crystals of the elements at ambient conditions.
        density: least and largest volume as a factor of it.
        shape: the cell is a cube with random numbers up to this, of its edge, added to each vector.
        k: K in eV; negative for ordered structures.
        temperature: of the noise that annealing begins with, eV.
        anneal_steps, steps: of annealing, and of the minimisation after it.
        min_distance: exclusion radius: no atoms of a structure are closer, Ang; None: 0.65 of the
            sum of the covalent radii.
        descriptor: a file as `select-functions` writes it, or what it holds; None: 55 bispectrum
            components (2J = 8) that reach two shells of neighbours.
        against: files of structures that new ones shall differ from.
        seed: of all random numbers.

    Raises:
        ValueError: a setting that makes no sense.
    """

    elements: Sequence[str]
    n: int = 100
    n_atoms: Sequence[int] = (4, 32)
    volume: float | None = None
    density: Sequence[float] = (0.8, 1.3)
    shape: float = 0.2
    k: float = 3.0
    temperature: float = 0.5
    anneal_steps: int = 50
    steps: int = 100
    min_distance: float | None = None
    descriptor: str | Mapping | None = None
    against: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self):
        self.elements = [self.elements] if isinstance(self.elements, str) else [*self.elements]
        self.against = [self.against] if isinstance(self.against, str) else [*self.against]
        unknown = [x for x in self.elements if x not in atomic_numbers or not atomic_numbers[x]]
        if unknown or not self.elements:
            raise ValueError(f"elements {self.elements}: give symbols, such as W")
        low, high = self.n_atoms
        if not 2 <= low <= high:
            raise ValueError(f"n_atoms {[low, high]}: give two numbers, from 2 on and ascending")
        low, high = self.density
        if not 0 < low <= high:
            raise ValueError(f"density {[low, high]}: give two factors, positive and ascending")
        if not 0 <= self.shape <= 0.4:
            raise ValueError(f"shape {self.shape} is not from 0 to 0.4, where cells become flat")
        positive = ("n", "volume", "min_distance", "anneal_steps", "steps")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed is a whole number from 0 on, not {self.seed}")
        if not np.isfinite(self.k) or self.k == 0:
            raise ValueError(f"k is an energy other than zero, not {self.k}")

    @cached_property
    def numbers(self) -> list[int]:
        """Atomic numbers, ascending."""
        return sorted(atomic_numbers[symbol] for symbol in self.elements)

    def make_descriptor(self) -> Descriptor:
        """The descriptor that environments are compared by.

        Raises:
            FileNotFoundError, ValueError: of the file, or one without an element of the recipe.
        """
        if self.descriptor is None:
            return default_descriptor(self.numbers)
        read = descriptor_from_dict if isinstance(self.descriptor, Mapping) else read_descriptor
        descriptor = read(self.descriptor)
        missing = [chemical_symbols[z] for z in self.numbers if z not in descriptor.elements]
        if missing:
            raise ValueError(f"descriptor {self.descriptor} does not know {missing[0]}")
        return descriptor


def entropy(
    x: np.ndarray, numbers: np.ndarray, known: Mapping[int, np.ndarray] = {}
) -> tuple[float, np.ndarray, int]:
    """Sum of ln sqrt(rho_i^2 + e^2) over atoms that have another of their element to compare with.

    Args:
        x: (n, D) whitened descriptors.
        numbers: (n,) atomic numbers.
        known: whitened descriptors (m, D) of other structures by element.

    Returns:
        the sum, its derivative (n, D) by x, and the number of terms: S is sum / number.
    """
    total, gradient, n_terms = 0.0, np.zeros_like(x), 0
    for z in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == z)
        others = known.get(z, x[:0])
        if len(rows) + len(others) < 2:
            continue
        own = x[rows]
        squares = cdist(own, np.concatenate([own, others]), "sqeuclidean")
        squares[np.arange(len(rows)), np.arange(len(rows))] = np.inf
        nearest = squares.argmin(axis=1)
        softened = squares[np.arange(len(rows)), nearest] + _SOFTENING**2
        total += 0.5 * float(np.log(softened).sum())
        n_terms += len(rows)
        difference = own - np.concatenate([own, others])[nearest]
        change = difference / softened[:, None]
        gradient[rows] += change
        inside = nearest < len(rows)  # the nearest one moves too
        np.add.at(gradient, rows[nearest[inside]], -change[inside])
    return total, gradient, n_terms


class EntropyPotential(Calculator):
    """V as an ASE calculator: energy in eV, forces in eV/Ang, and `entropy`, S above.

    Args:
        descriptor: of environments.
        whitening: of each element.
        k: K, eV.
        min_distance: see `EntropyRecipe`.
        known: see `entropy`.

    Attributes:
        strength: factor of V_repulsive = strength sum_(pairs) (r_on / r - 1)^2 below r_on, eV.
    """

    implemented_properties = ["energy", "forces", "entropy"]  # noqa: RUF012

    def __init__(
        self,
        descriptor: Descriptor,
        whitening: Mapping[int, Whitening],
        k: float = 3.0,
        min_distance: float | None = None,
        known: Mapping[int, np.ndarray] = {},
    ):
        super().__init__()
        self.engine = descriptor.engine("cpu")
        self.whitening, self.known = whitening, known
        self.k, self.min_distance = k, min_distance
        self.strength = _STRENGTH

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        numbers = self.atoms.numbers
        radii = _EXCLUDED * covalent_radii[numbers]
        onset = _ONSET * (self.min_distance or 2 * radii.max())
        cutoff = max(self.engine.descriptor.cutoff if self.whitening else 0.0, onset)
        geometry = (self.atoms.positions, self.atoms.cell.array, self.atoms.pbc)
        i, j, r_ij, _ = neighbor_pairs(*geometry, cutoff)
        distance = np.linalg.norm(r_ij, axis=1)
        energy, gradient = self._repulsion(distance, r_ij, radii[i] + radii[j])
        n_terms = 0
        if self.whitening:
            near = distance < self.engine.descriptor.cutoff
            pairs = self.engine.prepare(r_ij[near], i[near], j[near], numbers.astype(np.int64))
            values = np.asarray(self.engine.values(pairs))
            x, by_g = np.zeros_like(values), np.zeros_like(values)
            for z, whitening in self.whitening.items():
                x[numbers == z] = whitening(values[numbers == z])
            total, by_x, n_terms = entropy(x, numbers, self.known)
            for z, whitening in self.whitening.items():
                by_g[numbers == z] = by_x[numbers == z] @ whitening.matrix.T
            energy -= self.k * total
            gradient[near] -= self.k * np.asarray(self.engine.vjp(pairs, by_g))
        forces, virial = np.zeros((len(numbers), 3)), np.zeros((1, 3, 3))
        add_pair_forces(i, j, r_ij, gradient, np.zeros(len(numbers), np.int64), forces, virial)
        self.results = {
            "energy": energy,
            "forces": forces,
            "entropy": total / n_terms if n_terms else 0.0,
        }

    def _repulsion(self, distance, r_ij, excluded) -> tuple[float, np.ndarray]:
        """V_repulsive and its derivative by the vectors of pairs (both directions are listed)."""
        onset = _ONSET * (excluded if self.min_distance is None else self.min_distance)
        distance = np.maximum(distance, 1e-3)
        overlap = np.maximum(onset / distance - 1.0, 0.0)
        slope = -self.strength * overlap * onset / distance**3
        return 0.5 * self.strength * float((overlap**2).sum()), slope[:, None] * r_ij


def make_structure(recipe: EntropyRecipe, index: int, potential: EntropyPotential) -> Atoms:
    """Structure number `index` of a recipe: a random cell, annealing, minimisation.

    Raises:
        ValueError: atoms find no room outside of each other's exclusion radius.
    """
    rng = np.random.default_rng([recipe.seed, 0, index])
    for _ in range(_ATTEMPTS):
        atoms = _random_structure(recipe, rng)
        potential.strength = _STRENGTH
        atoms.calc = potential
        _anneal(atoms, recipe, rng)
        if _minimise(atoms, recipe, recipe.steps):
            break
    else:
        raise ValueError(
            f"structure {index}: no room for {len(atoms)} atoms in {atoms.get_volume():.1f} Ang^3"
            f" outside of the exclusion radius in {_ATTEMPTS} attempts; lower min_distance or raise"
            " volume or density"
        )
    value = float(potential.results["entropy"])
    atoms.calc = None
    atoms.wrap()
    atoms.info = {"group": "entropy", "k": recipe.k, "seed": recipe.seed, "index": index}
    atoms.info["entropy"] = value
    return atoms


def _random_structure(recipe: EntropyRecipe, rng: np.random.Generator) -> Atoms:
    """Atoms anywhere in a cell of random size and shape."""
    n = int(rng.integers(recipe.n_atoms[0], recipe.n_atoms[1], endpoint=True))
    shares = rng.dirichlet(np.ones(len(recipe.numbers)))
    numbers = rng.choice(recipe.numbers, n, p=shares)
    volumes = [ambient_volume(z) if recipe.volume is None else recipe.volume for z in numbers]
    cell = np.eye(3) + rng.uniform(-recipe.shape, recipe.shape, (3, 3))
    volume = float(np.sum(volumes)) * rng.uniform(*recipe.density)
    cell *= np.cbrt(volume / abs(np.linalg.det(cell)))
    return Atoms(numbers, scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def _anneal(atoms: Atoms, recipe: EntropyRecipe, rng: np.random.Generator) -> None:
    """Overdamped Langevin steps R += F dt + sqrt(2 T dt) xi, T falling to zero.

    dt is such that the first noise is half of the longest step.
    """
    time = 0.5 * (0.5 * _LONGEST_STEP) ** 2 / max(recipe.temperature, 1e-12)
    for left in np.linspace(1.0, 0.0, recipe.anneal_steps, endpoint=False):
        noise = 0.5 * _LONGEST_STEP * np.sqrt(left) * rng.standard_normal((len(atoms), 3))
        step = atoms.get_forces() * time + noise
        lengths = np.linalg.norm(step, axis=1, keepdims=True)
        atoms.positions += step * np.minimum(1.0, 2 * _LONGEST_STEP / np.maximum(lengths, 1e-12))


def _minimise(atoms: Atoms, recipe: EntropyRecipe, steps: int) -> bool:
    """Steps downhill, with more and more repulsion until the exclusion radius holds."""
    for _ in range(5):
        FIRE(atoms, logfile=None, maxstep=_LONGEST_STEP).run(fmax=1e-3, steps=steps)
        if closest_contact(atoms, recipe.min_distance, _EXCLUDED) is None:
            return True
        atoms.calc.strength *= 4.0
        atoms.calc.reset()
        steps = 50
    return False


def make_potential(
    recipe: EntropyRecipe, say: Callable[[str], None] = lambda text: None
) -> EntropyPotential:
    """The potential of a recipe; descriptors are whitened by 50 random structures of it."""
    descriptor = recipe.make_descriptor()
    frames = [atoms for _, atoms in read_geometries(recipe.against)] if recipe.against else []
    repulsion = EntropyPotential(descriptor, {}, recipe.k, recipe.min_distance)
    sample = []
    for index in range(_SAMPLE):
        atoms = _random_structure(recipe, np.random.default_rng([recipe.seed, 1, index]))
        atoms.calc = repulsion
        FIRE(atoms, logfile=None, maxstep=_LONGEST_STEP).run(fmax=1e-3, steps=30)
        sample.append(atoms)
    found = _by_element(descriptor, sample)
    few = [chemical_symbols[z] for z in recipe.numbers if len(found.get(z, ())) < 2]
    if few:
        raise ValueError(f"too few atoms of {few[0]}: raise n_atoms")
    whitening = {z: Whitening.of(values) for z, values in found.items()}
    known = {}
    if recipe.against:
        frames = [a for a in frames if set(a.numbers.tolist()) <= set(whitening)]
        say(f"against      {len(frames)} structures of {', '.join(recipe.against)}")
        for z, values in _by_element(descriptor, frames).items():
            chosen = np.random.default_rng([recipe.seed, 2]).permutation(len(values))
            known[z] = whitening[z](values[np.sort(chosen[:_KNOWN_ATOMS])])
    return EntropyPotential(descriptor, whitening, recipe.k, recipe.min_distance, known)


def _by_element(descriptor: Descriptor, structures: Sequence[Atoms]) -> dict[int, np.ndarray]:
    """Descriptors (n, D) of all atoms of each element."""
    engine, found = descriptor.engine("cpu"), {}
    for atoms in structures:
        geometry = (atoms.positions, atoms.cell.array, atoms.pbc)
        i, j, r_ij, _ = neighbor_pairs(*geometry, descriptor.cutoff)
        values = np.asarray(engine.values(engine.prepare(r_ij, i, j, atoms.numbers)))
        for z in np.unique(atoms.numbers).tolist():
            found.setdefault(z, []).append(values[atoms.numbers == z])
    return {z: np.concatenate(parts) for z, parts in found.items()}


# all of them


def generate_diverse(
    recipe: EntropyRecipe,
    out: str | Path,
    executor: Spec = "local:1",
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[Atoms]:
    """Make the structures of a recipe and write them, without labels.

    They are kept in `<out>.journal` as they come; the same command again goes on from there.

    Args:
        recipe: what to make.
        out: extended XYZ, written at the end.
        executor: see `executors.open_executor`; the file is the same with any.
        overwrite: replace an `out` that no earlier run made.
        say: gets the messages for the user.

    Raises:
        ValueError: a wrong name or setting, no room for the atoms of a structure, or another
            process at work on the same file.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out = Path(out)
    journal = journal_of(out, overwrite)
    potential = make_potential(recipe, say)
    digest = _digest(recipe, potential)
    given = (recipe, digest, potential.whitening, potential.known)
    tasks = [Task(str(index), digest, (index, *given)) for index in range(recipe.n)]
    with locked(journal):
        records, n_new = compute(
            _make_one,
            tasks,
            journal,
            executor,
            may_fail=False,
            doing="generating",
            say=say,
        )
        structures = []
        for task in tasks:
            record = records[task.key]
            geometry = {name: record[name] for name in ("numbers", "positions", "cell")}
            structures.append(Atoms(**geometry, pbc=True, info=dict(record["info"])))
        with replacing(out) as temporary:
            ase.io.write(temporary, structures, format="extxyz")
    mean = np.mean([atoms.info["entropy"] for atoms in structures])
    say(
        f"generated    {recipe.n} structures ({n_new} of them now),"
        f" {sum(map(len, structures))} atoms, mean entropy {mean:.3f} a dimension\n"
        f"written      {out}"
    )
    return structures


def _digest(recipe: EntropyRecipe, potential: EntropyPotential) -> str:
    """Of all that a structure depends on besides its number."""
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("n", "descriptor", "against")}
    settings["fingerprint"] = potential.engine.descriptor.fingerprint
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for z, values in sorted(potential.known.items()):
        digest.update(np.array([z]).tobytes() + np.round(values * 1e6).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


_potentials: dict[str, EntropyPotential] = {}


def _make_one(
    index: int, recipe: EntropyRecipe, digest: str, whitening: dict, known: dict, worker: str
) -> dict:
    """A structure as a record; what a worker's process does, whose potential stays."""
    if digest not in _potentials:
        import torch

        torch.set_num_threads(1)
        descriptor = recipe.make_descriptor()
        made = EntropyPotential(descriptor, whitening, recipe.k, recipe.min_distance, known)
        _potentials.clear()
        _potentials[digest] = made
    atoms = make_structure(recipe, index, _potentials[digest])
    arrays = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
    return {**{name: array.tolist() for name, array in arrays.items()}, "info": atoms.info}


def read_entropy_recipe(config: str | Path | None, options: Mapping) -> EntropyRecipe:
    """The recipe of a YAML file, with options of the command line (None: not given) before it.

    Raises:
        ValueError: an unknown or wrong setting.
        FileNotFoundError: a file is missing.
    """
    settings, given, folder = read_settings(config, EntropyRecipe, options)
    files = settings.get("against") or []
    files = [files] if isinstance(files, str) else files
    settings["against"] = [str(folder / file) for file in files]
    if isinstance(settings.get("descriptor"), str):
        settings["descriptor"] = str(folder / settings["descriptor"])
    settings = {k: v for k, v in {**settings, **given}.items() if v is not None}
    if "elements" not in settings:
        raise ValueError("which elements? give --elements W, or elements in the file of --config")
    return EntropyRecipe(**settings)
