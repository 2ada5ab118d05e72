"""Labels to look at: structures that a potential disagrees with far more than with the others.

Often it is the label that is wrong: a calculation that did not converge, a stress whose components
are in another order. Losses that are not robust bend the whole potential towards such labels.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from schnetpack_softadapt.data.importing.stress_labels import Finding, findings_from_predictions
from schnetpack_softadapt.quantities import (
    ENERGY,
    FORCES,
    QUANTITIES,
    STRESS,
    SUBSETS,
    Quantity,
)
from schnetpack_softadapt.reports.page import paragraph, table
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.reports.tables import figures

__all__ = ["Outlier", "find_outliers", "find_stress_order", "outlier_blocks"]

#: an error this many times the median of all structures; a normal distribution of component errors
#: has less than one structure in a million beyond it
_FACTOR: Final = 8.0
#: fewer structures have no median worth the name
_ENOUGH: Final = 10
_SHOWN: Final = 30


@dataclass(frozen=True)
class Outlier:
    """One structure's error in one quantity, in `unit`; `times` is over the median of all."""

    subset: str
    index: int | None  # in the database
    group: str
    n_atoms: int
    quantity: str
    error: float
    unit: str
    times: float


def structure_errors(predictions: Predictions, quantity: Quantity) -> np.ndarray:
    """Error of each structure (S,) in ASE units: per atom, else RMS of components; NaN unlabelled.

    Energies are taken relative to the median difference, which is no structure's fault.
    """
    prediction = getattr(predictions, quantity.name)
    error = prediction - getattr(predictions, f"{quantity.name}_ref")
    if quantity is ENERGY:
        error = error / predictions.n_atoms
        return np.abs(error - np.median(error))
    if quantity is FORCES:
        squares = np.bincount(
            predictions.structure_of_atom, (error**2).mean(axis=1), predictions.n_structures
        )
        return np.sqrt(squares / np.maximum(predictions.n_atoms, 1))
    return np.where(predictions.stress_mask, np.sqrt((error**2).mean(axis=1)), np.nan)


def find_outliers(subsets: list[Predictions]) -> list[Outlier]:
    """Structures whose error is many times the median over all subsets, the largest first."""
    found = []
    for quantity in QUANTITIES:
        usable = [p for p in subsets if p.has(quantity)]
        errors = [structure_errors(p, quantity) for p in usable]
        known = np.concatenate([e[np.isfinite(e)] for e in errors]) if errors else np.zeros(0)
        median = float(np.median(known)) if len(known) >= _ENOUGH else 0.0
        if not median > 0.0:
            continue
        for p, values in zip(usable, errors, strict=True):
            for k in np.flatnonzero(values > _FACTOR * median).tolist():
                found.append(
                    Outlier(
                        subset=p.subset,
                        index=None if p.index is None else int(p.index[k]),
                        group="" if p.group is None else p.group_names[p.group[k]],
                        n_atoms=int(p.n_atoms[k]),
                        quantity=quantity.name,
                        error=float(values[k]) * quantity.shown_factor,
                        unit=quantity.shown_unit,
                        times=float(values[k]) / median,
                    )
                )
    return sorted(found, key=lambda outlier: -outlier.times)


def find_stress_order(subsets: list[Predictions]) -> list[Finding]:
    """Groups whose stress labels fit the model much better in another order, sign or unit.

    The subsets count together. Structures without groups are one group, by the pattern `*`.
    """
    predicted, labels, groups = [], [], []
    for p in subsets:
        if not p.has(STRESS):
            continue
        known = p.stress_mask & np.isfinite(p.stress + p.stress_ref).all(axis=1)
        names = ["*"] * p.n_structures if p.group is None else [p.group_names[g] for g in p.group]
        predicted.append(p.stress[known])
        labels.append(p.stress_ref[known])
        groups += [name for name, there in zip(names, known, strict=True) if there]
    if not groups:
        return []
    return findings_from_predictions(np.concatenate(predicted), np.concatenate(labels), groups)


def outlier_blocks(outliers: list[Outlier]) -> list[str]:
    """HTML blocks; none without outliers."""
    if not outliers:
        return []
    rows: list[list[Any]] = [
        [
            "–" if o.index is None else str(o.index),
            SUBSETS[o.subset],
            o.group or "–",
            str(o.n_atoms),
            o.quantity,
            f"{figures(o.error)} {o.unit}",
            figures(o.times),
        ]
        for o in outliers[:_SHOWN]
    ]
    more = len(outliers) - len(rows)
    text = (
        f"{len(outliers)} errors of single structures are more than {_FACTOR:g} times the median"
        " over all structures: look at these labels first."
        + (f" The largest {len(rows)} are shown, report.json has all." if more else "")
    )
    header = ["structure", "subset", "group", "atoms", "quantity", "error", "times the median"]
    return [paragraph(text), table("Errors of single structures", header, rows)]
