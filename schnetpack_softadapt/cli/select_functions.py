"""A smaller set of functions for the structures of a database, as a file that the config reads."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from schnetpack_softadapt.data.dataset import InMemoryAtomsData
    from schnetpack_softadapt.descriptors.protocol import Descriptor

__all__ = ["select_functions"]

BINS = 200  # of a histogram, as n2p2's nnp-scaling has them by default


def select_functions(
    path: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    histograms: str | Path | None = None,
    **thresholds: float,
) -> str:
    """Choose functions, write them to a file, and describe the choice.

    Args:
        path: database, or run with one.
        out: file for the functions that are kept (JSON).
        overrides: of the configuration that says what is chosen from.
        histograms: file for the distribution of the values of all functions, *.csv or *.png.
        thresholds: of `descriptors.selection.select_columns`.

    Raises:
        FileNotFoundError: no database or run at the path.
        ValueError: the run's model has no descriptors, or nothing is left.
    """
    from schnetpack_softadapt.descriptors.selection import (
        sample_values,
        select_columns,
        variance_left,
    )
    from schnetpack_softadapt.files import write_file

    if histograms is not None and Path(histograms).suffix not in (".csv", ".png"):
        raise ValueError(f"--histograms {histograms}: the file is *.csv or *.png")
    dataset, subset = _structures(Path(path))
    structures = [(s.numbers, s.positions, s.cell, s.pbc) for s in dataset.structures()]
    elements = np.unique(np.concatenate([s[0] for s in structures])).tolist()
    pool = _pool(Path(path), overrides, elements)
    values = sample_values(pool, structures)
    columns = {z: select_columns(x, **thresholds) for z, x in values.items()}
    lines = [f"{len(structures)} {subset} structures of {path}"]
    for z, x in values.items():
        left = variance_left(x, columns[z])
        lines.append(
            f"{chemical_symbols[z]}: {len(columns[z])} of {x.shape[1]} {pool.name} kept, judged by"
            f" {len(x)} atoms; they leave {left:.1e} of the variance of all"
        )
        lines += _table(pool, z, x, columns[z])
    write_file(out, json.dumps(pool.select(columns).to_dict(), indent=1) + "\n")
    lines.append(f"written {out}; train with model.representation.layout={out}")
    if histograms is not None:
        write = _histogram_csv if Path(histograms).suffix == ".csv" else _histogram_png
        write_file(histograms, write(pool, values, columns))
        lines.append(f"written {histograms}")
    return "\n".join(lines)


def _structures(path: Path) -> tuple["InMemoryAtomsData", str]:
    """The training structures, as far as it is known which these are, and what to call them."""
    from schnetpack_softadapt.data.dataset import InMemoryAtomsData
    from schnetpack_softadapt.data.splitting import load_split, split_path
    from schnetpack_softadapt.deploy.training_data import training_set

    if path.is_dir():
        return training_set(path), "training"
    if not path.is_file():
        raise FileNotFoundError(f"no database or run at {path}")
    dataset = InMemoryAtomsData(str(path), load_properties=[], distance_unit="Ang")
    if not split_path(path).is_file():
        return dataset, "(all)"
    return dataset.subset(load_split(split_path(path), len(dataset)).train), "training"


def _pool(path: Path, overrides: Sequence[str], elements: Sequence[int]) -> "Descriptor":
    """All functions of the run, or of the recommended recipe with overrides."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from schnetpack_softadapt.api import spktrain_arguments
    from schnetpack_softadapt.data.paths import run_config

    if path.is_dir():
        config = OmegaConf.merge(run_config(path), OmegaConf.from_dotlist(list(overrides)))
    else:
        try:
            with initialize_config_module("schnetpack.configs", version_base="1.2"):
                config = compose("train", spktrain_arguments(path, overrides))
        except HydraException as error:
            raise ValueError(
                " ".join(str(error).split("Set the environment")[0].split())
            ) from error
    settings = config.model.representation
    if "select" not in settings and not str(settings._target_).startswith(
        __package__.split(".")[0]
    ):
        raise ValueError(f"{settings._target_} has no functions to choose from")
    settings.select = None
    try:
        representation = instantiate(settings)
    except HydraException as error:
        raise ValueError(str(error.__cause__ or error)) from error
    if representation.descriptor is None:
        representation.build(elements)
    return representation.descriptor


def _kind(descriptor: "Descriptor", z: int, column: int) -> str:
    return descriptor.describe(z, column).split()[0]


def _table(
    descriptor: "Descriptor", z: int, values: np.ndarray, columns: Sequence[int]
) -> list[str]:
    """How many of each kind are kept, and the ranges of their values."""
    kinds = np.array([_kind(descriptor, z, k) for k in range(values.shape[1])])
    kept = np.isin(np.arange(len(kinds)), columns)
    ranges = np.ptp(values, axis=0)
    lines = [f"  {'kind':8s} {'kept':>5s} {'of':>5s}   range of a kept function's values"]
    for kind in dict.fromkeys(kinds.tolist()):
        of_kind = ranges[kept & (kinds == kind)]
        span = f"{of_kind.min():.3g} to {of_kind.max():.3g}" if len(of_kind) else "-"
        lines.append(f"  {kind:8s} {len(of_kind):5d} {(kinds == kind).sum():5d}   {span}")
    return lines


def _histogram_csv(
    descriptor: "Descriptor", values: Mapping[int, np.ndarray], columns: Mapping[int, Sequence[int]]
) -> str:
    """A row for each function: its range, and the atoms in each of 200 equal parts of it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["element", "column", "function", "kept", "minimum", "maximum"]
    writer.writerow([*head, *(f"bin_{k}" for k in range(BINS))])
    for z, x in values.items():
        for k, column in enumerate(x.T):
            counts, edges = np.histogram(column, BINS)
            what = " ".join(descriptor.describe(z, k).split())
            row = [chemical_symbols[z], k, what, int(k in columns[z]), edges[0], edges[-1]]
            writer.writerow([*row, *counts.tolist()])
    return buffer.getvalue()


def _histogram_png(
    descriptor: "Descriptor", values: Mapping[int, np.ndarray], columns: Mapping[int, Sequence[int]]
) -> bytes:
    """A panel for each element: a row for each function, darker where more atoms are."""
    from schnetpack_softadapt.reports.style import new_figure, png_bytes

    def draw():
        height = 1.5 + 0.03 * max(x.shape[1] for x in values.values())
        figure = new_figure(10.0, max(4.0, height))
        for axes, (z, x) in zip(
            np.atleast_1d(figure.subplots(1, len(values))), values.items(), strict=True
        ):
            counts = np.array([np.histogram(column, BINS)[0] for column in x.T])
            axes.imshow(
                np.log1p(counts), aspect="auto", cmap="Greys", extent=(0, 1, x.shape[1] - 0.5, -0.5)
            )
            axes.plot([1.015] * len(columns[z]), columns[z], ">", markersize=3, clip_on=False)
            axes.grid(False)
            axes.set_title(f"{chemical_symbols[z]}: {len(columns[z])} of {x.shape[1]} kept")
            axes.set_xlabel("value, minimum to maximum")
            axes.set_ylabel("function")
        return figure

    return png_bytes(draw)
