"""What to generate: prototypes, their surfaces and stacking faults, strains, displacements,
supercells, vacancies and interstitials, enumerated; walks from them are in `walks`.

The random numbers of each structure follow from the seed and from what the structure is, not from
its place in the list: another order, more processes or a finer grid change no other structure.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from ase import Atom, Atoms
from ase.build import surface
from ase.geometry import get_distances

from schnetpack_softadapt.data.generate.walks import MD, Swaps, settings_of
from schnetpack_softadapt.data.structures import read_atoms
from schnetpack_softadapt.quantities import VOIGT

__all__ = [
    "Prototype",
    "Recipe",
    "Sample",
    "build",
    "parse_arguments",
    "parse_grid",
    "parse_strain",
    "read_recipe",
    "read_settings",
    "samples",
]

SHORTHANDS = {"in_plane": ("xx", "yy"), "normal": ("xx", "yy", "zz"), "full": VOIGT}
N_POINTS = 50  # among which the largest hole is sought: not always the same one
VACUUM_ANG = 10.0
SHIPPED = resources.files(__package__) / "recipes"


@dataclass
class Prototype:
    """A relaxed structure to start from.

    Attributes:
        name: goes into `info["prototype"]` and `info["group"]` of what is made from it.
        atoms: without calculator and constraints.
        calculator_args: added to those of the recipe, such as the k points of this cell.
        kind: `info["group"]` instead of the name, such as "surface".
    """

    name: str
    atoms: Atoms
    calculator_args: dict = field(default_factory=dict)
    kind: str = ""


@dataclass
class Recipe:
    """What to generate and how to label it; the settings of a YAML file have these names.

    Attributes:
        prototypes: what to start from.
        strain: (S, 6) components eps_ab in the order of `VOIGT` (tensor components: shears not
            doubled), or what `parse_strain` makes them of; the cell becomes cell @ (1 + eps).
        sigma: standard deviations of each displaced Cartesian component, Ang; see `parse_grid`.
        repeats: draws of each random case (a case without displacements and vacancies has one).
        max_displacement: longer displacements are shortened to this length, Ang.
        supercell: three repetitions, or several of these.
        vacancies: numbers of atoms removed at random; see `parse_grid`.
        vacancy_element: which element is removed; None: any.
        interstitials: numbers of atoms put into holes, the largest of some random ones; see
            `parse_grid`. The groups are "vacancy" and "interstitial".
        interstitial_element: which element is added; None: one of those there.
        surfaces: slabs cut from each prototype, group "surface": mappings of `indices` (h, k, l),
            `layers` and `vacuum` (10 Ang on both sides), as in `ase.build.surface`.
        faults: such slabs whose upper half is shifted, group "stacking fault": with `shifts`, two
            grids of fractions of the vectors in the plane.
        md: molecular dynamics from each prototype and supercell; `walks.MD`, or several.
        swaps: Monte Carlo exchanges of elements; `walks.Swaps`, or several.
        driver: what moves the atoms of these, "module:name" as `calculator` and in its place; a
            committee is "schnetpack_softadapt:SoftAdaptCalculator".
        driver_args: keyword arguments for it, such as {model: [runs/1, runs/2, runs/3]}.
        min_distance: structures with closer atoms are not labelled, Ang; None: 0.6 times the sum
            of the covalent radii.
        seed: of all random numbers.
        calculator: import path "module:name" of an ASE calculator, or of a function making one.
        calculator_args: keyword arguments for it.

    Raises:
        ValueError: a setting that makes no sense.
    """

    prototypes: list[Prototype]
    strain: np.ndarray | Mapping | Sequence[Mapping] = field(default_factory=dict)
    sigma: tuple[float, ...] = (0.0,)
    repeats: int = 1
    max_displacement: float | None = None
    supercell: tuple = (1, 1, 1)
    vacancies: tuple[int, ...] = (0,)
    vacancy_element: str | None = None
    interstitials: tuple[int, ...] = (0,)
    interstitial_element: str | None = None
    surfaces: Sequence[Mapping] = ()
    faults: Sequence[Mapping] = ()
    md: Sequence = ()
    swaps: Sequence = ()
    driver: str | None = None
    driver_args: dict = field(default_factory=dict)
    min_distance: float | None = None
    seed: int = 0
    calculator: str | None = None
    calculator_args: dict = field(default_factory=dict)

    def __post_init__(self):
        self.strain = parse_strain(self.strain)
        self.sigma = parse_grid(self.sigma)
        several = isinstance(self.supercell[0], list | tuple)
        self.supercell = tuple(map(tuple, self.supercell if several else [self.supercell]))
        if not self.prototypes:
            raise ValueError("no prototypes to start from")
        slabs = [*_slabs(self.prototypes, self.surfaces, ("indices", "layers", "vacuum"))]
        needed = ("indices", "layers", "vacuum", "shifts")
        self.prototypes = [*self.prototypes, *slabs, *_slabs(self.prototypes, self.faults, needed)]
        self.md, self.swaps = settings_of(MD, self.md), settings_of(Swaps, self.swaps)
        if not isinstance(self.calculator_args, Mapping):
            raise ValueError("calculator_args are keyword arguments by name")
        if min(self.sigma) < 0:
            raise ValueError(f"sigma is a standard deviation, not {min(self.sigma)}")
        if self.repeats < 1:
            raise ValueError(f"repeats is a number of draws from 1 on, not {self.repeats}")
        for cell in self.supercell:
            if len(cell) != 3 or min(cell) < 1 or any(n != int(n) for n in cell):
                raise ValueError(f"supercell {list(cell)} is not three repetitions from 1 on")
        determinants = np.linalg.det(_deformations(self.strain))
        if determinants.min() <= 0:
            worst = self.strain[int(np.argmin(determinants))]
            raise ValueError(f"strain {worst.tolist()} turns the cell inside out")
        for name in ("vacancies", "interstitials"):
            numbers = parse_grid(getattr(self, name))
            for number in numbers:
                if number < 0 or number != int(number):
                    raise ValueError(f"{name} is a number of atoms, not {number}")
            setattr(self, name, tuple(map(int, numbers)))
        most, element = max(self.vacancies), self.vacancy_element
        for prototype, cell in itertools.product(self.prototypes, self.supercell):
            symbols = list(prototype.atoms.symbols) * int(np.prod(cell))
            n_there = len(symbols) if element is None else symbols.count(element)
            if most > n_there or most >= len(symbols):
                raise ValueError(
                    f"{most} vacancies{f' of {element}' if element else ''} are too many for"
                    f" {prototype.name} repeated {list(cell)} ({n_there} atoms)"
                )

    def arguments(self, prototype: Prototype) -> dict:
        """Keyword arguments of the calculator for what is made from a prototype."""
        return {**self.calculator_args, **prototype.calculator_args}


@dataclass(frozen=True)
class Sample:
    """One structure to make: everything that determines it besides prototype and seed."""

    prototype: str
    supercell: tuple[int, int, int]
    strain: tuple[float, ...]
    sigma: float
    vacancies: int
    repeat: int
    interstitials: int = 0

    @property
    def key(self) -> str:
        """Name of this structure, the same in every run."""
        return (
            f"{self.prototype}|{'x'.join(map(str, self.supercell))}|{self.strain_state}"
            f"|sigma {self.sigma:.6g}|vacancies {self.vacancies}|{self.repeat}"
            f"{f'|interstitials {self.interstitials}' if self.interstitials else ''}"
        )

    @property
    def strain_state(self) -> str:
        """The components that are not zero, such as "xx-0.1 xy+0.02"; "0" without strain."""
        parts = [f"{n}{e:+.6g}" for n, e in zip(VOIGT, self.strain, strict=True) if e]
        return " ".join(parts) or "0"


def samples(recipe: Recipe) -> Iterator[Sample]:
    """All structures of a recipe, prototype by prototype and strain by strain."""
    for prototype, supercell, strain, n_vacancies, n_interstitials, sigma in itertools.product(
        recipe.prototypes,
        recipe.supercell,
        recipe.strain.tolist(),
        recipe.vacancies,
        recipe.interstitials,
        recipe.sigma,
    ):
        is_random = sigma > 0 or n_vacancies > 0 or n_interstitials > 0
        for repeat in range(recipe.repeats if is_random else 1):
            cell = tuple(map(int, supercell))
            state = (prototype.name, cell, tuple(strain), sigma, n_vacancies, repeat)
            yield Sample(*state, n_interstitials)


def build(sample: Sample, recipe: Recipe) -> Atoms:
    """Make a structure: strain, repeat, remove, add, displace atoms; `info` says what was done."""
    (prototype,) = (p for p in recipe.prototypes if p.name == sample.prototype)
    atoms = prototype.atoms.copy()
    deformation = _deformations(np.array([sample.strain]))[0]
    # not `scale_atoms`, which needs a cell of non-zero volume
    atoms.positions = atoms.positions @ deformation
    atoms.cell = atoms.cell.array @ deformation
    atoms = atoms.repeat(sample.supercell)
    digest = hashlib.sha256(f"{recipe.seed}|{sample.key}".encode()).digest()
    child_seed = int.from_bytes(digest[:6], "little")  # 48 bits: exact in every file format
    rng = np.random.default_rng(child_seed)
    if sample.vacancies:
        element = recipe.vacancy_element
        candidates = [i for i, s in enumerate(atoms.symbols) if element in (None, s)]
        del atoms[sorted(rng.choice(candidates, sample.vacancies, replace=False).tolist())]
    for _ in range(sample.interstitials):
        _fill_hole(atoms, recipe.interstitial_element, rng)
    if sample.sigma:
        displacements = rng.normal(0.0, sample.sigma, atoms.positions.shape)
        if recipe.max_displacement is not None:
            lengths = np.linalg.norm(displacements, axis=1, keepdims=True)
            displacements *= np.minimum(1.0, recipe.max_displacement / np.maximum(lengths, 1e-300))
        atoms.positions += displacements
    kinds = [prototype.kind, "vacancy" * bool(sample.vacancies)]
    kinds += ["interstitial" * bool(sample.interstitials)]
    atoms.info = {
        "group": " ".join(filter(None, kinds)) or sample.prototype,
        "prototype": sample.prototype,
        "strain_state": sample.strain_state,
        "strain": np.array(sample.strain),
        "sigma": sample.sigma,
        "supercell": np.array(sample.supercell),
        "vacancies": sample.vacancies,
        "interstitials": sample.interstitials,
        "repeat": sample.repeat,
        "seed": recipe.seed,
        "child_seed": child_seed,
    }
    return atoms


def _fill_hole(atoms: Atoms, element: str | None, rng: np.random.Generator) -> None:
    """Add an atom at the point, of some random ones, that is farthest from all atoms."""
    if atoms.cell.rank < 3:
        raise ValueError("interstitials need a cell of three vectors")
    points = rng.random((N_POINTS, 3)) @ atoms.cell.array
    _, distances = get_distances(points, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    symbol = element or rng.choice(sorted(set(atoms.symbols)))
    atoms.append(Atom(str(symbol), points[int(distances.min(axis=1).argmax())]))


def _slabs(
    prototypes: Sequence[Prototype], settings: Sequence[Mapping] | Mapping, names: Sequence[str]
) -> Iterator[Prototype]:
    """Surfaces of all prototypes, and with "shifts" among the names faults in them."""
    for given in [settings] if isinstance(settings, Mapping) else settings:
        what = "faults" if "shifts" in names else "surfaces"
        unknown, missing = set(given) - set(names), {*names} - {"vacuum", *given}
        if unknown or missing:
            raise ValueError(
                f"{what}: {'no ' if missing else ''}setting {(*missing, *unknown)[0]!r}"
                f"{'' if missing else ' is not known'}; they have {', '.join(names)}"
            )
        for prototype in prototypes:
            if not prototype.atoms.pbc.all():
                raise ValueError(f"{what}: {prototype.name} is not periodic in all directions")
            h, k, n = given["indices"]
            for layers in parse_grid(given["layers"]):
                vacuum = float(given.get("vacuum", VACUUM_ANG))
                # `periodic=True` would put atoms of the lowest plane, at -1e-16, above the highest
                slab = surface(prototype.atoms, (h, k, n), int(layers), vacuum)
                slab.pbc = True
                name = f"{prototype.name} {h}{k}{n} {layers:g} layers"
                arguments = prototype.calculator_args
                if what == "surfaces":
                    yield Prototype(name, slab, arguments, "surface")
                    continue
                upper = slab.positions[:, 2] > slab.positions[:, 2].mean()
                for a, b in itertools.product(*map(parse_grid, given["shifts"])):
                    shifted = slab.copy()
                    shifted.positions[upper] += a * slab.cell[0] + b * slab.cell[1]
                    yield Prototype(
                        f"{name} shift {a:g} {b:g}", shifted, arguments, "stacking fault"
                    )


def _deformations(strains: np.ndarray) -> np.ndarray:
    """1 + eps (S, 3, 3) of components (S, 6) in the order of `VOIGT`."""
    matrices = np.tile(np.eye(3), (len(strains), 1, 1))
    for k, name in enumerate(VOIGT):
        a, b = ("xyz".index(letter) for letter in name)
        matrices[:, a, b] += strains[:, k]
        if a != b:
            matrices[:, b, a] += strains[:, k]
    return matrices


# settings


def parse_grid(value: str | float | Sequence) -> tuple[float, ...]:
    """Numbers from a number, "start:stop:step" (with both ends), or a list of these.

    Raises:
        ValueError: not numbers, or a step that does not lead from start to stop.
    """
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    if isinstance(value, list | tuple):
        numbers = [x for item in value for x in parse_grid(item)]
        return tuple(dict.fromkeys(numbers))
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError:
        raise ValueError(f"{value!r} is neither a number nor start:stop:step") from None
    if len(parts) == 1:
        return (parts[0],)
    if len(parts) != 3 or parts[2] <= 0 or parts[1] < parts[0]:
        raise ValueError(f"{value!r} is not start:stop:step with start <= stop and step > 0")
    start, stop, step = parts
    n_steps = round((stop - start) / step)
    if abs(start + n_steps * step - stop) > 1e-9 * max(1.0, abs(stop)):
        raise ValueError(f"{value!r}: the step does not lead from {start} to {stop}")
    # rounded, so that -0.1:0.1:0.02 holds 0 and not 1e-17
    return tuple(round(float(x), 12) + 0.0 for x in np.linspace(start, stop, n_steps + 1))


def parse_strain(value: np.ndarray | Mapping | Sequence[Mapping]) -> np.ndarray:
    """Strains (S, 6) of a grid per component; of several such mappings, the union.

    Args:
        value: grids by component (xx yy zz yz xz xy), or by in_plane (xx and yy), normal, full;
            or the strains themselves.
    """
    if isinstance(value, np.ndarray):
        return value.astype(np.float64).reshape(-1, 6)
    found: dict[tuple[float, ...], None] = {}
    for mapping in [value] if isinstance(value, Mapping) else value:
        grids = dict.fromkeys(VOIGT, (0.0,))
        for name, grid in mapping.items():
            if name not in VOIGT and name not in SHORTHANDS:
                names = ", ".join([*VOIGT, *SHORTHANDS])
                raise ValueError(f"unknown strain {name!r}; choose from {names}")
            for component in SHORTHANDS.get(name, (name,)):
                grids[component] = parse_grid(grid)
        found |= dict.fromkeys(itertools.product(*grids.values()))
    return np.array(list(found), dtype=np.float64).reshape(-1, 6)


def read_recipe(config: str | Path | None, options: Mapping | None = None) -> Recipe:
    """The recipe of a YAML file or of the package, with options of the command line before it.

    Reading executes nothing; generating imports the module that `calculator` names.

    Args:
        config: a file, or the name of a recipe of the package. Its `prototypes` are name: file,
            name: {file, calculator_args}, or a list of files, relative to its folder.
        options: settings by name, None where an option was not given; `prototypes` are files,
            `strain` texts name=grid, `calculator_args` JSON.

    Raises:
        ValueError: an unknown or wrong setting.
        FileNotFoundError: a file is missing.
    """
    settings, given, folder = read_settings(config, Recipe, options or {})
    if "prototypes" in given:
        folder = Path()
    if "strain" in given:
        pairs = [text.partition("=") for text in given["strain"]]
        for name, separator, _ in pairs:
            if not separator:
                raise ValueError(f"--strain {name}: write name=grid, as xx=-0.1:0.1:0.02")
        given["strain"] = {name.replace("-", "_"): grid for name, _, grid in pairs}
    if "calculator_args" in given:
        given["calculator_args"] = parse_arguments(given["calculator_args"])
    settings = {k: v for k, v in {**settings, **given}.items() if v is not None}
    settings["prototypes"] = _read_prototypes(settings.get("prototypes") or [], folder)
    return Recipe(**settings)


def parse_arguments(text: str) -> dict:
    """Keyword arguments from JSON."""
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--calculator-args is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError("--calculator-args are keyword arguments by name")
    return arguments


def read_settings(
    config: str | Path | None, recipe: type, options: Mapping
) -> tuple[dict, dict, Path]:
    """Settings of a YAML file (none: no settings), those among the options that are given, and the
    folder that files named in the former are relative to.

    Raises:
        ValueError: a setting that the recipe does not have.
        FileNotFoundError: there is no such file.
    """
    names = [f.name for f in fields(recipe)]
    settings, folder = _read_yaml(config) if config is not None else ({}, Path())
    if unknown := sorted(set(settings) - set(names)):
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from {', '.join(names)}")
    given = {k: v for k, v in options.items() if k in names and v not in (None, [])}
    return settings, given, folder


def _read_yaml(name: str | Path) -> tuple[dict, Path]:
    """Settings by name, and the folder that paths in them start from."""
    path = Path(name)
    if not path.exists():
        shipped = {Path(file.name).stem: Path(str(file)) for file in SHIPPED.iterdir()}
        if str(name) not in shipped:
            raise FileNotFoundError(
                f"no file {name}, nor a recipe of this name (there is: {', '.join(shipped)})"
            )
        path = shipped[str(name)]
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings by name")
    return config, path.parent


def _read_prototypes(given: Mapping | Sequence, folder: Path) -> list[Prototype]:
    if not isinstance(given, Mapping):
        names = [Path(file).stem for file in given]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"several prototypes are called {twice.pop()}; give them names")
        given = dict(zip(names, given, strict=True))
    prototypes = []
    for name, entry in given.items():
        entry = dict(entry) if isinstance(entry, Mapping) else {"file": entry}
        path = folder / entry.pop("file")
        arguments = entry.pop("calculator_args", {})
        if entry:
            raise ValueError(f"unknown setting {next(iter(entry))!r} of prototype {name}")
        if not path.exists():
            raise FileNotFoundError(f"no file {path} for the prototype {name}")
        atoms = read_atoms(path)
        # without results, constraints and notes; with initial moments, which DFT may start from
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)
        for array in ("initial_magmoms", "initial_charges"):
            if atoms.has(array):
                bare.set_array(array, atoms.get_array(array))
        prototypes.append(Prototype(str(name), bare, dict(arguments)))
    return prototypes
