"""How time and memory of evaluation grow with atoms, and those of training with structures.

    python tests/benchmarks/scaling.py [--max-atoms 1000000] [--max-structures 100000]
        [--threads 1] [--chunk 10000] [--wbe wbe.db [--fraction 0.1]] [--json FILE]

Every size is measured in a process of its own. Memory is the peak of what the process holds (RSS)
less that of the same work on a small size before it. Exponents are slopes of log time and log
memory over log size, from sizes of a thousand on; 1 is linear.

evaluation: energy, forces and stress by the ASE calculator, of rattled bcc Mo that moves a little
    before each step, 24 functions within 5.0 Ang, all at once and in chunks of atoms.
training: generated Mo structures of 4 and 8 atoms, labelled by a Morse potential, with the same
    functions. `write` is the database, `read` the data module's reading of it, `store` the building
    of the descriptor store, `epoch` a pass over the training structures in batches of ten with
    energy, force and stress losses and Adam: the plugin's data module and model in a plain loop of
    torch, for the start of `spktrain` takes longer than most of these. `peak` counts pages of the
    store that the machine keeps in memory as long as there is room; `own` are those that it cannot
    drop, after the last epoch.
W-Be: the recipe `recommended_softadapt` through `spktrain` on 100 to all structures of a database
    of two elements, with the store in float32, in half precision, and with descriptors computed for
    every batch; then on the structures twice, the second time rattled, within 8 GB of memory
    (RLIMIT_DATA, which counts what a process allocates and no mapped files). `before` is
    everything up to the first epoch, reading and building included; `own` is the largest memory
    that belongs to no file, at any time, less that before the data are read. The database:
    spk-softadapt import w.extxyz.xz wbe.extxyz.xz --stress-key none --out wbe.db

Times are CPU seconds for one thread, wall seconds for several.
"""

import argparse
import copy
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from environment import describe_machine, write_result

CUTOFF = 5.0
BATCH_SIZE = 10


# --- in a process of its own, which loads the rest


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def own_mb() -> float | None:
    """Resident memory now that belongs to no file; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024e-6 for x in lines if x.startswith("RssAnon")), None)


def clock(job: dict) -> Callable[[], float]:
    """CPU time of one thread, wall time of several."""
    return time.process_time if job["threads"] == 1 else time.perf_counter


def measure_evaluation(job: dict) -> dict:
    """Seconds per step and memory of the calculator; `n_atoms` is rounded to a cube of cells."""
    import torch
    from ase.build import bulk
    from evaluation import System, molybdenum_functions, our_model

    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

    layout = molybdenum_functions(CUTOFF, (0.01, 0.05), 0)
    now = clock(job)

    def steps(n_cells: int, n: int) -> tuple[int, float]:
        atoms = bulk("Mo", cubic=True).repeat(n_cells)
        atoms.rattle(0.05, seed=0)
        n_atoms = len(atoms)
        model = our_model(System("Mo", atoms[:1], layout), torch.float64)
        # a number no smaller than the structure: all at once
        atoms.calc = SoftAdaptCalculator(
            model,
            energy_unit="eV",
            position_unit="Ang",
            atoms_per_chunk=job["atoms_per_chunk"] or n_atoms,
        )
        rng, times = np.random.default_rng(0), []
        for _ in range(n + 1):  # the first builds the neighbour list
            atoms.positions += rng.uniform(-0.01, 0.01, (n_atoms, 3))
            start = now()
            atoms.get_forces()
            atoms.get_stress()
            times.append(now() - start)
        return n_atoms, float(np.median(times[1:]))

    steps(3, 2)
    before = peak_mb()
    n_cells = max(3, round((job["n_atoms"] / 2) ** (1 / 3)))
    n_atoms, seconds = steps(n_cells, 20 if n_cells < 12 else 3)
    memory = peak_mb() - before
    return {
        "n_atoms": n_atoms,
        "s_per_step": seconds,
        "us_per_atom": 1e6 * seconds / n_atoms,
        "peak_mb": memory,
        "bytes_per_atom": 1e6 * memory / n_atoms,
    }


def morse_structures(n: int) -> list:
    """Strained and rattled Mo cells of 4 and 8 atoms with energy, forces and stress."""
    from ase.build import bulk

    from schnetpack_softadapt.data.structures import Structure
    from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

    rng = np.random.default_rng(0)
    crystals = [bulk("Mo", cubic=True).repeat((2, 1 + k, 1)) for k in range(2)]
    depth, alpha, r_0 = 0.8, 1.4, 2.9  # eV, 1/Ang, Ang
    found = []
    for k in range(n):
        atoms = crystals[k % 2]
        deformation = np.eye(3) + rng.normal(0, 0.02, (3, 3))
        cell = atoms.cell.array @ deformation
        positions = atoms.positions @ deformation + rng.normal(0, 0.1, (len(atoms), 3))
        i, _, r_ij, _ = neighbor_pairs(positions, cell, np.ones(3, bool), CUTOFF)
        r = np.linalg.norm(r_ij, axis=1)
        x = np.exp(-alpha * (r - r_0))
        energy = 0.5 * depth * (x * x - 2 * x).sum()
        # half of dE/dr_ij: every pair is there in both directions
        gradient = (depth * alpha * (x - x * x) / r)[:, None] * r_ij
        forces = np.zeros_like(positions)
        np.add.at(forces, i, 2 * gradient)
        stress = gradient.T @ r_ij / abs(np.linalg.det(cell))
        found.append(
            Structure(atoms.numbers, positions, cell, np.ones(3, bool), energy, forces, stress)
        )
    return found


def write_data(job: dict) -> dict:
    """Write the database of a training."""
    from schnetpack_softadapt.data.database import write_database

    structures = morse_structures(job["n_structures"] + n_val(job))
    now = clock(job)
    start = now()
    write_database(job["database"], structures, provenance="Morse molybdenum", overwrite=True)
    return {"write_s": now() - start}


def n_val(job: dict) -> int:
    """Validation structures beside the training structures."""
    return max(1, job["n_structures"] // 10)


def measure_training(job: dict) -> dict:
    """Seconds of reading, building the store and an epoch; memory; size of the store."""
    import torch
    from evaluation import molybdenum_functions
    from schnetpack.transform import CastTo32

    from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
    from schnetpack_softadapt.data.neighborlist import NeighborList
    from schnetpack_softadapt.model import (
        ACSF,
        DescriptorPotential,
        ElementalAtomwise,
        ForcesAndStress,
    )

    now = clock(job)
    layout = molybdenum_functions(CUTOFF, (0.01, 0.05), 0)

    def train(database: str, n_structures: int, n_validation: int, n_epochs: int) -> dict:
        torch.manual_seed(0)
        times = [now()]
        data = SoftAdaptDataModule(
            database,
            BATCH_SIZE,
            n_structures,
            n_validation,
            None,
            split_file=None,
            splitting="random",
            store=True,
            store_jobs=job["threads"],
            transforms=[NeighborList(CUTOFF), CastTo32()],
        )
        data.setup()
        times.append(now())
        data.attach_descriptors(layout)
        times.append(now())
        model = DescriptorPotential(
            representation=ACSF(layout=layout),
            output_modules=[ElementalAtomwise(n_hidden=(16, 16)), ForcesAndStress(True, True)],
        )
        model.initialize_transforms(data)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        epochs = []
        for _ in range(n_epochs):
            start = now()
            for batch in data.train_dataloader():
                targets = {key: batch[key] for key in ("energy", "forces", "stress")}
                predicted = model(batch)
                loss = sum(((predicted[key] - x) ** 2).mean() for key, x in targets.items())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            epochs.append(now() - start)
        return {
            "read_s": times[1] - times[0],
            "store_s": times[2] - times[1],
            "s_per_epoch": min(epochs),
        }

    small = {**job, "n_structures": 20, "database": f"{job['database']}.small.db"}
    write_data(small)
    train(small["database"], 20, n_val(small), 1)
    before, own_before = peak_mb(), own_mb()
    row = train(job["database"], job["n_structures"], n_val(job), 3)
    own = own_mb()
    store = Path(f"{job['database']}.descriptors")
    return {
        **row,
        "us_per_structure": 1e6 * row["s_per_epoch"] / job["n_structures"],
        "peak_mb": peak_mb() - before,
        "own_mb": None if own is None else own - own_before,
        "store_mb": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / 1e6,
        "database_mb": Path(job["database"]).stat().st_size / 1e6,
    }


def write_part(job: dict) -> dict:
    """Write some structures of a database as another, or all of them twice."""
    from schnetpack_softadapt.data.database import write_database
    from schnetpack_softadapt.data.dataset import read_database

    rng = np.random.default_rng(0)
    structures = read_database(job["source"])
    n = job["n_structures"]
    chosen = [structures[k] for k in rng.permutation(len(structures))[:n]]
    for s in structures[: max(0, n - len(structures))]:
        moved = copy.copy(s)
        moved.positions = s.positions + rng.normal(0, 0.01, s.positions.shape)
        chosen.append(moved)
    write_database(job["database"], chosen, provenance="part of W-Be", overwrite=True)
    return {"n_structures": len(chosen), "n_atoms": sum(s.n_atoms for s in chosen)}


KINDS = {
    "evaluation": measure_evaluation,
    "write": write_data,
    "training": measure_training,
    "part": write_part,
}


# --- in the process that starts them: small, for a new process counts the memory of its parent


def measure(kind: str, **job) -> dict:
    """Result of one of `KINDS` in a fresh process."""
    env = dict(os.environ)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        env[variable] = str(job["threads"])
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps([kind, job])]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{kind} {job} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def sizes(largest: int) -> list[int]:
    """Powers of ten from 100."""
    return [10**k for k in range(2, 20) if 10**k <= largest]


def exponent(rows: list[dict], size: str, value: str) -> float | None:
    """Slope of log(value) over log(size) for sizes of about a thousand or more."""
    points = [(r[size], r[value]) for r in rows if r[size] >= 900 and (r[value] or 0) > 0]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def print_exponents(rows: list[dict], size: str, values: list[str]) -> dict:
    """Show the exponents of some columns, and return them."""
    found = {value: exponent(rows, size, value) for value in values}
    texts = [f"{v} {'-' if e is None else format(e, '.2f')}" for v, e in found.items()]
    print(f"  exponents: {', '.join(texts)}", flush=True)
    return found


def evaluation_rows(args) -> tuple[list[dict], dict]:
    """All sizes, at once and in chunks."""
    rows, exponents = [], {}
    for chunk in (None, args.chunk):
        name = f"chunks of {chunk}" if chunk else "all at once"
        print(f"\nevaluation, {name}\n{'atoms':>9s} {'s/step':>10s} {'us/atom':>8s}", end="")
        print(f" {'peak MB':>9s} {'B/atom':>8s}")
        of_chunk = []
        for n in sizes(args.max_atoms):
            row = measure("evaluation", n_atoms=n, atoms_per_chunk=chunk, threads=args.threads)
            of_chunk.append({"kind": "evaluation", "atoms_per_chunk": chunk, **row})
            print(
                f"{row['n_atoms']:9d} {row['s_per_step']:10.4f} {row['us_per_atom']:8.2f}"
                f" {row['peak_mb']:9.1f} {row['bytes_per_atom']:8.0f}",
                flush=True,
            )
        rows += of_chunk
        exponents[f"evaluation, {name}"] = print_exponents(
            of_chunk, "n_atoms", ["s_per_step", "peak_mb"]
        )
    return rows, exponents


def training_rows(args) -> tuple[list[dict], dict]:
    """All sizes, with their databases in a temporary folder."""
    columns = ["write_s", "read_s", "store_s", "s_per_epoch", "us_per_structure"]
    columns += ["peak_mb", "own_mb", "store_mb", "database_mb"]
    print("\ntraining\n structures" + "".join(f"{c:>17s}" for c in columns))
    rows = []
    for n in sizes(args.max_structures):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            job = {"n_structures": n, "threads": args.threads, "database": f"{folder}/data.db"}
            row = {"kind": "training", "n_structures": n, **measure("write", **job)}
            row |= measure("training", **job)
        rows.append(row)
        texts = ["-" if row[c] is None else f"{row[c]:.3f}" for c in columns]
        print(f"{n:11d}" + "".join(f"{x:>17s}" for x in texts), flush=True)
    del columns[4]
    return rows, {"training": print_exponents(rows, "n_structures", columns)}


SOURCES = {
    "float32": ["data.store=true", "data.store_dtype=float32"],
    "float16": ["data.store=true", "data.store_dtype=float16"],
    "computed": ["data.store_budget=0"],
}


def train_recipe(
    folder: str, source: str, fraction: float, threads: int, limit: int | None
) -> dict:
    """A run of the recipe on `folder`/data.db by `spktrain`; run and store are removed afterwards.

    Args:
        fraction: part of the batches of an epoch that are run.
        limit: bytes that the process may allocate.
    """
    command = [str(Path(sys.executable).with_name("spktrain")), "experiment=recommended_softadapt"]
    command += [*SOURCES[source], f"data.datapath={folder}/data.db", "data.splitting=random"]
    command += ["data.num_train=0.9", "data.num_val=0.1", "data.num_test=null"]
    command += ["task/optimizer=softadapt_spring", "trainer.max_epochs=2"]
    command += [f"++trainer.limit_{name}_batches={fraction}" for name in ("train", "val")]
    command += [f"run.id={source}", "trainer.accelerator=cpu", "print_config=false"]
    command += ["+callbacks.memory._target_=epoch_timer.MemoryWatch", "~callbacks.results"]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        env[variable] = str(threads)

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, preexec_fn=bound
    )
    path = Path(folder) / "runs" / source / "memory.json"
    if not path.exists():
        raise RuntimeError(f"{source} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found = json.loads(path.read_text())
    store = Path(folder) / "data.db.descriptors"
    size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / 1e6
    for finished in (store, path.parent):  # the next size is no continuation of this run
        shutil.rmtree(finished, ignore_errors=True)
    return {
        "source": source,
        "before_s": found["cpu_s_before"],
        "s_per_epoch": found["cpu_s_per_epoch"] / fraction,
        "fraction": fraction,
        "own_mb": found["own_mb"] - found["own_mb_before_data"],
        "own_mb_in_all": found["own_mb"],
        "store_mb": size,
    }


def wbe_rows(args) -> tuple[list[dict], dict]:
    """All sizes with every source, and twice the structures within 8 GB."""
    columns = ["before_s", "s_per_epoch", "fraction", "own_mb", "own_mb_in_all", "store_mb"]
    print("\nW-Be\n structures    atoms   source" + "".join(f"{c:>14s}" for c in columns))
    rows = []
    jobs = [(n, source, None) for n in args.wbe_sizes for source in args.sources]
    jobs += [(args.twice, source, 8 * 10**9) for source in args.twice_sources]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        size = None
        for n, source, limit in jobs:
            if n != size:
                size = n
                job = {"source": args.wbe, "n_structures": n, "database": f"{folder}/data.db"}
                written = measure("part", threads=args.threads, **job)
            fraction = args.fraction if n >= 10_000 else 1.0
            found = train_recipe(folder, source, fraction, args.threads, limit)
            rows.append({"kind": "W-Be", **written, **found, "limit_bytes": limit})
            texts = "".join(f"{found[c]:14.2f}" for c in columns)
            print(f"{n:11d} {written['n_atoms']:8d} {source:>8s}{texts}", flush=True)
    exponents = {}
    for source in args.sources:
        of_source = [row for row in rows if row["source"] == source]
        print(source, end="")
        exponents[f"W-Be, {source}"] = print_exponents(
            of_source, "n_atoms", ["before_s", "s_per_epoch", "own_mb", "store_mb"]
        )
    return rows, exponents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--max-atoms", type=int, default=10**6, help="0: no evaluation")
    parser.add_argument("--max-structures", type=int, default=10**5, help="0: no training")
    parser.add_argument("--chunk", type=int, default=10_000, help="atoms_per_chunk")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where data and stores go for a while; default temporary")
    parser.add_argument("--wbe", metavar="DB", help="database of W-Be; without it that part is not")
    sizes_of_wbe = [100, 1000, 10_000, 25_422]
    parser.add_argument("--wbe-sizes", type=int, nargs="*", default=sizes_of_wbe)
    parser.add_argument("--sources", nargs="*", choices=SOURCES, default=[*SOURCES])
    parser.add_argument("--twice", type=int, default=50_844, help="structures of the 8 GB run")
    parser.add_argument("--twice-sources", nargs="*", choices=SOURCES, default=["computed"])
    parser.add_argument("--fraction", type=float, default=0.1, help="of epochs from 10,000 on")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, job = json.loads(args.child)
        print(json.dumps(KINDS[kind](job)))
        return
    print(f"{describe_machine()}; {args.threads} thread(s)")
    rows, exponents = [], {}
    parts = {
        evaluation_rows: args.max_atoms,
        training_rows: args.max_structures,
        wbe_rows: args.wbe,
    }
    for part in (part for part, wanted in parts.items() if wanted):
        found, slopes = part(args)
        rows += found
        exponents |= slopes
    if args.json:
        write_result(args.json, rows, exponents=exponents, threads=args.threads)


if __name__ == "__main__":
    main()
