"""Settings of a recipe: from a YAML file, a recipe of the package, and command-line options."""

import itertools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import ase.io
import numpy as np
import yaml
from ase import Atoms

from schnetpack_softadapt.data.generate.recipe import STRAINS, Prototype, Recipe

__all__ = [
    "load_config",
    "parse_grid",
    "parse_strain",
    "read_recipe",
    "settings_from_options",
    "shipped_recipes",
]

SHORTHANDS = {"in_plane": ("xx", "yy"), "normal": ("xx", "yy", "zz"), "full": STRAINS}
#: settings that command-line options have the same names for
PLAIN = ("sigma", "repeats", "supercell", "vacancies", "vacancy_element", "min_distance", "seed")
SETTINGS = (*PLAIN, "prototypes", "strain", "max_displacement", "calculator", "calculator_args")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files(__package__) / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(name: str | Path) -> tuple[dict, Path]:
    """Settings from a YAML file, or from a recipe of the package; and the folder they stand in.

    Reading them executes nothing; generating imports the module that `calculator` names.

    Raises:
        FileNotFoundError: neither exists.
        ValueError: not YAML, or not a mapping.
    """
    path = Path(name)
    if not path.exists():
        path = Path(str(resources.files(__package__) / "recipes")) / f"{name}.yaml"
        if str(name) not in shipped_recipes():
            known = ", ".join(shipped_recipes())
            raise FileNotFoundError(
                f"no file {name}, nor a recipe of this name (there is: {known})"
            )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings by name")
    return config, path.parent


def settings_from_options(config: Mapping, options: Mapping) -> dict:
    """Settings of a file, with those given on the command line in their place.

    Args:
        config: as from `load_config`.
        options: by name: `prototypes` (files, relative to the current directory), `strain`
            (texts name=grid), `calculator_args` (JSON), and the settings of the same names; None
            or an empty list where an option was not given.

    Raises:
        ValueError: a strain without "=", or calculator arguments that are no JSON object.
    """
    settings = dict(config)
    if options.get("prototypes"):
        settings["prototypes"] = [str(Path(file).absolute()) for file in options["prototypes"]]
    for name in (*PLAIN, "calculator"):
        if options.get(name) is not None:
            settings[name] = options[name]
    if options.get("strain"):
        pairs = [text.partition("=") for text in options["strain"]]
        for name, separator, _ in pairs:
            if not separator:
                raise ValueError(f"--strain {name}: write name=grid, as xx=-0.1:0.1:0.02")
        settings["strain"] = {name.replace("-", "_"): grid for name, _, grid in pairs}
    if options.get("calculator_args") is not None:
        try:
            settings["calculator_args"] = json.loads(options["calculator_args"])
        except ValueError as error:
            raise ValueError(f"--calculator-args is not JSON: {error}") from None
    return settings


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


def parse_strain(value: Mapping | Sequence[Mapping]) -> np.ndarray:
    """Strains (S, 6) of a grid per component; of several such mappings, the union.

    Args:
        value: grids by component (xx yy zz yz xz xy), or by in_plane (xx and yy), normal, full.
    """
    found: dict[tuple[float, ...], None] = {}
    for mapping in [value] if isinstance(value, Mapping) else value:
        grids = dict.fromkeys(STRAINS, (0.0,))
        for name, grid in mapping.items():
            if name not in STRAINS and name not in SHORTHANDS:
                names = ", ".join([*STRAINS, *SHORTHANDS])
                raise ValueError(f"unknown strain {name!r}; choose from {names}")
            for component in SHORTHANDS.get(name, (name,)):
                grids[component] = parse_grid(grid)
        found |= dict.fromkeys(itertools.product(*grids.values()))
    return np.array(list(found), dtype=np.float64).reshape(-1, 6)


def read_recipe(config: Mapping, folder: str | Path = ".") -> Recipe:
    """Make a recipe from the settings of a file and of the command line.

    Args:
        config: `prototypes` (name: file, or name: {file, calculator_args}; or a list of files),
            `strain` as for `parse_strain`, `sigma` and `vacancies` as for `parse_grid`,
            `supercell` (three numbers, or a list of such), and the other attributes of `Recipe`.
        folder: where relative paths of prototypes start.

    Raises:
        ValueError: an unknown or wrong setting.
        FileNotFoundError: a prototype is missing.
    """
    config = dict(config)
    unknown = sorted(set(config) - set(SETTINGS))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from {', '.join(SETTINGS)}")
    settings = {key: value for key, value in config.items() if value is not None}
    if not isinstance(settings.get("calculator_args", {}), Mapping):
        raise ValueError("calculator_args are keyword arguments by name")
    settings["prototypes"] = _read_prototypes(settings.get("prototypes") or [], Path(folder))
    if "strain" in settings:
        settings["strains"] = parse_strain(settings.pop("strain"))
    if "sigma" in settings:
        settings["sigmas"] = parse_grid(settings.pop("sigma"))
    if "vacancies" in settings:
        settings["vacancies"] = tuple(_whole(n) for n in parse_grid(settings["vacancies"]))
    if "supercell" in settings:
        cells = settings.pop("supercell")
        cells = cells if isinstance(cells[0], list | tuple) else [cells]
        settings["supercells"] = tuple(tuple(cell) for cell in cells)
    return Recipe(**settings)


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(f"vacancies is a number of atoms, not {number}")
    return int(number)


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
        prototypes.append(Prototype(str(name), _geometry(ase.io.read(path)), dict(arguments)))
    return prototypes


def _geometry(atoms: Atoms) -> Atoms:
    """Without results, constraints and notes; with initial moments, which DFT may start from."""
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)
    for name in ("initial_magmoms", "initial_charges"):
        if atoms.has(name):
            bare.set_array(name, atoms.get_array(name))
    return bare
