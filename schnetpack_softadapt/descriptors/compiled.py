"""Calls of compiled functions (numba): arrays in, threads, and a word while the compiler runs.

Machine code is cached beside the modules (or in the user's cache folder where that is read-only),
so that only the first use after an installation waits for the compiler, and says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numba import config
from numba.core import event

if TYPE_CHECKING:
    from torch import Tensor

from schnetpack_softadapt.descriptors.elements import check_elements

__all__ = [
    "INDEX_OF_NO_ATOM",
    "UNKNOWN_ELEMENT",
    "VALID",
    "as_array",
    "call",
    "call_in_parts",
    "check_pairs",
    "is_ready",
    "n_threads",
    "pair_arrays",
    "stamp_sources",
    "thread_pool",
]

#: what a kernel that sorts pairs finds
VALID, INDEX_OF_NO_ATOM, UNKNOWN_ELEMENT = 0, 1, 2

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)

# `id` of those that have been called: asking numba takes longer than a small call
_ready: set[int] = set()

_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process, threads, pool


def n_threads() -> int:
    """Threads of a call: those of torch, and no more than the variable NUMBA_NUM_THREADS."""
    torch = sys.modules.get("torch")  # a simulation without it shall not wait for it
    most = config.NUMBA_NUM_THREADS
    return max(1, min(torch.get_num_threads(), most) if torch else most)


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay between calls.

    Python's, not numba's: those abort when a process forks or calls them from two threads at once,
    and data loaders do both.
    """
    global _pool
    # threads do not survive a fork, so a child process makes its own
    if _pool is None or _pool[:2] != (os.getpid(), threads):
        _pool = (os.getpid(), threads, ThreadPoolExecutor(threads, "descriptors"))
    return _pool[2]


def as_array(x: Tensor | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The contiguous array of a tensor on the CPU or of an array; a copy only where it must be.

    Raises:
        ValueError: a tensor that is elsewhere.
    """
    if not isinstance(x, np.ndarray):
        if not x.is_cpu:
            raise ValueError(
                f"the compiled functions run on the CPU, not on {x.device}; use the reference"
                " backend there"
            )
        x = (x.detach() if x.requires_grad else x).numpy()
    if x.dtype == dtype and x.flags.c_contiguous:
        return x
    return np.ascontiguousarray(x, dtype=dtype)


def pair_arrays(
    r_ij: Tensor | np.ndarray,
    idx_i: Tensor | np.ndarray,
    idx_j: Tensor | np.ndarray,
    numbers: Tensor | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A pair list as kernels take it: float64 (P, 3), int64 (P,), (P,), (N,).

    Raises:
        ValueError: lengths that differ, tensors that are not on the CPU.
    """
    r_ij, numbers = as_array(r_ij, _FLOAT), as_array(numbers, _INT)
    idx_i, idx_j = as_array(idx_i, _INT), as_array(idx_j, _INT)
    if r_ij.shape != (len(idx_i), 3) or len(idx_i) != len(idx_j):
        raise ValueError(
            f"r_ij {r_ij.shape} must have one row of three for each of idx_i {idx_i.shape} "
            f"and idx_j {idx_j.shape}"
        )
    return r_ij, idx_i, idx_j, numbers


def check_pairs(status: int, numbers: np.ndarray, elements: Iterable[int]) -> None:
    """Raise the error that a kernel has found in a pair list.

    Raises:
        UnknownElementError: an atom of an element that the descriptor does not know.
        ValueError: an index that is not that of an atom.
    """
    if status == UNKNOWN_ELEMENT:
        check_elements(numbers.tolist(), elements)
    if status == INDEX_OF_NO_ATOM:
        raise ValueError(f"idx_i and idx_j must be from 0 to {len(numbers) - 1}")


def stamp_sources(kernels: Iterable[Callable], sources: Iterable[str | Path]) -> None:
    """Let the cache of kernels expire when any of the files they are made of changes.

    numba looks at the file of the outermost function only and would go on using old code of the
    others.
    """
    stats = [os.stat(source) for source in sources]
    stamp = tuple((stat.st_mtime, stat.st_size) for stat in stats)
    for kernel in kernels:
        # private to numba, and not there under NUMBA_DISABLE_JIT
        with suppress(AttributeError):
            kernel._cache._cache_file._source_stamp = stamp


class _Announcer(event.Listener):
    """Says once that the compiler runs; reading the cache is no compilation."""

    silent = False

    def on_start(self, event):
        if not _Announcer.silent:
            _Announcer.silent = True
            print(
                "compiling the descriptors for this machine: up to a minute, once per installation",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, event):
        pass


def is_ready(kernel: Callable) -> bool:
    """Whether a kernel has been called before."""
    return id(kernel) in _ready


def call(kernel: Callable, *args):
    """Call a compiled function; says so when it has to be compiled first."""
    if id(kernel) in _ready:
        return kernel(*args)
    with event.install_listener("numba:compile", _Announcer()):
        result = kernel(*args)
    _ready.add(id(kernel))
    return result


def call_in_parts(
    kernel: Callable, plan, pairs, ends: Sequence[int], threads: int, *arrays
) -> None:
    """Call a kernel for ranges of atoms, from ends[k] to ends[k + 1], in threads.

    In one call where there is one range, or the kernel has not been compiled so far.
    """
    if len(ends) == 2 or not is_ready(kernel):
        call(kernel, plan, pairs, int(ends[0]), int(ends[-1]), *arrays)
        return
    pool = thread_pool(threads)
    futures = [
        pool.submit(kernel, plan, pairs, int(start), int(stop), *arrays)
        for start, stop in pairwise(ends)
        if stop > start
    ]
    for future in futures:
        future.result()
