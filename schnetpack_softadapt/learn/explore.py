"""Where models go, and how sure they are there.

An explorer is a function (start, driver, seed, folder, **settings) -> structures: `start` is where
it starts from, `driver` names a calculator with `forces_std` and its arguments, `folder` is its
own. Others are added to `EXPLORERS`; their settings are the keywords of the function.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from schnetpack_softadapt.data.generate.entropy import (
    EntropyRecipe,
    make_potential,
    make_structure,
)
from schnetpack_softadapt.data.generate.labelling import import_calculator
from schnetpack_softadapt.data.generate.walks import MD, Swaps, Walk, walk
from schnetpack_softadapt.data.importing.checks import closest_contact
from schnetpack_softadapt.files import replacing

__all__ = ["EXPLORERS", "check_explorer", "driver", "explore"]

SHORTEST_OF_COVALENT = 0.6  # closer atoms are not worth a label
Driver = tuple[str, dict]


def driver(models: Sequence[str]) -> Driver:
    """Calculator whose `forces_std` is the spread of a committee, or of one linear model."""
    if len(models) > 1:
        return "schnetpack_softadapt:SoftAdaptCalculator", {"model": [*models]}
    return "schnetpack_softadapt.learn.posterior:PosteriorCalculator", {"model": models[0]}


def _walk(
    kind: type, start: Atoms, driver: Driver, seed: int, folder: Path, **settings
) -> list[Atoms]:
    """Molecular dynamics (also NPT, ramps and `stop`) or exchanges: `data.generate.walks`."""
    return walk(Walk(kind.kind, "", start, kind(**settings), *driver, seed, folder))[0]


def _strain(
    start: Atoms,
    driver: Driver,
    seed: int,
    folder: Path,
    strain: float = 0.05,
    sigma: float = 0.1,
    n: int = 20,
) -> list[Atoms]:
    """Cells strained by up to `strain` in each component, atoms displaced by `sigma`, Ang."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        epsilon = rng.uniform(-strain, strain, (3, 3))
        atoms = start.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (epsilon + epsilon.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0.0, sigma, atoms.positions.shape)
        found.append(atoms)
    return found


def _entropy(start: Atoms, driver: Driver, seed: int, folder: Path, **settings) -> list[Atoms]:
    """Diverse structures of the elements; see `data.generate.entropy.EntropyRecipe`."""
    elements = [chemical_symbols[z] for z in sorted(set(start.numbers))]
    recipe = EntropyRecipe(**{"elements": elements, "n": 5, "seed": seed, **settings})
    potential = make_potential(recipe, say=lambda text: None)
    return [make_structure(recipe, index, potential) for index in range(recipe.n)]


EXPLORERS: dict[str, Callable] = {
    "md": partial(_walk, MD),
    "swaps": partial(_walk, Swaps),
    "strain": _strain,
    "entropy": _entropy,
}
#: what checks the settings, with what it needs besides
_SETTINGS = {"md": (MD, {}), "swaps": (Swaps, {}), "entropy": (EntropyRecipe, {"elements": ["H"]})}


def check_explorer(settings: Mapping) -> None:
    """Raise ValueError for an explorer that is not there, or a wrong setting of it."""
    settings = {k: v for k, v in settings.items() if k != "repeats"}
    method = settings.pop("method", None)
    if method not in EXPLORERS:
        raise ValueError(f"explore: method {method!r} is none of {', '.join(EXPLORERS)}")
    make, given = _SETTINGS.get(method, (EXPLORERS[method], {}))
    names = set(inspect.signature(make).parameters) - {"start", "driver", "seed", "folder"}
    for name in sorted(set(settings) - names):
        raise ValueError(f"explore: {method} has no {name!r}; it has {', '.join(sorted(names))}")
    if method in _SETTINGS:
        make(**{**given, **settings})


def explore(
    settings: Mapping, start: Atoms, models: Sequence[str], seed: int, path: Path, worker: str = ""
) -> None:
    """One exploration; structures with `info["spread"]` go to a file, which stays if it is there.

    The spread is the largest of the atoms' |standard deviation of the force|, eV/Ang. Structures
    with atoms too close to each other are left out.
    """
    if path.exists():
        return
    logging.getLogger("schnetpack_softadapt.deploy.extrapolation").setLevel(logging.ERROR)
    settings = {k: v for k, v in settings.items() if k != "repeats"}
    method = settings.pop("method")
    found, (name, arguments) = [], driver(models)
    calculator = import_calculator(name)(**arguments)
    for atoms in EXPLORERS[method](start, (name, arguments), seed, path.parent, **settings):
        if closest_contact(atoms, None, SHORTEST_OF_COVALENT) is None:
            calculator.calculate(atoms)
            spread = np.linalg.norm(calculator.results["forces_std"], axis=1).max()
            atoms.info = {**atoms.info, "group": method, "spread": float(spread)}
            found.append(atoms)
    with replacing(path) as temporary:
        ase.io.write(temporary, found, format="extxyz")
