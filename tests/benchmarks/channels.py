"""Functions for each pair of elements against weighted functions and channels, at equal CPU time.

    python tests/benchmarks/channels.py alloys FOLDER
    python tests/benchmarks/channels.py run FOLDER [--data NAME=DB ..] [--seconds S] [--seeds 1 ..]
    python tests/benchmarks/channels.py table FOLDER

Every case trains the recipe (`experiment=recommended_softadapt`, SPRING) for as many epochs as S
CPU seconds take on one thread, which the first epochs of the run tell (`Budget`). The same command
again continues. Without a database, NAME "mote2" is the shipped set. `alloys` writes
FOLDER/alloys.db: random fcc alloys of Al, Ni, Cu, Pd and Ag with the labels of ASE's EMT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from pytorch_lightning.callbacks import Callback

ERRORS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_Ang", "stress_rmse_MPa")
SIZES = ("columns", "stored", "parameters", "seconds", "epochs")
CASES = {
    "full": [],  # from five elements on, two channels
    "weighted by Z": ["model.representation.grid.weighted=true"],
    "2 channels": ["model.representation.grid.channels=2"],
    "2 channels, oblique": [],  # see `oblique`
    "3 channels": ["model.representation.grid.channels=3"],
}


def oblique(elements: list[str]) -> list[str]:
    """Two channels whose second tells all pairs of two elements apart: 1/9, -1/3, 1."""
    light, heavy = elements
    tables = f"[{{{light}:1.0,{heavy}:1.0}},{{{light}:-0.3333,{heavy}:1.0}}]"
    return [f"model.representation.grid.channels={tables}"]


ELEMENTS = {"mote2": ["Mo", "Te"], "wbe": ["Be", "W"]}


class Budget(Callback):
    """Sets epochs, and the scheduler's half period, to what a run can afford.

    Args:
        seconds: CPU seconds of training, validation included, from the second epoch on.
        path: JSON file, relative to the run directory, for what was found.
    """

    def __init__(self, seconds: float, path: str = "budget.json"):
        self.seconds, self.path = seconds, Path(path).resolve()
        self.cpu: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.cpu.append(time.process_time())
        if len(self.cpu) == 5:  # the first epoch has compiled
            epochs = max(8, round(self.seconds / float(np.median(np.diff(self.cpu)[1:]))))
            trainer.fit_loop.max_epochs = epochs
            for config in trainer.lr_scheduler_configs:
                config.scheduler.T_max = epochs

    def on_train_end(self, trainer, pl_module):
        descriptor = pl_module.model.representation.descriptor
        elements = descriptor.elements
        stored = [len(descriptor.columns(z, other)) for z in elements for other in elements]
        result = {
            "seconds": float(np.median(np.diff(self.cpu)[1:])),
            "epochs": len(self.cpu),
            "columns": descriptor.n_columns,
            "stored": float(np.mean(stored)),  # columns of a block of the store
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
        }
        self.path.write_text(json.dumps(result))


def alloys(folder: Path, n: int = 400) -> None:
    """Cells of 16 or 32 atoms with up to all five elements, strained by 2 % and rattled."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    from schnetpack_softadapt.data.database import write_database
    from schnetpack_softadapt.data.structures import Structure

    rng = np.random.default_rng(0)
    structures = []
    for k in range(n):
        atoms = bulk("Cu", "fcc", a=3.9, cubic=True) * ((2, 2, 1) if k % 2 else (2, 2, 2))
        shares = rng.dirichlet(np.full(5, 0.7))
        atoms.set_chemical_symbols(rng.choice(["Al", "Ni", "Cu", "Pd", "Ag"], len(atoms), p=shares))
        # nearer to the mean of the lattice constants of the elements than one cell for all
        size = 1.0 + 0.06 * (np.mean([a in (13, 46, 47) for a in atoms.numbers]) - 0.5)
        strain = np.eye(3) * size + rng.normal(0.0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.rattle(rng.uniform(0.02, 0.2), rng=rng)
        atoms.calc = EMT()
        atoms.get_stress()
        structures.append(Structure.from_atoms(atoms))
    write_database(folder / "alloys.db", structures, "random alloys, EMT", overwrite=True)


def train(folder: Path, name: str, database: str | None, case: str, seed: int, seconds: float):
    """One run."""
    source = "data=mote2_pbe" if database is None else f"data.datapath={database}"
    run_id = f"{name}_{case.replace(' ', '_').replace(',', '')}_{seed}"
    if (folder / run_id / "metrics.json").exists():
        return
    command = [
        str(Path(sys.executable).with_name("spktrain")),
        "experiment=recommended_softadapt",
        "task/optimizer=softadapt_spring",
        source,
        *(oblique(ELEMENTS[name]) if "oblique" in case else CASES[case]),
        f"seed={seed}",
        "trainer.max_epochs=1000",
        "globals.model_path=best_model",
        "trainer.accelerator=cpu",
        "print_config=false",
        f"run.path={folder}",
        f"run.id={run_id}",
        "+callbacks.budget._target_=channels.Budget",
        f"+callbacks.budget.seconds={seconds}",
    ]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    summary = {"data": name, "case": case, "seed": seed}
    summary |= json.loads((folder / run_id / "budget.json").read_text())
    summary["test"] = json.loads((folder / run_id / "metrics.json").read_text())["test"]
    (folder / run_id / "channels.json").write_text(json.dumps(summary))
    print(summary, flush=True)


def table(folder: Path) -> None:
    """Means over seeds."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for path in sorted(folder.glob("*/channels.json")):
        row = json.loads(path.read_text())
        rows.setdefault((row["data"], row["case"]), []).append(row)
    head = "| data | case | functions | stored of a pair | parameters | CPU s/epoch | epochs"
    print(f"{head} | seeds | meV/atom | meV/Ang | MPa |\n{'|---' * 11}|")
    for (data, case), found in rows.items():
        cells = []
        for key in ERRORS:
            values = [row["test"][key] for row in found if key in row["test"]]
            spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "-")
        columns = [statistics.mean(row[key] for row in found) for key in SIZES]
        head = f"| {data} | {case} | " + " | ".join(f"{x:.3g}" for x in columns)
        print(f"{head} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["alloys", "run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=["mote2"])
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what != "run":
        {"alloys": alloys, "table": table}[args.what](args.folder)
        return
    for seed in args.seeds:
        for case in args.cases or CASES:
            for entry in args.data:
                name, _, database = entry.partition("=")
                database = str(Path(database).resolve()) if database else None
                train(args.folder.resolve(), name, database, case, seed, args.seconds)


if __name__ == "__main__":
    main()
