"""Labels per second of `spk-softadapt label`: EMT for cells of four copper atoms, in turns.

python tests/benchmarks/label.py [N [TURNS]]
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from schnetpack_softadapt.data.generate.label import label

KINDS = ("a loop in Python", "local:1", "local:2", "dask, 2 workers")


def structures(n: int) -> dict[str, Atoms]:
    rng = np.random.default_rng(0)
    found = {str(k): bulk("Cu", a=rng.uniform(3.4, 3.9), cubic=True) for k in range(n)}
    for atoms in found.values():
        atoms.rattle(0.1, rng=rng)
    return found


def loop(given: dict[str, Atoms]) -> None:
    for atoms in given.values():
        atoms = atoms.copy()
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()


def label_all(given: dict[str, Atoms], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings: dict = {"executor": kind}
        if kind.startswith("dask"):
            about = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None}
            settings = {"dask": "distributed:LocalCluster", "workers": 2, "arguments": about}
            settings = {"executor": settings}
        calculator = "ase.calculators.emt:EMT"
        out = Path(folder, "out.extxyz")
        result = label(given, calculator, out, **settings, say=lambda text: None)
    assert len(result.labelled) == len(given)


def measured(work: Callable, *args) -> tuple[float, float, float]:
    """Seconds, CPU seconds of this process, and those of its children."""
    start, before = time.perf_counter(), os.times()
    work(*args)
    after = os.times()
    own = after.user + after.system - before.user - before.system
    theirs = after.children_user + after.children_system
    theirs -= before.children_user + before.children_system
    return time.perf_counter() - start, own, theirs


def main(n: int, turns: int) -> None:
    given = structures(n)
    for kind in KINDS * turns:
        work = (loop, given) if kind == KINDS[0] else (label_all, given, kind)
        seconds, own, theirs = measured(*work)
        print(
            f"{kind:<18}{n / seconds:7.0f} labels/s {seconds:7.1f} s, CPU s: parent {own:.1f},"
            f" workers {theirs:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    main(*given, *(10_000, 1)[len(given) :])
