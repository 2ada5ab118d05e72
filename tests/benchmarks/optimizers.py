"""Seconds of training until a validation error is reached, by optimizer, on mlearn Mo or Si.

    python tests/benchmarks/optimizers.py [--json FILE] [--seconds N] [--data FILE] [--only NAME]

Of the training file 10 % are for validation; the test file is not read. All optimizers train the
same network (16-16 on the default symmetry functions) from the same start, on standardised losses
with equal weights, with the schedule that suits them, through the task and the store. Seconds are
CPU seconds of one thread, without validation. `val_loss` is the sum of the standardised mean
squares of energy, forces and stress.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from ase import units
from environment import describe_machine, describe_versions
from schnetpack.transform import CastTo32
from torch.optim.lr_scheduler import CosineAnnealingLR

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.importing.convert import convert_files
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers import KalmanFilter
from schnetpack_softadapt.training.rules import Fixed
from schnetpack_softadapt.training.task import SoftAdaptTask

THRESHOLDS = (0.1, 0.05, 0.03, 0.025, 0.02, 0.015)
CUTOFF = 6.0
#: optimizer, its arguments, structures in a batch (all if None), epochs
CASES = {
    "Kalman, 20 % of the forces": (KalmanFilter, {"lr": 0.5}, 10, 25),
    "Kalman, all forces": (KalmanFilter, {"lr": 0.5, "fraction": 1.0}, 10, 12),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.0}, 5, 100),
    "LBFGS": (
        torch.optim.LBFGS,
        {"lr": 1.0, "max_iter": 10, "history_size": 50, "line_search_fn": "strong_wolfe"},
        None,
        30,
    ),
}


class Progress(pl.Callback):
    """CPU seconds of training and validation errors, epoch by epoch."""

    def __init__(self, limit: float):
        self.limit, self.seconds, self.rows = limit, 0.0, []
        self._start = 0.0

    def on_train_epoch_start(self, trainer, pl_module):
        self._start = time.process_time()

    def on_validation_start(self, trainer, pl_module):
        self.seconds += time.process_time() - self._start

    def on_validation_end(self, trainer, pl_module):
        self._start = time.process_time()

    def on_epoch_record(self, trainer, task, record):
        self.rows.append(
            {
                "seconds": round(self.seconds, 2),
                "val_loss": record["val_loss"],
                "energy_meV_atom": 1e3 * record["val_energy_rmse"],
                "force_meV_Ang": 1e3 * record["val_forces_rmse"],
                "stress_MPa": 1e3 * record["val_stress_rmse"] / units.GPa,
            }
        )
        if self.seconds > self.limit:
            trainer.should_stop = True


def measure(database: Path, folder: Path, case: tuple, limit: float) -> dict:
    """Train one case."""
    optimizer_cls, optimizer_args, batch_size, epochs = case
    pl.seed_everything(0, verbose=False)
    datamodule = SoftAdaptDataModule(
        str(database),
        batch_size=batch_size or 100_000,
        num_train=0.9,
        num_val=0.1,
        num_test=0,
        num_workers=0,
        splitting="random",
        split_file=str(folder / "split.npz"),
        transforms=[NeighborList(CUTOFF), CastTo32()],
        store=True,
    )
    model = DescriptorPotential(
        representation=ACSF(cutoff=CUTOFF),
        output_modules=[ElementalAtomwise(n_hidden=[16, 16]), ForcesAndStress(True, True)],
    )
    task = SoftAdaptTask(
        model,
        [EnergyLoss(), ForcesLoss(), StressLoss()],
        weighting=Fixed(),
        optimizer_cls=optimizer_cls,
        optimizer_args=optimizer_args,
        scheduler_cls=None if optimizer_cls is torch.optim.LBFGS else CosineAnnealingLR,
        scheduler_args={"T_max": epochs},
    )
    progress = Progress(limit)
    trainer = pl.Trainer(
        default_root_dir=str(folder),
        max_epochs=epochs,
        callbacks=[progress],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    trainer.fit(task, datamodule=datamodule)
    reached = {}
    for threshold in THRESHOLDS:
        times = [row["seconds"] for row in progress.rows if row["val_loss"] < threshold]
        reached[str(threshold)] = times[0] if times else None
    best = min(progress.rows, key=lambda row: row["val_loss"])
    return {"reached": reached, "best": best, "epochs": len(progress.rows), "rows": progress.rows}


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit for each optimizer")
    parser.add_argument("--only", help="measure cases whose name contains this")
    default = Path(os.environ.get("SOFTADAPT_SHARED", Path(__file__).parents[3] / "shared"))
    parser.add_argument("--data", type=Path, default=default / "data/mlearn/Mo_training.extxyz")
    args = parser.parse_args()
    if not args.data.exists():
        parser.error(f"{args.data} not found; give --data, or set SOFTADAPT_SHARED")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        database = folder / "data.db"
        convert_files([args.data.resolve()], database)
        head = " ".join(f"{'<' + str(t):>8}" for t in THRESHOLDS)
        print(f"{'CPU seconds to val_loss':28s} {head}   best: loss, meV/atom, meV/Ang, MPa")
        for case, settings in CASES.items():
            if args.only and args.only not in case:
                continue
            result = results[case] = measure(database, folder, settings, args.seconds)
            cells = ["-" if s is None else f"{s:.1f}" for s in result["reached"].values()]
            best = result["best"]
            print(
                f"{case:28s} {' '.join(f'{c:>8}' for c in cells)}   {best['val_loss']:.4f},"
                f" {best['energy_meV_atom']:.1f}, {best['force_meV_Ang']:.0f},"
                f" {best['stress_MPa']:.0f}",
                flush=True,
            )
    if args.json:
        summary = {
            "machine": describe_machine(),
            "versions": describe_versions(),
            "data": args.data.name,
            "cases": results,
        }
        args.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
