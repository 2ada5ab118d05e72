"""Linear and quadratic SNAP by least squares: test errors with several weights, CPU time.

    python tests/benchmarks/linear.py FOLDER [--elements Mo Si W]

Mo and Si are mlearn's, W the 201 structures of networks.py, every fifth of them for testing.
Databases and runs go to FOLDER; runs that are there are not made again. Each model is fitted once,
with the weights of maximum likelihood; the other rows are `refit` with the factors of that run.
"""

import argparse
import contextlib
import logging
import os
import time
import warnings
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy, torch and numba are loaded

import sys  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import small_w  # noqa: E402
from shared import shared_path  # noqa: E402

import schnetpack_softadapt as spksa  # noqa: E402
from schnetpack_softadapt.api import run_spktrain  # noqa: E402
from schnetpack_softadapt.cli.main import main as cli  # noqa: E402
from schnetpack_softadapt.training.refit import refit  # noqa: E402
from schnetpack_softadapt.training.text_table import text_table  # noqa: E402

CUTOFFS = {("Mo", "linear"): 5.0, ("Si", "linear"): 4.9}
CUTOFFS |= {("Mo", "quadratic"): 4.8, ("Si", "quadratic"): 4.9}
CUTOFFS |= {("W", "linear"): 5.0, ("W", "quadratic"): 5.0}  # Ang
#: energy, forces, stress; of standardised losses
WEIGHTS = {
    "equal": (1, 1, 1),
    "90 % energy": (0.9, 0.09, 0.01),
    "95 % energy": (0.95, 0.04, 0.01),
    "98 % energy": (0.98, 0.01, 0.01),
}
PUBLISHED = {  # Zuo et al., J. Phys. Chem. A 124, 731 (2020), evaluated with LAMMPS
    ("Mo", "linear"): (9.25, 376, 2104),
    ("Mo", "quadratic"): (4.04, 333, 993),
    ("Si", "linear"): (8.06, 205, 2026),
    ("Si", "quadratic"): (5.51, 177, 1929),
}
KEYS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_Ang", "stress_rmse_MPa")


def mlearn_files(element: str) -> list[Path]:
    """Training and test set."""
    return [shared_path(f"data/mlearn/{element}_{part}.extxyz") for part in ("training", "test")]


def w_files(folder: Path) -> list[Path]:
    """The same of W."""
    frames = small_w(200, 54)
    parts = {"training": [f for k, f in enumerate(frames) if k % 5], "test": frames[::5]}
    for part, chosen in parts.items():
        (folder / f"W_{part}.extxyz").write_text("".join(chosen))
    return [folder / f"W_{part}.extxyz" for part in parts]


def rows_of(folder: Path, element: str, kind: str) -> list[list[str]]:
    """Rows of the table for one model."""
    database = folder / f"{element}.db"
    training, test = w_files(folder) if element == "W" else mlearn_files(element)
    if not database.exists():
        cli(["import", str(training), "--val", str(test), "--out", str(database)])
    out = folder / f"{element}_{kind}"
    start = time.process_time()
    settings = {"data.datapath": database, "run.path": folder.absolute(), "run.id": out.name}
    settings |= {"globals.cutoff": CUTOFFS[element, kind], "print_config": "false"}
    words = [f"{key}={value}" for key, value in settings.items()]
    run = spksa.load(run_spktrain([f"experiment=snap_{kind}", *words]))
    seconds = time.process_time() - start
    model, label, rows = run, f"{element}, {kind}", []

    def add(weights: str, errors, seconds: float) -> None:
        numbers = "{:.2f} / {:.0f} / {:.0f}".format(*errors)
        rows.append([label, weights, numbers, f"{seconds:.2f}" if seconds else "-"])

    def errors() -> list[float]:
        found = spksa.predict(model, test).errors
        return [found[key] for key in KEYS]

    if (element, kind) in PUBLISHED:
        add("published", PUBLISHED[element, kind], 0.0)
    add("likelihood, first fit with descriptors", errors(), seconds)
    for name, weights in WEIGHTS.items():
        start = time.process_time()
        chosen = dict(zip(("energy", "forces", "stress"), weights, strict=True))
        refit(model, out / "checkpoints" / "last.ckpt", chosen)
        seconds = time.process_time() - start
        add(name, errors(), seconds)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--elements", nargs="+", default=["Mo", "Si", "W"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.folder.mkdir(parents=True, exist_ok=True)
    head, table = ["model", "weights", "test RMSE, meV/atom / meV/Ang / MPa", "CPU s"], []
    with contextlib.redirect_stdout(sys.stderr):
        for element in args.elements:
            for kind in ("linear", "quadratic"):
                table += rows_of(args.folder, element, kind)
                logging.disable(logging.WARNING)
    print(*text_table([head, *table]), sep="\n")


if __name__ == "__main__":
    main()
