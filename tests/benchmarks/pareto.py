"""Error of forces against cost in simulations: all models of this package, SchNet, PaiNN and MACE.

    python tests/benchmarks/pareto.py run FOLDER --data Mo MoTe2 [--rows NAME ...]
    python tests/benchmarks/pareto.py mace FOLDER --data Mo --epochs 18 [--name NAME]
    python tests/benchmarks/pareto.py time FOLDER --data Mo MoTe2
    python tests/benchmarks/pareto.py table FOLDER [--picture PNG]

Mo is the benchmark of Y. Zuo et al., J. Phys. Chem. A 124, 731 (2020), with its test set; MoTe2 is
what comes with the package, 80, 10 and 10 %. `run` trains what is not there yet, one row after the
other, in FOLDER/DATA/NAME; the same command again goes on. `time` takes CPU time of energy, forces
and stress by the ASE calculators on one thread, 250 atoms of Mo and 108 of MoTe2 that move a little
at every step, all models in turns. `mace` is for an environment with mace-torch: it trains and
takes the time of the same.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy, torch and numba are loaded

import ase.io  # noqa: E402
import numpy as np  # noqa: E402
from ase.build import bulk, mx2  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RECIPE, PAINN = "experiment=recommended_softadapt", "experiment=painn_softadapt"
SNAP, ACE = "model/representation=snap", "model/representation=ace"
TWOJMAX = "model.representation.parameters.twojmax"
FUNCTIONS = "model.representation.parameters.n_functions"
#: name: overrides of spktrain
ROWS = {
    "ACSF 24": [RECIPE, "model.representation.select=24"],
    "ACSF": [RECIPE],
    "SNAP linear": ["experiment=snap_linear", f"{TWOJMAX}=8"],
    "SNAP quadratic": ["experiment=snap_quadratic", f"{TWOJMAX}=6"],
    "SNAP network": [RECIPE, SNAP, "globals.cutoff=5", f"{TWOJMAX}=6"],
    **{f"ACE linear {n}": ["experiment=ace_linear", f"{FUNCTIONS}={n}"] for n in (100, 300, 700)},
    **{
        f"ACE network {n}": [RECIPE, ACE, "globals.cutoff=5", f"{FUNCTIONS}={n}"]
        for n in (50, 100)
    },
    "ACE network 300": ["experiment=ace_softadapt"],
    **{
        f"ACE Finnis-Sinclair {n}": [
            RECIPE, ACE, "globals.cutoff=5", f"{FUNCTIONS}={n}", "globals.n_hidden=[2]",
            "globals.activation=finnis_sinclair",
        ]
        for n in (100, 300)
    },
    "SchNet": [PAINN, "model/representation=schnet", "trainer.max_epochs=150"],
    "PaiNN": [PAINN, "trainer.max_epochs=60"],
}  # fmt: skip
ERRORS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_Ang", "stress_rmse_MPa")
MPA = 160.21766208e3  # in eV/Ang^3
STEP = 0.01  # Ang: 300 K and 2 fs


def prepare(folder: Path, data: str) -> Path:
    """The database, its split, and the parts as extended XYZ."""
    from shared import shared_path

    from schnetpack_softadapt.cli.main import main as command
    from schnetpack_softadapt.data.mote2 import create_mote2_database
    from schnetpack_softadapt.data.splitting import random_split

    folder.mkdir(parents=True, exist_ok=True)
    database = folder / f"{data}.db"
    if database.with_suffix(".npz").exists():
        return database
    if data == "Mo":
        files = [str(shared_path("data") / f"mlearn/Mo_{x}.extxyz") for x in ("training", "test")]
        frames = [ase.io.read(path, ":") for path in files]
        n, n_test = len(frames[0]), len(frames[1])
        order = np.random.default_rng(0).permutation(n)
        parts = [order[n // 10 :], order[: n // 10], np.arange(n, n + n_test)]
        if not database.exists():
            command(["import", *files, "--out", str(database)])
    else:
        create_mote2_database(database)
        with ase.db.connect(database) as rows:
            n = rows.count()
        parts = random_split(n, [n - 2 * (n // 10), n // 10, n // 10], seed=0)
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        frames = list(structures(database, part))
        ase.io.write(folder / f"{data}_{name}.extxyz", frames)
    names = ("train_idx", "val_idx", "test_idx")
    np.savez(database.with_suffix(".npz"), **dict(zip(names, parts, strict=True)))
    return database


def structures(database: Path, indices):
    """Rows of a database with their labels under names that no reader takes for a calculator's."""
    import ase.db

    with ase.db.connect(database) as rows:
        for i in indices:
            row = rows.get(int(i) + 1)
            atoms = row.toatoms()
            atoms.calc = None
            atoms.info = {"REF_energy": float(np.ravel(row.data["energy"])[0])}
            if "stress" in row.data:
                atoms.info["REF_stress"] = np.reshape(row.data["stress"], 9)
            atoms.arrays["REF_forces"] = np.asarray(row.data["forces"])
            yield atoms


def run(args: argparse.Namespace) -> None:
    """Train the rows, each in a process of its own, whose CPU time counts."""
    for data in args.data:
        database = prepare(args.folder.absolute(), data)
        for name, overrides in ROWS.items():
            out = args.folder.absolute() / data / name.replace(" ", "_")
            if (out / "metrics.json").exists() or (args.rows and name not in args.rows):
                continue
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            arguments = [
                *overrides, f"data.datapath={database}", f"run.path={out.parent}",
                f"data.split_file={database.with_suffix('.npz')}", f"run.id={out.name}",
                "data.num_train=null", "data.num_val=null", "data.num_test=null",
                "logger=acsf_quiet", "print_config=false", *args.overrides,
            ]  # fmt: skip
            spktrain = Path(sys.executable).with_name("spktrain")
            subprocess.run([spktrain, *arguments], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            _add(out / "cost.json", train_cpu_s=after.ru_utime - before.ru_utime)
            print(data, name, json.loads((out / "metrics.json").read_text())["test"], flush=True)


def mace(args: argparse.Namespace) -> None:
    """Train MACE (32x0e + 32x1o), and take its errors and its time."""
    import torch
    from mace.calculators import MACECalculator

    torch.set_num_threads(1)
    for data in args.data:
        folder = args.folder.absolute()
        out = folder / data / args.name
        if (out / "metrics.json").exists():
            continue
        out.mkdir(parents=True, exist_ok=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        options = {
            "name": "mace", "train_file": folder / f"{data}_train.extxyz",
            "valid_file": folder / f"{data}_val.extxyz", "hidden_irreps": "32x0e + 32x1o",
            "r_max": 5.0, "batch_size": 2, "valid_batch_size": 10, "E0s": "average", "seed": 1,
            "energy_key": "REF_energy", "forces_key": "REF_forces", "stress_key": "REF_stress",
            "loss": "universal", "energy_weight": 1, "forces_weight": 10, "stress_weight": 10,
            "compute_stress": "True", "ema_decay": 0.99, "max_num_epochs": args.epochs,
            "scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.01 ** (1 / args.epochs),
            "default_dtype": "float32", "device": "cpu", "error_table": "PerAtomRMSEstressvirials",
        }  # fmt: skip
        flags = [f"--{key}={value}" for key, value in options.items()]
        program = Path(sys.executable).with_name("mace_run_train")
        command = [program, *flags, "--ema", "--restart_latest", "--save_cpu"]
        subprocess.run(command, cwd=out, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        calculator = MACECalculator(out / "mace.model", device="cpu", default_dtype="float32")
        found = []
        for atoms in ase.io.read(folder / f"{data}_test.extxyz", ":"):
            calculator.calculate(atoms)
            results = calculator.results
            energy = (results["energy"] - atoms.info["REF_energy"]) / len(atoms)
            forces = results["forces"] - atoms.arrays["REF_forces"]
            stress = np.reshape(atoms.info["REF_stress"], 9)[[0, 4, 8, 5, 2, 1]]
            found.append((energy, forces.ravel(), results["stress"] - stress))
        parts = [np.concatenate([np.atleast_1d(x[k]) for x in found]) for k in range(3)]
        rmse = [float(np.sqrt(np.mean(x**2))) for x in parts]
        values = dict(zip(ERRORS, np.multiply(rmse, (1e3, 1e3, MPA)), strict=True))
        (out / "metrics.json").write_text(json.dumps({"test": values}))
        (seconds,) = times(data, [calculator], 4)
        used = after.ru_utime - before.ru_utime
        _add(out / "cost.json", train_cpu_s=used, us_per_atom=seconds)
        print(data, values, f"{used:.0f} CPU s, {seconds:.0f} us/atom", flush=True)


def times(data: str, calculators: list, n: int) -> list[float]:
    """Medians of the CPU time of a step, us per atom, of calculators in turns."""
    if data == "Mo":
        atoms = bulk("Mo", cubic=True) * 5
    else:
        atoms = mx2("MoTe2", kind="2H", a=3.55, thickness=3.6, size=(6, 6, 1), vacuum=8.0)
        atoms.pbc = True
    atoms.rattle(0.05, seed=0)
    moves = np.random.default_rng(0).uniform(-STEP, STEP, (n + 2, *atoms.positions.shape))
    taken = np.zeros((n + 2, len(calculators)))
    for k, move in enumerate(moves):
        atoms.positions += move
        for c, calculator in enumerate(calculators):
            mine = atoms.copy()
            start = time.process_time()
            calculator.calculate(mine, ["energy", "forces", "stress"], ["positions"])
            taken[k, c] = time.process_time() - start
    return list(1e6 * np.median(taken[2:], axis=0) / len(atoms))


def take_times(args: argparse.Namespace) -> None:
    import torch

    from schnetpack_softadapt import SoftAdaptCalculator

    torch.set_num_threads(1)
    for data in args.data:
        folders = [x.parent for x in sorted(args.folder.glob(f"{data}/*/best_model"))]
        calculators = [SoftAdaptCalculator(folder) for folder in folders]
        for folder, us in zip(folders, times(data, calculators, args.steps), strict=True):
            _add(folder / "cost.json", us_per_atom=us)
            print(data, folder.name, f"{us:.1f} us/atom", flush=True)


def _add(path: Path, **values: float) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def table(args: argparse.Namespace) -> None:
    """Print the rows by cost, and draw them."""
    rows: dict[str, list[dict]] = {}
    for path in args.folder.glob("*/*/metrics.json"):
        cost = json.loads((path.parent / "cost.json").read_text())
        errors = [json.loads(path.read_text())["test"][key] for key in ERRORS]
        row = {"name": path.parent.name.replace("_", " "), "errors": errors, **cost}
        rows.setdefault(path.parts[-3], []).append(row)
    for data, mine in rows.items():
        mine.sort(key=lambda row: row["us_per_atom"])
        print(f"\n| {data} | us/atom | meV/atom | meV/Ang | MPa | training, CPU s |")
        print("|---|---|---|---|---|---|")
        for row in mine:
            values = "{:.3g} | {:.2f} | {:.0f} | {:.0f}".format(row["us_per_atom"], *row["errors"])
            print(f"| {row['name']} | {values} | {row.get('train_cpu_s', np.nan):.0f} |")
    if args.picture:
        from schnetpack_softadapt.files import write_file
        from schnetpack_softadapt.reports.style import png_bytes

        write_file(args.picture, png_bytes(_draw, rows))


MARKERS = {"network": "o", "linear": "s", "quadratic": "^", "Finnis-Sinclair": "D"}


def _draw(rows: dict[str, list[dict]]):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    families = ("ACE", "ACSF", "SNAP", "SchNet", "PaiNN", "MACE")
    figure = new_figure(10.0, 4.0)
    for axes, (data, mine) in zip(figure.subplots(1, len(rows)), sorted(rows.items()), strict=True):
        front, best = [], np.inf
        for row in mine:
            x, y = row["us_per_atom"], row["errors"][1]
            family, *words = row["name"].split()
            kind = next((k for k in MARKERS if k in row["name"]), "network")
            color = CYCLE[families.index(family)]
            axes.loglog(x, y, MARKERS[kind], color=color, markersize=6)
            number = words[-1] if words and words[-1].isdigit() else ""
            axes.annotate(number, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
            if y < best:
                best = y
                front.append((x, y))
        axes.loglog(*np.transpose(front), "-", color="grey", linewidth=1, zorder=0)
        axes.set_title(data)
        axes.set_xlabel("time per atom and step, us, one core")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    axes = figure.axes[0]
    axes.set_ylabel("RMSE of forces, meV/Ang")
    for color, family in zip(CYCLE, families, strict=False):
        axes.plot([], [], "o", color=color, label=family)
    for kind, marker in MARKERS.items():
        axes.plot([], [], marker, color="grey", label=kind)
    figure.legend(loc="outside right center", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    parents = argparse.ArgumentParser(add_help=False)
    parents.add_argument("folder", type=Path)
    parents.add_argument("--data", nargs="+", default=["Mo", "MoTe2"], choices=("Mo", "MoTe2"))
    command = commands.add_parser("run", parents=[parents])
    command.add_argument("--rows", nargs="*", choices=ROWS)
    command.add_argument("--overrides", nargs="*", default=[])
    command.set_defaults(run=run)
    command = commands.add_parser("mace", parents=[parents])
    command.add_argument("--epochs", type=int, required=True)
    command.add_argument("--name", default="MACE")
    command.set_defaults(run=mace)
    command = commands.add_parser("time", parents=[parents])
    command.add_argument("--steps", type=int, default=20)
    command.set_defaults(run=take_times)
    command = commands.add_parser("table")
    command.add_argument("folder", type=Path)
    command.add_argument("--picture", type=Path)
    command.set_defaults(run=table)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.run(args)


if __name__ == "__main__":
    main()
