"""Folders with a potential as text, for LAMMPS and for readers of other programs."""

from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.data import chemical_symbols
from torch import nn

from schnetpack_softadapt.deploy.exchange.lammps import write_lammps, write_with_overlay
from schnetpack_softadapt.deploy.exchange.lammps_mliap import PICKLE_NAME, pickle_text
from schnetpack_softadapt.deploy.exchange.n2p2.model import from_model
from schnetpack_softadapt.deploy.exchange.n2p2.write import write_files
from schnetpack_softadapt.deploy.exchange.pace import write_pace
from schnetpack_softadapt.deploy.exchange.snap import write_snap
from schnetpack_softadapt.deploy.exchange.text import FILE_NAME, write_text
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.model.composition import take_apart
from schnetpack_softadapt.model.core_repulsion import CoreRepulsion

__all__ = ["FORMATS", "export_potential"]

FORMATS = ("all", "lammps", "n2p2", "snap", "yace")


def export_potential(
    models: Sequence[nn.Module],
    folder: str | Path,
    structure: Atoms | None = None,
    format: str = "all",
) -> tuple[list[Path], str]:
    """Write a model, or a committee, with an input for LAMMPS and a README.

    Args:
        folder: made if it does not exist; files of an earlier export are replaced.
        structure: what LAMMPS simulates, see `lammps.write_lammps`.
        format: "lammps" writes `potential.json`, which LAMMPS runs by `pair_style mliap unified`,
            "n2p2" the files of n2p2 for `pair_style hdnnp`, "snap" those of `pair_style snap` for
            linear and quadratic models in bispectrum components, "yace" that of `pair_style pace`
            for linear and Finnis-Sinclair models of the cluster expansion, "all" the first two,
            where the model allows it; beside potential.json those of n2p2 may be part of a
            potential whose ZBL `in.lammps` adds.

    Returns:
        the files written, and why the n2p2 ones were left out of "all" (empty if they were not).

    Raises:
        ValueError: the model cannot be expressed in the format; with the reason.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose from {FORMATS}")
    folder, models, reason = Path(folder), list(models), ""
    if format in ("snap", "yace"):
        if len(models) > 1:
            raise ValueError(f"format {format!r} holds one model, not a committee")
        baseline = take_apart(models[0], short_range=True).baseline
        if format == "snap":
            written = write_snap(models[0], folder / "potential.snapcoeff", with_overlay=True)
            return write_with_overlay(models[0], folder, structure, "snap", written, baseline), ""
        written = [write_pace(models[0], folder / "potential.yace", with_overlay=True)]
        overlay = None if isinstance(baseline, CoreRepulsion) else baseline
        return write_with_overlay(models[0], folder, structure, "pace", written, overlay), ""
    potential = None
    if format != "lammps":
        try:
            if len(models) > 1:
                raise ValueError("n2p2's files hold one model, not a committee")
            potential = from_model(models[0], with_overlay=format == "all")
        except ValueError as error:
            if format == "n2p2":
                raise
            reason = str(error)
    files, styles = [], []
    if format != "n2p2":
        files += [
            write_text(models, folder),
            write_file(folder / PICKLE_NAME, pickle_text(FILE_NAME)),
        ]
        styles.append("mliap")
    if potential is not None:
        files += write_files(potential, folder)
        styles.append("hdnnp")
    # what is left of an earlier export would be taken for this one's
    for name in (FILE_NAME, PICKLE_NAME, "input.nn", "structure.data"):
        if folder / name not in files:
            (folder / name).unlink(missing_ok=True)
    symbols = [chemical_symbols[z] for z in models[0].representation.descriptor.elements]
    zbl = ((), ())
    if "hdnnp" in styles and models[0].baseline is not None:
        zbl = models[0].baseline.lammps(symbols)
    reach = [model.baseline.cutoff for model in models if model.baseline is not None]
    cutoff = max([float(model.representation.cutoff) for model in models] + reach)
    files += write_lammps(folder, symbols, cutoff, structure, styles, len(models), zbl)
    return files, reason
