"""Seconds per training epoch on mlearn Mo through `spktrain`, beside SchNetPack's SchNet and PaiNN.

    python tests/benchmarks/training.py [--json FILE] [--epochs N] [--threads N] [--data FILE]

The data are the 194 training structures (10087 atoms) and, for validation, the 23 test structures
of the mlearn set of molybdenum. Without them a stand-in of the same size is generated. All models
run with this plugin's task and in-memory data module, on energies, forces and stresses, batches of
10; an epoch is everything from the start of one to the start of the next, validation, checkpoints
and logging included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from environment import write_result

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.importing.convert import convert_files
from schnetpack_softadapt.data.structures import Structure

ACSF = ["experiment=acsf_softadapt", "globals.cutoff=5.2"]
STOCK = ["experiment=painn_softadapt"]
SMALL = ["globals.n_hidden=[16,16]", "model.representation.grid.n_radial=15"]
CASES = {
    "ACSF 39-16-16-1, store": [*ACSF, *SMALL],
    "ACSF default network, store": ACSF,
    "ACSF 39-16-16-1, kernels": [*ACSF, *SMALL, "data.store=false"],
    "SchNet 64, 3 interactions": [
        *STOCK,
        "model/representation=schnet",
        "model.representation.n_atom_basis=64",
        "model.representation.n_interactions=3",
    ],
    "PaiNN 64, 3 interactions": STOCK,
}


def stand_in(path: Path) -> None:
    """194 + 23 distorted fcc cells with the atom counts of the mlearn set, labelled by EMT."""
    rng = np.random.default_rng(0)
    structures = []
    for k in range(217):
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 3) if k % 10 else (3, 3, 3))
        atoms.rattle(0.15, seed=k)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), True)
        atoms = Atoms(atoms, calculator=EMT())
        structures.append(
            Structure(
                atoms.numbers,
                atoms.positions,
                atoms.cell.array,
                atoms.pbc,
                atoms.get_potential_energy(),
                atoms.get_forces(),
                atoms.get_stress(voigt=False),
            )
        )
    write_database(path, structures, provenance="EMT copper, stand-in for mlearn Mo")


def prepare(folder: Path, data: Path | None) -> tuple[Path, list[str], str]:
    """Database, overrides of the split, and what it holds."""
    database = folder / "data.db"
    if data is None:
        stand_in(database)
        sizes = ["data.num_train=194", "data.num_val=23", "data.num_test=null"]
        return database, [*sizes, "data.splitting=random"], "generated stand-in"
    convert_files([data / "Mo_training.extxyz"], database, val=[data / "Mo_test.extxyz"])
    return database, [], "mlearn Mo"


def run(name: str, overrides: list[str], folder: Path, args) -> dict:
    """One training; returns a row."""
    command = [
        str(Path(sys.executable).with_name("spktrain")),
        *overrides,
        f"run.id={name.replace(' ', '_').replace(',', '')}",
        f"trainer.max_epochs={args.epochs if 'ACSF' in name and 'store' in name else 4}",
        "trainer.accelerator=cpu",
        "print_config=false",
        "+callbacks.timer._target_=epoch_timer.EpochTimer",
        f"+callbacks.timer.skip={2 if 'store' in name else 1}",
    ]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        env[variable] = str(args.threads)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    path = folder / "runs" / name.replace(" ", "_").replace(",", "") / "epochs.json"
    if not path.exists():
        raise RuntimeError(f"{name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}")
    return {"model": name, **json.loads(path.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="cases whose name contains this")
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "mlearn"
    parser.add_argument("--data", type=Path, default=default if default.exists() else None)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        database, split, source = prepare(Path(folder), args.data)
        print(f"{source}, {args.threads} thread(s)\n")
        print(
            f"{'model':30s} {'CPU s/epoch':>12s} {'wall':>8s} {'parameters':>11s}  breakdown, CPU s"
        )
        for name, overrides in CASES.items():
            if args.only and args.only not in name:
                continue
            row = run(name, [*overrides, f"data.datapath={database}", *split], Path(folder), args)
            rows.append(row)
            parts = ", ".join(f"{k} {v:.3f}" for k, v in row["breakdown_cpu_s"].items())
            print(
                f"{name:30s} {row['cpu_s_per_epoch']:12.3f} {row['wall_s_per_epoch']:8.3f}"
                f" {row['parameters']:11d}  {parts}",
                flush=True,
            )
    if args.json:
        write_result(args.json, rows, data=source, threads=args.threads)


if __name__ == "__main__":
    main()
