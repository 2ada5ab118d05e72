"""Labels to look at: structures that a potential disagrees with far more than with the others.

Often it is the label that is wrong: a calculation that did not converge, a stress whose components
are in another order. Losses that are not robust bend the whole potential towards such labels.
"""

from typing import Final

import numpy as np
import pandas as pd

from schnetpack_softadapt.data.importing.stress_labels import Finding, findings_from_predictions
from schnetpack_softadapt.quantities import ENERGY, QUANTITIES, STRESS, Quantity
from schnetpack_softadapt.reports.predictions import Predictions

__all__ = ["FACTOR", "find_outliers", "find_stress_order"]

#: an error this many times the median of all structures; a normal distribution of component errors
#: has less than one structure in a million beyond it
FACTOR: Final = 8.0
#: fewer structures have no median worth the name
_ENOUGH: Final = 10


def find_outliers(subsets: list[Predictions]) -> pd.DataFrame:
    """Structures whose error is many times the median over all subsets, the largest first.

    Returns:
        columns subset, index (in the database, None where unknown), group, n_atoms, quantity, error
        (of energies per atom, else the RMS of components), unit, times (over the median).
    """
    found = []
    for quantity in QUANTITIES:
        tables = [_structure_errors(p, quantity) for p in subsets if quantity.name in p.values]
        table = pd.concat(tables) if tables else pd.DataFrame({"error": []})
        known = table["error"].dropna()
        if len(known) < _ENOUGH or not known.median() > 0.0:
            continue
        table["times"] = table["error"] / known.median()
        table = table.assign(quantity=quantity.name, unit=quantity.shown_unit)
        table["error"] *= quantity.shown_factor
        found.append(table[table["times"] > FACTOR])
    columns = ["subset", "index", "group", "n_atoms", "quantity", "error", "unit", "times"]
    outliers = pd.concat(found) if found else pd.DataFrame(columns=columns)
    return outliers.sort_values("times", ascending=False, kind="stable")[columns]


def _structure_errors(p: Predictions, quantity: Quantity) -> pd.DataFrame:
    """`Predictions.structures` and their errors in ASE units; NaN unlabelled.

    Energies are taken relative to the median difference, which is no structure's fault.
    """
    values = p.values[quantity.name]
    if quantity is ENERGY:
        errors = (values["error"] - values["error"].median()).abs()
    else:
        errors = np.sqrt((values["error"] ** 2).groupby(values["structure"]).mean())
    return p.structures.assign(subset=p.subset, error=errors)


def find_stress_order(subsets: list[Predictions]) -> list[Finding]:
    """Groups whose stress labels fit the model much better in another order, sign or unit.

    The subsets count together. Structures without groups are one group, by the pattern `*`.
    """
    six, groups = [], []
    for p in subsets:
        if STRESS.name in p.values:
            values = p.values[STRESS.name]
            pairs = values[["prediction", "reference"]].to_numpy().reshape(-1, 6, 2)
            known = np.isfinite(pairs).all(axis=(1, 2))
            six.append(pairs[known])
            groups += [*p.structures["group"].iloc[values["structure"][::6]][known]]
    if not groups:
        return []
    pairs = np.concatenate(six)
    groups = [str(group) or "*" for group in groups]
    return findings_from_predictions(pairs[..., 0], pairs[..., 1], groups)
