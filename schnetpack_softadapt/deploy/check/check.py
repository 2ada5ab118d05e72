"""What a user of a new potential looks at first: is it consistent, stable and smooth?"""

import json
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path

import numpy as np
from ase import Atoms

from schnetpack_softadapt.deploy.check.dynamics import check_nve, check_phonons
from schnetpack_softadapt.deploy.check.elastic import check_elastic
from schnetpack_softadapt.deploy.check.plots import plot_checks
from schnetpack_softadapt.deploy.check.static import check_derivatives, check_eos, relax
from schnetpack_softadapt.deploy.check.structure import copy_of
from schnetpack_softadapt.files import replacing, write_file

__all__ = ["CHECKS", "read_options", "run_checks", "summary"]

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
        atoms: with a calculator.
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


def summary(results: Mapping[str, dict]) -> str:
    """One line per check, in the units people use."""
    lines = []
    for name, r in results.items():
        verdict = "skipped" if "skipped" in r else "ok" if r["ok"] else "NOT OK"
        lines.append(f"{name:12s} {verdict:8s} {_describe(name, r)}")
    return "\n".join(lines)


def _describe(name: str, r: Mapping) -> str:
    if "skipped" in r or "failed" in r:
        return r.get("skipped") or r["failed"]
    if name == "derivatives":
        text = f"forces against finite differences: {r['force_max_error_eV_per_Ang']:.1e} eV/Ang"
        if "stress_max_error_eV_per_Ang3" in r:
            text += f", stress: {r['stress_max_error_eV_per_Ang3']:.1e} eV/Ang^3"
        return text
    if name == "relax":
        a, b, c = r["cell_lengths_Ang"]
        return (
            f"cell {a:.4f} {b:.4f} {c:.4f} Ang, {1000 * r['energy_gain_eV_per_atom']:.3f} meV/atom"
            f" gained, largest force {1000 * r['max_force_eV_per_Ang']:.2f} meV/Ang"
        )
    if name == "eos":
        return (
            f"volume {r['volume_Ang3_per_atom']:.4f} Ang^3/atom, bulk modulus"
            f" {r['bulk_modulus_GPa']:.2f} GPa"
        )
    if name == "elastic":
        constants = ", ".join(f"{k} {c:.1f}" for k, c in _independent(r).items())
        bulk, shear = (r[f"{k}_modulus_GPa"]["hill"] for k in ("bulk", "shear"))
        moduli = "unstable" if bulk is None else f"bulk {bulk:.1f}, shear {shear:.1f} (Hill)"
        return f"{r['space_group']}: {constants}; {moduli} GPa"
    if name == "phonons":
        return (
            f"Gamma: {r['frequencies_THz'][-1]:.3f} THz the highest, {r['n_imaginary']} imaginary,"
            f" acoustic within {r['acoustic_max_THz']:.1e} THz of zero"
        )
    spreads = ", ".join(
        f"{dt:g} fs {'exploded' if spread is None else format(1000 * spread, '.2e')}"
        for dt, spread in zip(r["time_steps_fs"], r["energy_spread_eV_per_atom"], strict=True)
    )
    slope = "none" if r["slope"] is None else f"{r['slope']:.2f}"
    return f"slope {slope} (2 for a smooth potential); spread in meV/atom: {spreads}"


def _independent(r: Mapping) -> dict[str, float]:
    """The elastic constants that symmetry leaves, such as C11, C12 and C44 of a cubic crystal."""
    found: dict[str, float] = {}
    table = np.array(r["elastic_constants_GPa"])
    for i, j in zip(*np.triu_indices(6), strict=True):
        others = [0.0, *map(abs, found.values())]
        if not np.isclose(abs(table[i, j]), others, rtol=0, atol=1e-6 * table.max()).any():
            found[f"C{i + 1}{j + 1}"] = float(table[i, j])
    return found


def _write(results: dict[str, dict], relaxed: Atoms | None, folder: Path) -> None:
    write_file(folder / "check.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    if relaxed is not None:
        with replacing(folder / "relaxed.extxyz") as temporary:
            relaxed.copy().write(temporary, format="extxyz")
    plot_checks(results, folder / "check.png")
