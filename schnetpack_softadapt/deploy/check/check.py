"""What a user of a new potential looks at first: is it consistent, stable and smooth?"""

import json
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path

import numpy as np
from ase import Atoms

from schnetpack_softadapt.deploy.check.checks import (
    check_derivatives,
    check_eos,
    check_nve,
    check_phonons,
    relax,
)
from schnetpack_softadapt.deploy.check.elastic import check_elastic
from schnetpack_softadapt.deploy.check.results import plot_checks
from schnetpack_softadapt.deploy.check.structure import copy_of
from schnetpack_softadapt.files import replacing, write_file

__all__ = ["CHECKS", "read_options", "run_checks"]

#: in the order in which they are made
CHECKS = {
    "derivatives": check_derivatives,
    "relax": relax,
    "eos": check_eos,
    "elastic": check_elastic,
    "phonons": check_phonons,
    "nve": check_nve,
}


def read_options(settings: Iterable[str]) -> dict[str, dict]:
    """Options of the checks from texts such as "nve.temperature=600", "nve.time_steps=1,2".

    Raises:
        ValueError: no such option, or no number; with all options and their defaults.
    """
    known = {
        f"{check}.{name}": parameter.default
        for check, function in CHECKS.items()
        for name, parameter in signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    options: dict[str, dict] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            default = known[name]
            if isinstance(default, tuple):
                value = tuple(float(part) for part in text.split(","))
            else:
                value = type(default)(text)
            if not np.isfinite(value).all():
                raise ValueError(value)
        except (KeyError, ValueError):
            listed = " ".join(f"{k}={v}" for k, v in known.items()).replace(", ", ",")
            raise ValueError(f"{setting!r} sets no option of a check; they are {listed}") from None
        check, _, name = name.partition(".")
        options.setdefault(check, {})[name] = value
    return options


def run_checks(
    atoms: Atoms,
    checks: Iterable[str] = tuple(CHECKS),
    folder: str | Path | None = None,
    options: Mapping[str, Mapping] | None = None,
) -> dict[str, dict]:
    """Run the checks; those after `relax` use the relaxed structure.

    A check that fails with an error is reported as such, and the others go on.

    Args:
        checks: names out of `CHECKS`.
        folder: where `check.json`, `check.png` and, after a relaxation, `relaxed.extxyz` go, if
            given.
        options: further arguments of a check by its name, such as {"nve": {"temperature": 600}}.

    Returns:
        Numbers and verdict of each check; a check that makes no sense for the structure has
        `skipped` with the reason, one that met an error has `failed`.

    Raises:
        ValueError: an unknown check.
    """
    unknown = set(checks) - set(CHECKS)
    if unknown:
        raise ValueError(f"unknown checks {sorted(unknown)}; choose from {list(CHECKS)}")
    results: dict[str, dict] = {}
    structure, relaxed = copy_of(atoms), None
    for name, function in CHECKS.items():  # in this order, however they were asked for
        if name not in checks:
            continue
        arguments = (options or {}).get(name, {})
        try:
            if name == "relax":
                structure, results[name] = relax(structure, **arguments)
                relaxed = structure
            else:
                results[name] = function(structure, **arguments)
        except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
            results[name] = {"ok": False, "failed": str(error)}
    if folder is not None:
        _write(results, relaxed, Path(folder))
    return results


def _write(results: dict[str, dict], relaxed: Atoms | None, folder: Path) -> None:
    write_file(folder / "check.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    if relaxed is not None:
        with replacing(folder / "relaxed.extxyz") as temporary:
            relaxed.copy().write(temporary, format="extxyz")
    plot_checks(results, folder / "check.png")
