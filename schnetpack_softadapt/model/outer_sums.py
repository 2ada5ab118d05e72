"""Sums of outer products over terms that are sorted by the row of a matrix to which they add.

R rows, C components of each, T terms, `first` (R + 1,) with the terms of row r from first[r] to
first[r + 1] - 1. Rows may have very different numbers of terms: a padded table would be mostly
padding, so on the CPU a compiled loop adds each term where it belongs.
"""

import torch
from numba import njit
from torch import Tensor

from schnetpack_softadapt.descriptors.acsf.kernels import loops
from schnetpack_softadapt.descriptors.acsf.kernels.loops import LOOP
from schnetpack_softadapt.descriptors.compiled import call, stamp_sources, thread_pool

__all__ = ["add_outer_sums", "add_product_sums"]

# multiplications that one more thread must have to do to be worth waking up (about 0.1 ms)
_PER_THREAD = 1_000_000


def add_outer_sums(first: Tensor, left: Tensor, right: Tensor, out: Tensor, column: int) -> None:
    """out[r, c, column:][i n_out + o] += sum_t left[t, c, i] right[t, c, o], t from row r.

    Args:
        first: (R + 1,) int64.
        left: (T, C, n_in), or (T, 1, n_in) where it is the same for all components.
        right: (T, C, n_out) or (T, 1, n_out).
        out: (R, C, P) contiguous, added to.
        column: first of the n_in n_out columns.
    """
    if not out.is_cpu:
        _add_padded(first, left, right, out, column)
        return
    arrays = [x.contiguous().numpy() for x in (first, left, right)]
    arrays += [out.numpy(), column]
    n_rows, work = len(out), left.numel() * right.shape[2]
    n = max(1, min(torch.get_num_threads(), work // _PER_THREAD, n_rows))
    if n == 1:
        call(_add_rows, 0, n_rows, *arrays)
        return
    pool = thread_pool(torch.get_num_threads())
    ranges = [(k * n_rows // n, (k + 1) * n_rows // n) for k in range(n)]
    for job in [pool.submit(call, _add_rows, *r, *arrays) for r in ranges]:
        job.result()


def add_product_sums(first: Tensor, x: Tensor, v: Tensor, out: Tensor, column: int) -> None:
    """Add sums of the derivatives of x_k x_l (k <= l, squares halved) in directions v.

    out[r, c, column:][k l] += sum_t x[t, k] v[t, c, l] + x[t, l] v[t, c, k], of k = l the half.

    Args:
        first: (R + 1,) int64.
        x: (T, D).
        v: (T, C, D).
        out: (R, C, P) contiguous, added to.
        column: first of the D (D + 1) / 2 columns.
    """
    n = x.shape[1]
    sums = out.new_zeros(*out.shape[:2], n * n)
    add_outer_sums(first, x[:, None], v, sums, 0)
    sums = sums.view(*out.shape[:2], n, n)
    k, l = torch.triu_indices(n, n, device=out.device)
    half = torch.where(k == l, 0.5, 1.0).to(out)
    out[..., column : column + len(k)] += half * (sums + sums.transpose(2, 3))[..., k, l]


@njit(**LOOP)
def _add_one(a, x, out, n):
    for o in range(n):
        out[o] += a * x[o]


@njit(**LOOP)
def _add_four(a, x, b, y, c, z, d, w, out, n):
    for o in range(n):
        out[o] += (a * x[o] + b * y[o]) + (c * z[o] + d * w[o])


@njit(cache=True, nogil=True, error_model="numpy")
def _add_rows(begin, end, first, left, right, out, column):
    """Rows begin to end; four terms at once, for the sums are read and written each time."""
    n_in, n_out, n_components = left.shape[2], right.shape[2], out.shape[1]
    one_left, one_right = left.shape[1] == 1, right.shape[1] == 1
    for r in range(begin, end):
        last = first[r + 1]
        whole = last - (last - first[r]) % 4
        for c in range(n_components):
            c_left, c_right = 0 if one_left else c, 0 if one_right else c
            for i in range(n_in):
                row = out[r, c, column + i * n_out :]
                for t in range(first[r], whole, 4):
                    _add_four(
                        left[t, c_left, i],
                        right[t, c_right],
                        left[t + 1, c_left, i],
                        right[t + 1, c_right],
                        left[t + 2, c_left, i],
                        right[t + 2, c_right],
                        left[t + 3, c_left, i],
                        right[t + 3, c_right],
                        row,
                        n_out,
                    )
                for t in range(whole, last):
                    _add_one(left[t, c_left, i], right[t, c_right], row, n_out)


stamp_sources([_add_rows], [loops.__file__, __file__])


def _add_padded(first: Tensor, left: Tensor, right: Tensor, out: Tensor, column: int) -> None:
    """By products of padded tables, for GPUs."""
    count = first.diff()
    n_rows, width = len(count), int(count.max()) if len(left) else 0
    rows = torch.repeat_interleave(torch.arange(n_rows, device=out.device), count)
    slots = torch.arange(len(left), device=out.device) - first[rows]
    left, right = (
        x.new_zeros(n_rows, width, *x.shape[1:]).index_put((rows, slots), x) for x in (left, right)
    )
    sums = torch.einsum("rkci,rkco->rcio", *_expanded(left, right))
    end = column + sums.shape[2] * sums.shape[3]
    out[:, :, column:end] += sums.flatten(2)


def _expanded(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    n = max(left.shape[2], right.shape[2])
    return left.expand(-1, -1, n, -1), right.expand(-1, -1, n, -1)
