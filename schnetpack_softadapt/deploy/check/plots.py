"""Plots of `spk-softadapt check`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.quantities import VOIGT

__all__ = ["plot_checks"]


def plot_checks(results: Mapping[str, dict], path: str | Path) -> Path | None:
    """Draw what the checks found: equation of state, frequencies, energy spread of NVE.

    Args:
        results: of `check.run_checks`.
        path: of the image; its suffix is the format.

    Returns:
        The path, or None when no check has anything to draw.
    """
    # without pyplot: no display is needed and the caller's backend is left alone
    from matplotlib.figure import Figure

    panels = {"eos": _eos, "elastic": _elastic, "phonons": _phonons, "nve": _nve}
    drawn = {name: r for name, r in results.items() if name in panels and "ok" in r}
    drawn = {name: r for name, r in drawn.items() if "failed" not in r}
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


def _eos(axes, r: Mapping) -> None:
    energies = 1000 * (np.array(r["energies_eV_per_atom"]) - r["energy_eV_per_atom"])
    axes.plot(r["volumes_Ang3_per_atom"], energies, "o-", markersize=4)
    axes.axvline(r["volume_Ang3_per_atom"], color="0.7", linewidth=0.8)
    axes.set_xlabel("volume (Å$^3$/atom)")
    axes.set_ylabel("energy (meV/atom)")
    axes.set_title(f"bulk modulus {r['bulk_modulus_GPa']:.1f} GPa", fontsize=10)


def _elastic(axes, r: Mapping) -> None:
    constants = np.array(r["elastic_constants_GPa"])
    limit = np.abs(constants).max()
    axes.imshow(constants, cmap="RdBu", vmin=-limit, vmax=limit)
    for i, j in np.ndindex(6, 6):
        color = "white" if abs(constants[i, j]) > 0.6 * limit else "black"
        axes.text(j, i, f"{constants[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color)
    labels = list(VOIGT)
    axes.set_xticks(range(6), labels)
    axes.set_yticks(range(6), labels)
    axes.set_title(f"elastic constants (GPa), {r['space_group']}", fontsize=10)


def _phonons(axes, r: Mapping) -> None:
    frequencies = np.array(r["frequencies_THz"])
    axes.plot(np.arange(1, len(frequencies) + 1), frequencies, "_", markersize=8)
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    axes.set_xlabel("mode")
    axes.set_ylabel("frequency at Γ (THz)")
    axes.set_title(f"{r['n_imaginary']} imaginary", fontsize=10)


def _nve(axes, r: Mapping) -> None:
    steps = np.array(r["time_steps_fs"])
    spreads = 1000 * np.array(r["energy_spread_eV_per_atom"], dtype=float)  # None becomes nan
    shown = np.isfinite(spreads) & (spreads > 0)
    if shown.any():
        axes.loglog(steps[shown], spreads[shown], "o-", markersize=4)
        guide = spreads[shown][0] * (steps / steps[shown][0]) ** 2
        axes.loglog(steps, guide, "--", color="0.6", label="slope 2")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("time step (fs)")
    axes.set_ylabel("energy spread (meV/atom)")
    slope = "none" if r["slope"] is None else f"{r['slope']:.2f}"
    axes.set_title(f"NVE, slope {slope}", fontsize=10)
