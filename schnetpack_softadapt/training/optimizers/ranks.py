"""Rows of a Jacobian that are spread over the ranks of torch's process group, if there is one.

N ranks, M_k rows on rank k and M = sum_k M_k in the order of ranks, P columns.
"""

from itertools import accumulate, pairwise

import torch
from torch import Tensor, distributed

__all__ = ["columns_of_all_ranks", "own_rows", "rows_of_all_ranks", "sum_over_ranks"]


def _ranks() -> tuple[int, int]:
    """This rank and the number of ranks."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor of equal shape on all ranks, in its place."""
    if _ranks()[1] > 1:
        distributed.all_reduce(values)
    return values


def _row_bounds(rows: Tensor) -> list[int]:
    """First row of each rank, and M."""
    rank, n_ranks = _ranks()
    counts = torch.zeros(n_ranks, dtype=torch.long, device=rows.device)
    counts[rank] = len(rows)
    return [0, *accumulate(sum_over_ranks(counts).tolist())]


def own_rows(rows: Tensor) -> tuple[slice, int]:
    """Where the rows (M_k, ...) of this rank are among those of all ranks, and M."""
    bounds, rank = _row_bounds(rows), _ranks()[0]
    return slice(bounds[rank], bounds[rank + 1]), bounds[-1]


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Rows (M_k, ...) of each rank as (M, ...) on all of them."""
    if _ranks()[1] == 1:
        return rows
    mine, n_rows = own_rows(rows)
    out = rows.new_zeros(n_rows, *rows.shape[1:])
    out[mine] = rows
    return sum_over_ranks(out)


def columns_of_all_ranks(rows: Tensor) -> tuple[Tensor, slice]:
    """Rows (M_k, P) of each rank as about P / N columns of all rows on each.

    Returns:
        Columns (M, P_k) that this rank holds, and where they are among all P.
    """
    rank, n_ranks = _ranks()
    n_columns = rows.shape[1]
    if n_ranks == 1:
        return rows, slice(0, n_columns)
    bounds = [n_columns * k // n_ranks for k in range(n_ranks + 1)]
    mine = slice(bounds[rank], bounds[rank + 1])
    width = mine.stop - mine.start
    sent = [rows[:, first:end].reshape(-1) for first, end in pairwise(bounds)]
    received = [(end - first) * width for first, end in pairwise(_row_bounds(rows))]
    out = rows.new_empty(sum(received))
    distributed.all_to_all_single(out, torch.cat(sent), received, [len(part) for part in sent])
    return out.view(-1, width), mine
