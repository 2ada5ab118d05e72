"""Calls of compiled functions (numba): arrays in, threads, and a word while the compiler runs.

Machine code is cached beside the modules (or in the user's cache folder where that is read-only),
so that only the first use after an installation waits for the compiler, and says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numba import config
from numba.core import event

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_array", "call", "is_ready", "n_threads", "stamp_sources", "thread_pool"]

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
                "compiling the symmetry functions for this machine: up to a minute, once per "
                "installation",
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
