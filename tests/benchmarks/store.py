"""Descriptor store: how fast it is computed, how large it is, how fast training reads it.

The data are the training structures of mlearn Mo (194 structures, 10087 atoms), or generated ones
of the same size where that file is missing, described by 15 radial and 24 angular functions within
5.2 Ang; and the same atoms with two and three elements in turn, for the size of what is left out
as zeros. Reading is compared with a plain copy of the largest array in the same run. `epoch` is
what a training on energies, forces and stress in batches of ten spends on descriptors: forward,
vector-Jacobian product, and Jacobian-vector product of every structure, with torch's overhead;
both products read the store once, so that `read_over_copy` counts its bytes twice, in CPU time.

    python tests/benchmarks/store.py [--threads 1] [--json FILE] [--repeat 5]
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=5, help="of each reading; the best counts")
parser.add_argument("--folder", help="where to build the store; default a temporary folder")
parser.add_argument("--structures", type=int, default=194)
parser.add_argument("--data", default=os.environ.get("SOFTADAPT_SHARED", "../shared"))
parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = str(args.threads)  # before numpy, torch and numba are loaded

import numba  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.data import atomic_numbers  # noqa: E402
from ase.io import read  # noqa: E402

from schnetpack_softadapt import properties as keys  # noqa: E402
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction  # noqa: E402
from schnetpack_softadapt.descriptors.store.batch import stored_descriptors  # noqa: E402
from schnetpack_softadapt.descriptors.store.store import DescriptorStore  # noqa: E402

CUTOFF = 5.2


def layout(elements: list[str]) -> Layout:
    """15 radial functions for each neighbour element, 24 angular ones for each pair of them."""
    functions = []
    numbers = [atomic_numbers[e] for e in elements]
    for k, z in enumerate(numbers):
        functions += [
            SymmetryFunction("G2", (z,), CUTOFF, 2.0, r_s) for r_s in np.linspace(1.5, 5.0, 15)
        ]
        functions += [
            SymmetryFunction("G4", (z, other), CUTOFF, eta, zeta=zeta, lam=lam)
            for other in numbers[k:]
            for eta in (0.005, 0.02, 0.06)
            for zeta in (1, 2, 4, 16)
            for lam in (-1, 1)
        ]
    return Layout(dict.fromkeys(elements, functions))


def structures(elements: list[str]) -> tuple[str, list[SimpleNamespace]]:
    """Where the structures come from, and they, with the elements in turn."""
    file = Path(args.data) / "data/mlearn/Mo_training.extxyz"
    if file.exists():
        source, frames = "mlearn Mo", read(file, ":")
    else:
        source, frames = "generated", []
        for seed in range(194):
            atoms = bulk("Mo", cubic=True).repeat(3)[:52]
            atoms.rattle(0.15, seed=seed)
            frames.append(atoms)
    numbers = np.array([atomic_numbers[e] for e in elements])
    return source, [
        SimpleNamespace(
            numbers=numbers[np.arange(len(atoms)) % len(numbers)],
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
        )
        for atoms in frames[: args.structures]
    ]


def best(function: Callable) -> tuple[float, float]:
    """Smallest CPU and wall time of a call, s."""
    function()
    times = []
    for _ in range(args.repeat):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(t[0] for t in times), min(t[1] for t in times)


def batches(store: DescriptorStore) -> list[Callable]:
    """For each batch of ten structures in random order, a function that takes a training step."""
    order = np.random.default_rng(0).permutation(len(store))
    whole = store.tensors()
    values = torch.from_numpy(np.array(store.G))
    steps = []
    for k in range(0, len(store), 10):
        chosen = order[k : k + 10]
        parts = [np.arange(store.n_rows)[store.rows(s)] for s in chosen]
        rows = torch.from_numpy(np.concatenate(parts))
        sizes = torch.tensor([len(p) for p in parts])
        idx_m = torch.repeat_interleave(torch.arange(len(chosen)), sizes)
        positions = torch.randn(len(rows), 3)
        u = torch.randn(len(rows), store.G.shape[1], requires_grad=True)
        tangents = torch.randn(len(rows), 3), torch.randn(len(chosen), 3, 3)

        def step(rows=rows, idx_m=idx_m, positions=positions, u=u, tangents=tangents):
            batch = {keys.descriptors: values[rows], keys.store_rows: rows, **whole}
            leaves = positions.requires_grad_(), torch.zeros_like(tangents[1]).requires_grad_()
            g = stored_descriptors(*leaves, idx_m, batch)
            gradients = torch.autograd.grad(g, leaves, u, create_graph=True)
            torch.autograd.grad(gradients, u, tangents)

        steps.append(step)
    return steps


def measure(elements: list[str], folder: str) -> dict:
    source, data = structures(elements)
    description = layout(elements)
    # compiles what is to be measured
    DescriptorStore.open_or_build(folder, data[:1], description, progress=False)
    cpu, wall = time.process_time(), time.perf_counter()
    store = DescriptorStore.open_or_build(
        folder, data, description, n_jobs=args.threads, progress=False
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    n_atoms = store.n_rows
    full = store.dg_dr.nbytes // store.columns.shape[1] * store.G.shape[1]
    copy_cpu, copy_wall = best(partial(np.copyto, np.empty_like(store.dg_dr), store.dg_dr))
    steps = batches(store)
    epoch_cpu, epoch_wall = best(lambda: [step() for step in steps])
    size = store.dg_dr.nbytes / 1e9
    return {
        "system": f"{source}, {'-'.join(elements)}",
        "n_atoms": n_atoms,
        "n_columns": store.G.shape[1],
        "blocks_per_atom": store.n_blocks / n_atoms,
        "build_atoms_per_s": n_atoms / wall,
        "build_atoms_per_cpu_s": n_atoms / cpu,
        "mb": store.nbytes / 1e6,
        "bytes_per_atom": store.nbytes / n_atoms,
        "stored_fraction": store.dg_dr.nbytes / full,
        "copy_gb_per_s": size / copy_wall,
        "copy_gb_per_cpu_s": size / copy_cpu,
        "epoch_cpu_s": epoch_cpu,
        "epoch_wall_s": epoch_wall,
        "read_gb_per_s": 2 * size / epoch_wall,
        "read_gb_per_cpu_s": 2 * size / epoch_cpu,
        "read_over_copy": 2 * copy_cpu / epoch_cpu,
    }


def main() -> None:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = [measure(e, folder) for e in (["Mo"], ["Mo", "Te"], ["Mo", "Te", "S"])]
    for row in rows:
        print(f"\n{row['system']}")
        for name, value in row.items():
            if name != "system":
                print(f"  {name:24s} {value:12.4g}")
    if args.json:
        versions = {m.__name__: m.__version__ for m in (np, numba, torch)}
        machine = f"{platform.processor() or platform.machine()}, {args.threads} threads"
        result = {"machine": machine, "versions": versions, "rows": rows}
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
