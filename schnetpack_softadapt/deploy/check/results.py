"""What the checks found, in words and pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.quantities import VOIGT

__all__ = ["plot_checks", "summary"]


def summary(results: Mapping[str, dict]) -> str:
    """One line per check, in meV, GPa and THz."""
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
    return f"slope {_slope(r)} (2 for a smooth potential); spread in meV/atom: {spreads}"


def _slope(r: Mapping) -> str:
    return "none" if r["slope"] is None else f"{r['slope']:.2f}"


def _independent(r: Mapping) -> dict[str, float]:
    """The elastic constants that symmetry leaves, such as C11, C12 and C44 of a cubic crystal."""
    found: dict[str, float] = {}
    table = np.array(r["elastic_constants_GPa"])
    for i, j in zip(*np.triu_indices(6), strict=True):
        others = [0.0, *map(abs, found.values())]
        if not np.isclose(abs(table[i, j]), others, rtol=0, atol=1e-6 * table.max()).any():
            found[f"C{i + 1}{j + 1}"] = float(table[i, j])
    return found


def plot_checks(results: Mapping[str, dict], path: str | Path) -> Path | None:
    """Draw what the checks found: equation of state, frequencies, energy spread of NVE.


    Returns:
        The path, or None when no check has anything to draw.
    """
    # without pyplot: no display is needed and the caller's backend is left alone
    from matplotlib.figure import Figure

    panels = {"eos": _eos, "elastic": _elastic, "phonons": _phonons, "nve": _nve}
    unmade = ("skipped", "failed")
    drawn = {k: r for k, r in results.items() if k in panels and not any(w in r for w in unmade)}
    if not drawn:
        return None
    figure = Figure(figsize=(4.2 * len(drawn), 3.6), layout="constrained")
    for axes, (name, result) in zip(
        np.atleast_1d(figure.subplots(1, len(drawn))), drawn.items(), strict=True
    ):
        panels[name](axes, result)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return path


def _label(axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)


def _eos(axes, r: Mapping) -> None:
    energies = 1000 * (np.array(r["energies_eV_per_atom"]) - r["energy_eV_per_atom"])
    axes.plot(r["volumes_Ang3_per_atom"], energies, "o-", markersize=4)
    axes.axvline(r["volume_Ang3_per_atom"], color="0.7", linewidth=0.8)
    title = f"bulk modulus {r['bulk_modulus_GPa']:.1f} GPa"
    _label(axes, "volume (Å$^3$/atom)", "energy (meV/atom)", title)


def _elastic(axes, r: Mapping) -> None:
    constants = np.array(r["elastic_constants_GPa"])
    limit = np.abs(constants).max()
    axes.imshow(constants, cmap="RdBu", vmin=-limit, vmax=limit)
    for i, j in np.ndindex(6, 6):
        color = "white" if abs(constants[i, j]) > 0.6 * limit else "black"
        axes.text(j, i, f"{constants[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(6), VOIGT)
    axes.set_yticks(range(6), VOIGT)
    _label(axes, "", "", f"elastic constants (GPa), {r['space_group']}")


def _phonons(axes, r: Mapping) -> None:
    frequencies = r["frequencies_THz"]
    axes.plot(range(1, len(frequencies) + 1), frequencies, "_", markersize=8)
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    _label(axes, "mode", "frequency at Γ (THz)", f"{r['n_imaginary']} imaginary")


def _nve(axes, r: Mapping) -> None:
    steps = np.array(r["time_steps_fs"])
    spreads = 1000 * np.array(r["energy_spread_eV_per_atom"], dtype=float)  # None becomes nan
    shown = np.isfinite(spreads) & (spreads > 0)
    if shown.any():
        axes.loglog(steps[shown], spreads[shown], "o-", markersize=4)
        guide = spreads[shown][0] * (steps / steps[shown][0]) ** 2
        axes.loglog(steps, guide, "--", color="0.6", label="slope 2")
        axes.legend(frameon=False, fontsize=8)
    _label(axes, "time step (fs)", "energy spread (meV/atom)", f"NVE, slope {_slope(r)}")
