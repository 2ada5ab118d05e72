"""Symmetry functions by compiled loops on the CPU: the fast backend.

The loops (numba) run over the atoms of a call; how they are built is told in `loops` and
`triples`. They compute in double precision whatever the type of the input, for that is
what the sums need; float32 tensors are converted on the way in and out.

Machine code is cached beside the modules (or in the user's cache folder where that is read-only),
so that only the first use after an installation waits for the compiler, and says so.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numba import config
from numba.core import event
from torch import Tensor

from schnetpack_softadapt.descriptors.acsf.kernels.jacobian import blocks, jacobian
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import (
    INDEX_OF_NO_ATOM,
    UNKNOWN_ELEMENT,
    sort_pairs,
)
from schnetpack_softadapt.descriptors.acsf.kernels.networks import networks
from schnetpack_softadapt.descriptors.acsf.kernels.plan import compile_layout
from schnetpack_softadapt.descriptors.acsf.kernels.products import jvp, values, vjp
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.elements import check_elements

__all__ = ["Jacobian", "KernelBackend", "SortedPairs", "as_array", "call", "n_threads"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)

# fewer triples than this are done before a second thread has woken up
_TRIPLES_PER_TASK = 100_000


class Jacobian(NamedTuple):
    """Descriptors of a structure and their derivatives, numpy.

    Attributes:
        g: (N, D) values.
        dg_dstrain: (N, 6, D) strain derivative sum_p sym(dG/dr_p (x) r_p), Voigt order xx yy zz yz
            xz xy, off-diagonal entries not doubled.
        block_first: (N + 1,) first block of each atom, int64.
        block_atom: (n_blocks,) atom that a block differentiates by, int32: the atom itself and all
            in its pair list, ascending.
        dg_dr: (n_blocks, 3, D) dG_i/dR_j, summed over the periodic images of j, 1/Ang.
    """

    g: np.ndarray
    dg_dstrain: np.ndarray
    block_first: np.ndarray
    block_atom: np.ndarray
    dg_dr: np.ndarray


def n_threads() -> int:
    """Threads of a call: those of torch, and no more than the variable NUMBA_NUM_THREADS."""
    return max(1, min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))


_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process, threads, pool


def _executor(threads: int) -> ThreadPoolExecutor:
    # threads do not survive a fork, so a child process makes its own
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), threads):
        _pool = (os.getpid(), threads, ThreadPoolExecutor(threads, "symmetry-functions"))
    return _pool[2]


def _stamp_sources() -> None:
    """Let the cache of a kernel expire when any of the modules it is made of changes.

    numba looks at the file of the outermost function only and would go on using old code of the
    others.
    """
    sources = [os.stat(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    stamp = tuple((source.st_mtime, source.st_size) for source in sources)
    for kernel in _KERNELS:
        # private to numba, and not there under NUMBA_DISABLE_JIT
        with suppress(AttributeError):
            kernel._cache._cache_file._source_stamp = stamp


_KERNELS = (sort_pairs, blocks, values, vjp, jvp, jacobian, networks)
_stamp_sources()

# `id` of those that have been called: asking numba takes longer than a small call
_ready: set[int] = set()


class _Announcer(event.Listener):
    """Says once that the compiler runs; reading the cache is no compilation."""

    silent = False

    def on_start(self, event):
        if not _Announcer.silent:
            _Announcer.silent = True
            print(
                "compiling the symmetry functions for this machine: up to a minute, once per "
                "installation",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, event):
        pass


def call(kernel: Callable, *args):
    """Call a compiled function; says so when it has to be compiled first."""
    if id(kernel) in _ready:
        return kernel(*args)
    with event.install_listener("numba:compile", _Announcer()):
        result = kernel(*args)
    _ready.add(id(kernel))
    return result


class SortedPairs(NamedTuple):
    """Arguments that all kernels share; see `values`."""

    first: np.ndarray
    order: np.ndarray
    r_ij: np.ndarray
    idx_j: np.ndarray
    numbers: np.ndarray
    most: int


def as_array(x: Tensor | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The contiguous array of a tensor on the CPU or of an array; a copy only where it must be.

    Raises:
        ValueError: a tensor that is elsewhere.
    """
    if isinstance(x, Tensor):
        if not x.is_cpu:
            raise ValueError(
                f"the compiled symmetry functions run on the CPU, not on {x.device}; use the "
                "reference backend there"
            )
        x = (x.detach() if x.requires_grad else x).numpy()
    if x.dtype == dtype and x.flags.c_contiguous:
        return x
    return np.ascontiguousarray(x, dtype=dtype)


class KernelBackend:
    """Symmetry functions of a layout by compiled loops.

    Args:
        layout: the functions.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, layout: Layout):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.layout = layout
        self._plan = compile_layout(layout)

    def values(self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor) -> Tensor:
        """Symmetry functions of every atom.

        Args:
            r_ij: (P, 3) vectors from atom i to its neighbour j, Ang, float32 or float64.
            idx_i: (P,) central atoms, in any order; every pair is listed in both directions.
            idx_j: (P,) neighbours.
            numbers: (N,) atomic numbers.

        Returns:
            (N, D) values of the type of `r_ij`.

        Raises:
            UnknownElementError: an atom of an element that the layout does not know.
            ValueError: an index that is not that of an atom, tensors that are not on the CPU.
        """
        pairs = self.prepare(r_ij, idx_i, idx_j, numbers)
        return torch.from_numpy(self.values_of(pairs)).to(r_ij.dtype)

    def values_of(self, pairs: SortedPairs) -> np.ndarray:
        """What `values` gives, float64."""
        g = np.zeros((len(pairs.numbers), self.layout.n_columns))
        self._run(values, pairs, g)
        return g

    def vjp(
        self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, grad_g: Tensor
    ) -> Tensor:
        """Vector-Jacobian product sum_iD grad_g_iD dG_iD/dr_ij, (P, 3), for `grad_g` (N, D)."""
        pairs = self.prepare(r_ij, idx_i, idx_j, numbers)
        return torch.from_numpy(self.vjp_of(pairs, grad_g)).to(r_ij.dtype)

    def vjp_of(self, pairs: SortedPairs, grad_g: Tensor | np.ndarray) -> np.ndarray:
        """What `vjp` gives, float64."""
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._run(vjp, pairs, as_array(grad_g, _FLOAT), grad_r)
        return grad_r

    def jvp(
        self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, tangent: Tensor
    ) -> Tensor:
        """Jacobian-vector product sum_p dG/dr_p . tangent_p, (N, D), for `tangent` (P, 3)."""
        pairs = self.prepare(r_ij, idx_i, idx_j, numbers)
        g = np.zeros((len(pairs.numbers), self.layout.n_columns))
        self._run(jvp, pairs, as_array(tangent, _FLOAT), g)
        return torch.from_numpy(g).to(r_ij.dtype)

    def jacobian(
        self,
        r_ij: np.ndarray,
        idx_i: np.ndarray,
        idx_j: np.ndarray,
        numbers: np.ndarray,
        dtype: type = np.float64,
        threads: int | None = None,
    ) -> Jacobian:
        """Values with the derivatives that the descriptor store keeps, of one structure.

        Args:
            r_ij, idx_i, idx_j, numbers: as for `values`, numpy or torch.
            dtype: type of the results; sums are formed in double precision.
            threads: threads to use; 1 where several structures are done at a time, each in a
                thread of the caller (the loops run without Python's global lock).

        Raises:
            ValueError: as `values`.
        """
        pairs = self.prepare(r_ij, idx_i, idx_j, numbers)
        n_atoms, n_columns = len(pairs.numbers), self.layout.n_columns
        block_first, block_atom, pair_block = call(
            blocks, pairs.first, pairs.order, pairs.idx_j, n_atoms
        )
        g = np.empty((n_atoms, n_columns), dtype)
        strain = np.empty((n_atoms, 6, n_columns), dtype)
        dg_dr = np.empty((len(block_atom), 3, n_columns), dtype)
        arrays = block_first, block_atom, pair_block, g, strain, dg_dr
        self._run(jacobian, pairs, *arrays, threads=threads)
        return Jacobian(g, strain, block_first, block_atom, dg_dr)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> SortedPairs:
        """Sort the pairs of a structure once for several calls; arguments as for `values`."""
        r_ij, numbers = as_array(r_ij, _FLOAT), as_array(numbers, _INT)
        idx_i, idx_j = as_array(idx_i, _INT), as_array(idx_j, _INT)
        if r_ij.shape != (len(idx_i), 3) or len(idx_i) != len(idx_j):
            raise ValueError(
                f"r_ij {r_ij.shape} must have one row of three for each of idx_i {idx_i.shape} "
                f"and idx_j {idx_j.shape}"
            )
        plan = self._plan
        status, most, first, order = call(
            sort_pairs,
            idx_i,
            idx_j,
            numbers,
            plan.species,
            plan.channel,
            plan.sizes,
        )
        if status == UNKNOWN_ELEMENT:
            check_elements(numbers.tolist(), self.layout.elements)
        if status == INDEX_OF_NO_ATOM:
            raise ValueError(f"idx_i and idx_j must be from 0 to {len(numbers) - 1}")
        if most >= 65_000:
            raise ValueError(f"an atom has {most} neighbours; the kernels take up to 65,000")
        return SortedPairs(first, order, r_ij, idx_j, numbers, most)

    def _run(
        self, kernel: Callable, pairs: SortedPairs, *arrays, threads: int | None = None
    ) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms = len(pairs.numbers)
        if n_atoms == 0:
            return
        threads = threads or n_threads()
        if threads > 1:
            triples = np.concatenate([[0], np.cumsum(np.diff(pairs.first) ** 2)])
            # several tasks a thread, because other work may slow one of them down
            tasks = min(4 * threads, n_atoms, 1 + int(triples[-1]) // _TRIPLES_PER_TASK)
        else:
            tasks = 1
        if tasks == 1 or id(kernel) not in _ready:
            call(kernel, self._plan, pairs, 0, n_atoms, *arrays)
            return
        ends = np.searchsorted(triples, np.linspace(0, triples[-1], tasks + 1))
        ends[0], ends[-1] = 0, n_atoms
        pool = _executor(threads)
        futures = [
            pool.submit(kernel, self._plan, pairs, int(start), int(stop), *arrays)
            for start, stop in pairwise(ends)
            if stop > start
        ]
        for future in futures:
            future.result()
