"""Which columns of a descriptor to keep: the fewest that say what all of them say.

Columns are judged by their values for a sample of training atoms. Symmetry functions of a grid are
nearly linear combinations of each other, so that a fraction of them spans the same space.

X: values (n, D) of the atoms of one element, each column centred and divided by its spread, so that
neither units nor scale of a column count. All that is needed of it is C = X^T X / n (D, D), the
correlations. Choosing goes by columns of C instead of those of X: for two columns a and b,
orthogonalising X to column c is C_ab -> C_ab - C_ac C_cb / C_cc.
"""

from collections.abc import Iterable

import numpy as np
import scipy.linalg
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.scaling import ABSOLUTE_SPREAD, RELATIVE_SPREAD
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["correlations", "cur_columns", "sample_values", "select_columns", "variance_left"]

#: atoms of an element that columns are judged by; more change nothing
SAMPLE_ATOMS = 5000

# Share of its variance that is left of a column when it counts as a combination of others; rounding
# leaves 1e-15, and values that were float32 once 1e-13.
_DEPENDENT = 1e-10
# Scores that are equal but for rounding: the first column is taken, on every machine.
_EQUAL = 1e-6


def sample_values(
    descriptor: Descriptor,
    structures: Iterable[tuple[np.ndarray, ...]],
    n_atoms: int = SAMPLE_ATOMS,
) -> dict[int, np.ndarray]:
    """Values (n, `n_functions`) of at most `n_atoms` atoms of each element, drawn from all alike.

    Args:
        structures: numbers (N,), positions (N, 3) in Ang, cell (3, 3) and pbc (3,) of each.
        n_atoms: size of a sample. The same atoms are drawn each time.

    Raises:
        ValueError: an element without atoms, or values that are not finite.
    """
    structures = list(structures)
    numbers = np.concatenate([np.asarray(s[0]) for s in structures])
    chosen = np.zeros(len(numbers), dtype=bool)
    for z in descriptor.elements:
        atoms = np.flatnonzero(numbers == z)
        # numpy keeps the raw stream of a generator from version to version
        chosen[atoms[np.argsort(np.random.PCG64(z).random_raw(len(atoms)))[:n_atoms]]] = True
    engine = descriptor.engine("cpu")
    found: dict[int, list[np.ndarray]] = {z: [] for z in descriptor.elements}
    first = 0
    for index, (z, positions, cell, pbc) in enumerate(structures):
        mine = chosen[first : first + len(z)]
        first += len(z)
        if not mine.any():
            continue
        idx_i, idx_j, r_ij, _ = neighbor_pairs(positions, cell, pbc, descriptor.cutoff)
        near = mine[idx_i]
        pairs = engine.prepare(r_ij[near], idx_i[near], idx_j[near], np.asarray(z, np.int64))
        values = np.asarray(engine.values(pairs))
        if not np.isfinite(values[mine]).all():
            raise ValueError(
                f"training structure {index}: descriptors are not finite; look for coinciding atoms"
            )
        for element in found:
            rows = mine & (np.asarray(z) == element)
            found[element].append(values[rows, : descriptor.n_functions[element]])
    missing = [chemical_symbols[z] for z, parts in found.items() if not sum(map(len, parts))]
    if missing:
        raise ValueError(
            f"no training atom of {', '.join(missing)}: its {descriptor.name} cannot be chosen by"
            " values; leave the element out or add structures with it"
        )
    return {z: np.concatenate(parts) for z, parts in found.items()}


def correlations(values: np.ndarray) -> np.ndarray:
    """C (D, D) of values (n, D); zero for columns that `Scaling` switches off as constant."""
    size = np.abs(values).max(axis=0)
    varies = np.ptp(values, axis=0) > np.maximum(RELATIVE_SPREAD * size, ABSOLUTE_SPREAD)
    centred = np.where(varies, values - values.mean(axis=0), 0.0)
    scaled = centred / np.where(varies, np.sqrt((centred**2).mean(axis=0)), 1.0)
    return scaled.T @ scaled / len(values)


def cur_columns(correlation: np.ndarray, n: int) -> list[int]:
    """Columns that span the most of X, in the order of choice.

    The deterministic CUR of G. Imbalzano, A. Anelli, D. Giofre, S. Klees, J. Behler, M. Ceriotti,
    J. Chem. Phys. 148, 241730 (2018): of the leverage scores pi_c = sum_(j <= k) (v_c^(j))^2, with
    v^(j) the right singular vectors of X and k = 1 here, the largest is taken, the other columns
    are made orthogonal to that one, and so on.

    Args:
        correlation: C (D, D).
        n: how many at most; fewer are given where those left are combinations of them.
    """
    left = correlation.copy()
    start = np.diag(correlation).copy()
    chosen: list[int] = []
    for _ in range(min(n, len(left))):
        open_ = np.diag(left) > _DEPENDENT * start
        open_[chosen] = False
        if not open_.any():
            break
        vector = scipy.linalg.eigh(left, subset_by_index=[len(left) - 1] * 2)[1][:, 0]
        score = np.where(open_, vector**2, 0.0)
        if not score.any():
            break
        column = int(np.argmax(score >= (1 - _EQUAL) * score.max()))
        chosen.append(column)
        left = left - np.outer(left[:, column], left[column]) / left[column, column]
        left[column] = left[:, column] = 0.0
    return chosen


def select_columns(
    values: np.ndarray,
    n: int | None = None,
    min_range: float = 0.0,
    max_correlation: float = 1.0,
) -> list[int]:
    """Columns to keep, ascending.

    Args:
        values: (n_atoms, D) without scaling.
        n: how many are chosen by `cur_columns` among those that pass the thresholds; None for all.
        min_range: least difference of the largest and smallest value of a column. It is what
            n2p2's `nnp-prune range` compares, and 0.01 is usual there.
        max_correlation: a column whose correlation with one before it is larger, in size, is
            dropped.

    Raises:
        ValueError: no column passes.
    """
    within = np.ptp(values, axis=0) >= min_range
    correlation = correlations(values)
    passed: list[int] = []
    for column in np.flatnonzero(within & (np.diag(correlation) > 0)).tolist():
        if max_correlation >= 1 or (np.abs(correlation[column, passed]) <= max_correlation).all():
            passed.append(column)
    if not passed:
        raise ValueError(f"no column has a range of {min_range:g} over {len(values)} atoms")
    if n is None:
        return passed
    return sorted(passed[k] for k in cur_columns(correlation[np.ix_(passed, passed)], n))


def variance_left(values: np.ndarray, columns: list[int]) -> float:
    """Share of the variance of all columns that linear functions of the chosen do not give."""
    correlation = correlations(values)
    rows = correlation[columns]
    fit = np.linalg.lstsq(rows[:, columns], rows, rcond=1e-13)[0]
    left = np.diag(correlation) - (rows * fit).sum(axis=0)
    return float(left.clip(min=0.0).sum() / np.trace(correlation))
