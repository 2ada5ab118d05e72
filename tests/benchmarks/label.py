"""Labels per second of `spk-softadapt label`: 10,000 of EMT for cells of four copper atoms.

python tests/benchmarks/label.py [N]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from schnetpack_softadapt.data.generate.label import label


def main(n: int) -> None:
    rng = np.random.default_rng(0)
    structures = {}
    for k in range(n):
        structures[str(k)] = bulk("Cu", "fcc", a=rng.uniform(3.4, 3.9), cubic=True)
        structures[str(k)].rattle(0.1, rng=rng)
    start, cpu = time.perf_counter(), time.process_time()
    for atoms in list(structures.values())[: n // 10]:
        atoms = atoms.copy()
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
    loop = (time.perf_counter() - start) * 10
    print(f"{'a loop in Python':<20} {n / loop:8.0f} labels/s")
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        for name, executor in (
            ("local:1", "local:1"),
            ("local:2", "local:2"),
            ("dask, 2 workers", f"dask:{cluster.scheduler_address}"),
        ):
            start, cpu = time.perf_counter(), time.process_time()
            out = Path(folder, name.replace(":", "-") + ".extxyz")
            result = label(
                structures, "ase.calculators.emt:EMT", out, executor=executor, say=lambda text: None
            )
            seconds, own = time.perf_counter() - start, time.process_time() - cpu
            assert len(result.labelled) == n
            print(
                f"{name:<20} {n / seconds:8.0f} labels/s {seconds:7.1f} s, parent {own:.1f} CPU s"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
