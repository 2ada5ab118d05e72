"""Solvers of linear least squares with a triangular matrix, which stands for all rows of a fit.

With the factor [R q; 0 rho] of the rows [A b], |A z - b|^2 = |R z - q|^2 + rho^2 for every z: what
these solvers do to R and q (P rows) is what they would do to A and b (any number of rows). The
condition number is that of A, where normal equations have its square. All columns have length 1
(or 0), which is near the best of all diagonal scalings (A. van der Sluis, Numer. Math. 14, 14,
1969) and lets penalties mean the same for every descriptor and unit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.linalg import qr, solve_triangular, svd

__all__ = ["SOLVERS", "LeastSquaresProblem"]


class LeastSquaresProblem(NamedTuple):
    """|R z - q|^2 + rest, of n_rows rows."""

    r: np.ndarray  # (P, P) upper triangular; columns of length 1, or 0
    q: np.ndarray  # (P,)
    rest: float  # rho^2, what no z reaches
    n_rows: int  # rows that R, q and rest stand for


def _svd(p: LeastSquaresProblem, cut: float, **_) -> np.ndarray:
    """Minimum norm, without the singular values below `cut` times the largest."""
    u, s, vt = svd(p.r, full_matrices=False)
    used = s > cut * s[0]
    return vt[used].T @ ((p.q @ u[:, used]) / s[used])


def _ridge(p: LeastSquaresProblem, l2: float, **_) -> np.ndarray:
    """Least |R z - q|^2 + l2 |z|^2, by the factor of R on top of sqrt(l2) times the identity."""
    n = len(p.q)
    rows = np.zeros((2 * n, n + 1))
    rows[:n, :n], rows[:n, n] = p.r, p.q
    rows[n:, :n] = np.sqrt(max(l2, np.finfo(float).eps ** 2)) * np.eye(n)
    (factor,) = qr(rows, mode="r", overwrite_a=True, check_finite=False)
    return solve_triangular(factor[:n, :n], factor[:n, n], check_finite=False)


def _lasso(p: LeastSquaresProblem, l1: float, **_) -> np.ndarray:
    """Least |R z - q|^2 / 2 + l1 |R^T q|_max |z|_1; nothing is left of z at l1 = 1."""
    return _elastic_net(p, l1, 0.0)


def _elastic_net(p: LeastSquaresProblem, l1: float, l2: float, **_) -> np.ndarray:
    """The same plus l2 |z|^2 / 2 (H. Zou and T. Hastie, J. R. Stat. Soc. B 67, 301, 2005)."""
    z = np.zeros(len(p.q))
    threshold = l1 * float(np.abs(p.r.T @ p.q).max(initial=0.0))
    # rows of the transpose are columns of R, up to their diagonal element
    _descend(np.ascontiguousarray(p.r.T), p.q.copy(), threshold, l2, z)
    return z


@njit(cache=True, error_model="numpy")
def _descend(columns, rest, l1, l2, z):
    """Coordinate descent (J. Friedman et al., J. Stat. Softw. 33, 1, 2010); rest is q - R z."""
    for _ in range(100_000):
        largest = moved = 0.0
        for k in range(len(z)):
            column, square, along = columns[k], 0.0, 0.0
            for m in range(k + 1):
                square += column[m] * column[m]
                along += column[m] * rest[m]
            if square == 0.0:
                continue
            along += square * z[k]
            new = max(abs(along) - l1, 0.0) / (square + l2)
            new = new if along > 0.0 else -new
            step = new - z[k]
            if step != 0.0:
                for m in range(k + 1):
                    rest[m] -= step * column[m]
                z[k] = new
            largest, moved = max(largest, abs(new)), max(moved, abs(step))
        if moved <= 1e-7 * largest:
            break


def _ard(p: LeastSquaresProblem, **_) -> np.ndarray:
    """A variance for each coefficient, and one of the noise, by maximum evidence.

    D. J. C. MacKay, Neural Comput. 4, 415 (1992); M. E. Tipping, J. Mach. Learn. Res. 1, 211
    (2001), eqs. 12-18. Coefficients whose variance vanishes are left out.
    """
    n = len(p.q)
    total = float(p.q @ p.q) + p.rest
    beta = p.n_rows / max(total, np.finfo(float).tiny)
    inverse = np.full(n, beta * 1e-6)  # 1 / variance
    kept, z = np.flatnonzero(np.square(p.r).sum(0) > 0), np.zeros(n)
    for _step in range(300):
        before = z
        rows = np.vstack([np.sqrt(beta) * p.r[:, kept], np.diag(np.sqrt(inverse[kept]))])
        q, factor = qr(rows, mode="economic", overwrite_a=True, check_finite=False)
        z = np.zeros(n)
        z[kept] = solve_triangular(factor, np.sqrt(beta) * (p.q @ q[:n]), check_finite=False)
        # a_k Sigma_kk: the part of column k of the prior's rows in the factor
        known = 1.0 - np.square(q[n:]).sum(1)
        known = np.clip(known, 1e-12, 1.0)
        inverse[kept] = known / np.maximum(z[kept] ** 2, 1e-300)
        error = float(np.square(p.r @ z - p.q).sum()) + p.rest
        beta = max(p.n_rows - known.sum(), 1.0) / max(error, 1e-30 * total)
        # a column of length 1 with a prior this much narrower than what the data say of it
        kept = kept[inverse[kept] < 1e6 * beta]
        if not len(kept) or np.abs(z - before).max() <= 1e-4 * np.abs(z).max():
            break
    return np.where(np.isin(np.arange(n), kept), z, 0.0)


#: by the name of `LeastSquares(solver=...)`
SOLVERS: dict[str, Callable[..., np.ndarray]] = {
    "svd": _svd,
    "ridge": _ridge,
    "lasso": _lasso,
    "elastic_net": _elastic_net,
    "ard": _ard,
}
