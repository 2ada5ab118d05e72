"""Study of loss weights: rules against a grid of fixed weights, three seeds, on several cases.

    python tests/benchmarks/weights.py run FOLDER [--cases ...] [--rules ...] [--seeds 1 2 3]
    python tests/benchmarks/weights.py table FOLDER [--subset test]
    python tests/benchmarks/weights.py figure FOLDER PICTURE

`run` trains what is not there yet, in FOLDER/CASE/RULE_SEED, one process for each core asked for
with --jobs; the same command again continues. The public data sets come from the shared folder
(see tests/shared.py). `table` writes FOLDER/weights.csv, one row for each run, and prints one table
for each case: mean over seeds, and the balance, the geometric mean of a row's errors over the
smallest of each column among the fixed weights.
"""

import argparse
import contextlib
import csv
import json
import lzma
import multiprocessing
import os
import statistics
import sys
import traceback
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ERRORS = {
    "energy": ("energy_rmse_meV_per_atom", "meV/atom"),
    "forces": ("forces_rmse_meV_per_Ang", "meV/Ang"),
    "stress": ("stress_rmse_MPa", "MPa"),
}

_SMALL = ["globals.model_path=best_model", "callbacks.early_stopping.patience=100000"]
_KALMAN = ["experiment=recommended_softadapt", "task/optimizer=softadapt_kalman", *_SMALL]
_ACSF = ["experiment=acsf_softadapt", *_SMALL]
_STOCK = ["experiment=mote2_painn_softadapt", *_SMALL]
# SchNetPack's default size of networks
_MOLECULE = ["model.representation.n_atom_basis=128", "model.output_modules.3.calc_stress=false"]
# SchNetPack's own experiment with our task in one word, a cosine so that runs of few epochs settle,
# and the callback that writes metrics.json
_MD17 = [
    "experiment=md17",
    "task=softadapt_task",
    "task/scheduler=softadapt_cosine",
    "callbacks=[acsf_callbacks]",
    "data.molecule=ethanol",
    "data.num_train=800",
    "data.num_val=100",
    "data.num_test=100",
    "data.num_workers=0",
    "model/representation=painn",
    "model.representation.n_atom_basis=64",
    "callbacks.early_stopping.patience=100000",
]
#: name: (database, epochs, overrides); the network's size and epochs are chosen so that a run takes
#: a minute or two
CASES = {
    "ethanol_painn": ("ethanol_kcal", 24, _MD17),
    "ethanol_schnet": ("ethanol", 40, [*_STOCK, *_MOLECULE, "model/representation=schnet"]),
    "ethanol_acsf": ("ethanol", 150, [*_ACSF, "globals.cutoff=5"]),
    "Mo_acsf": ("Mo", 200, _ACSF),
    "Si_acsf": ("Si", 200, _ACSF),
    "Si_repaired_acsf": ("Si_repaired", 200, _ACSF),
    "MoTe2_acsf": ("mote2", 300, _ACSF),
    # the paper trains until nothing is gained
    "MoTe2_acsf_long": ("mote2", 1500, _ACSF),
    "MoTe2_painn": ("mote2", 40, _STOCK),
    "Mo_painn": ("Mo", 30, _STOCK),
    "Mo_kalman": ("Mo", 25, ["experiment=recommended_softadapt", *_KALMAN]),
    "MoTe2_kalman": ("mote2", 25, ["experiment=recommended_softadapt", *_KALMAN]),
    "Si_kalman": ("Si_repaired", 25, ["experiment=recommended_softadapt", *_KALMAN]),
}


def _rule(name: str, **arguments) -> list[str]:
    target = f"+task.weighting._target_=schnetpack_softadapt.training.rules.{name}"
    return ["~task/weighting", target, *(f"+task.weighting.{k}={v}" for k, v in arguments.items())]


def _fixed(energy: float, forces: float, stress: float) -> list[str]:
    weights = f"{{energy: {energy}, forces: {forces}, stress: {stress}}}"
    return _rule("Fixed", weights=weights)


RULES = {
    "equal": _fixed(1, 1, 1),
    "softadapt": _rule("SoftAdapt"),
    "likelihood": _rule("Likelihood", prior="labels"),
    # the experiment's 0.01 and 0.99 as prior; elsewhere the same as likelihood
    "likelihood_auto": _rule("Likelihood"),
    "likelihood_r1": _rule("Likelihood", prior="labels", end=1.0),
    "likelihood_r0": _rule("Likelihood", prior="labels", end=0.0),
    "hand_made": _fixed(1, 3300, 0),  # 0.01 : 0.99 of SchNetPack's md17 on ethanol, standardised
    "labels": _rule("Fixed", weights="labels"),
    "softadapt_labels": _rule("SoftAdapt", prior="labels", log="true", smooth=0.8),
    "linear_ramp": _rule(
        "LinearRamp",
        start="{energy: 0.02, forces: 1, stress: 0.02}",
        limit="{energy: 1, forces: 1, stress: 1}",
    ),
    "uncertainty": _rule("Uncertainty"),
    "relobralo": _rule("ReLoBRaLo"),
    # energy : forces : stress
    "fixed_10_1_1": _fixed(10, 1, 1),
    "fixed_1_3_1": _fixed(1, 3, 1),
    "fixed_1_10_1": _fixed(1, 10, 1),
    "fixed_1_10_10": _fixed(1, 10, 10),
    "fixed_1_30_3": _fixed(1, 30, 3),
    "fixed_1_100_1": _fixed(1, 100, 1),
    "fixed_1_100_10": _fixed(1, 100, 10),
    "fixed_1_1000_100": _fixed(1, 1000, 100),
}


def is_fixed(rule: str) -> bool:
    """Whether a rule is one of the grid of fixed weights."""
    return rule in ("equal", "hand_made") or rule.startswith("fixed_")


def databases(folder: Path) -> dict[str, Path]:
    """The databases of the cases, made on first use, with their split beside them."""
    from shared import shared_path

    from schnetpack_softadapt.cli.main import main as command

    folder.mkdir(parents=True, exist_ok=True)
    out = {name: folder / f"{name}.db" for name in ("ethanol", "Mo", "Si", "Si_repaired", "mote2")}
    if not out["ethanol"].exists():
        packed = shared_path("data") / "ethanol" / "ethanol.extxyz.xz"
        with lzma.open(packed, "rt") as file:
            lines = file.readlines()
        for subset, (a, b) in {"train": (0, 800), "val": (800, 900), "test": (900, 1000)}.items():
            (folder / f"{subset}.extxyz").write_text("".join(lines[11 * a : 11 * b]))
        files = [str(folder / f"{s}.extxyz") for s in ("train", "val", "test")]
        command(["import", files[0], "--val", files[1], "--test", files[2],
                 "--out", str(out["ethanol"])])  # fmt: skip
    out["ethanol_kcal"] = folder / "ethanol_kcal.db"
    if not out["ethanol_kcal"].exists():
        write_in_kcal([folder / f"{s}.extxyz" for s in ("train", "val", "test")], out)
    for name in ("Mo", "Si", "Si_repaired"):
        if not out[name].exists():
            files = []
            for subset in ("training", "test"):
                source = shared_path("data") / "mlearn" / f"{name[:2]}_{subset}.extxyz"
                files.append(folder / f"{name}_{subset}.extxyz")
                frames = read(source, ":")
                for atoms in frames if name == "Si_repaired" else ():
                    if atoms.info["group"] == "Elastic":  # yz and xz are exchanged in the labels
                        stress = atoms.calc.results["stress"]
                        atoms.calc.results["stress"] = stress[[0, 1, 2, 4, 3, 5]]
                write(files[-1], frames)
            command(["import", str(files[0]), "--test", str(files[1]), "--out", str(out[name])])
    return out


def write_in_kcal(files: list[Path], out: dict[str, Path]) -> None:
    """The ethanol set as SchNetPack's md17 experiment has it: kcal/mol, its split in a file."""
    from schnetpack.data import ASEAtomsData

    path, factor = out["ethanol_kcal"], units.mol / units.kcal
    subsets = [read(file, ":") for file in files]
    properties = {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}
    data = ASEAtomsData.create(str(path), distance_unit="Ang", property_unit_dict=properties)
    frames = [atoms for subset in subsets for atoms in subset]
    labels = [
        {
            "energy": np.array([atoms.get_potential_energy() * factor]),
            "forces": atoms.get_forces() * factor,
        }
        for atoms in frames
    ]
    data.add_systems(property_list=labels, atoms_list=frames)
    data.update_metadata(molecule="ethanol")
    train, val, test = np.split(np.arange(len(frames)), np.cumsum([len(s) for s in subsets])[:-1])
    np.savez(path.with_suffix(".npz"), train_idx=train, val_idx=val, test_idx=test)


def train(folder: Path, database: Path, epochs: int, overrides: list[str], seed: int) -> None:
    """One run by `spktrain`'s own function, in this process."""
    from schnetpack import cli

    data = ["data=mote2_pbe"] if database.stem == "mote2" else ["data=acsf_data"]
    if database.stem == "ethanol_kcal":
        data = [f"+data.split_file={database.with_suffix('.npz')}"]
    elif "experiment=recommended_softadapt" not in overrides:
        data += ["data.num_train=0.8", "data.num_val=0.1", "data.num_test=0.1"]
    if database.stem == "mote2":
        data += [f"run.data_dir={database.parent}"]
    elif database.stem == "ethanol":
        data += ["data.num_train=null", "data.num_val=null", "data.num_test=null"]
    if database.stem != "mote2":
        data += [f"data.datapath={database}"]
    if "ethanol_kcal" not in str(database) and ("painn" in str(folder) or "schnet" in str(folder)):
        data += ["data.store=false"]
    sys.argv = ["spktrain", *overrides, *data, f"++seed={seed}", f"trainer.max_epochs={epochs}",
                "logger=acsf_quiet", "print_config=false", f"run.path={folder.parent}",
                f"run.id={folder.name}", "+callbacks.progress.refresh_s=100000"]  # fmt: skip
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        here = os.getcwd()
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    cli.train()
                except BaseException:
                    traceback.print_exc(file=log)
                    raise
        finally:
            os.chdir(here)


def worker(folder: Path, queue, databases_: dict[str, Path]) -> None:
    """Take runs from a queue until it is empty."""
    import torch

    torch.set_num_threads(1)
    while (item := queue.get()) is not None:
        case, rule, seed = item
        database, epochs, overrides = CASES[case]
        run = folder / case / f"{rule}_{seed}"
        if (run / "metrics.json").exists():
            continue
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            train(run, databases_[database], epochs, [*overrides, *RULES[rule]], seed)
            test = json.loads((run / "metrics.json").read_text())["test"]
            shown = " / ".join(f"{test[key]:.4g}" for key, _ in ERRORS.values() if key in test)
        except BaseException as error:
            shown = f"failed: {error!r}"
        print(f"{case} {rule} {seed}: {shown}", flush=True)


def run(args) -> None:
    """Train all that is missing."""
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    data = databases(args.folder.resolve() / "data")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for seed in args.seeds:
        for case in args.cases:
            for rule in args.rules:
                queue.put((case, rule, seed))
    for _ in range(args.jobs):
        queue.put(None)
    folder = args.folder.resolve()
    jobs = [context.Process(target=worker, args=(folder, queue, data)) for _ in range(args.jobs)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


def collect(folder: Path) -> list[dict]:
    """Errors of all finished runs."""
    rows = []
    for path in sorted(folder.glob("*/*/metrics.json")):
        content = json.loads(path.read_text())
        rule, _, seed = path.parent.name.rpartition("_")
        row = {"case": path.parent.parent.name, "rule": rule, "seed": int(seed)}
        row |= {"epochs": content["epochs"], "seconds": content["wall_s"]}
        for subset in ("train", "val", "test"):
            for name, (key, _) in ERRORS.items():
                if key in content[subset]:
                    row[f"{subset}_{name}"] = round(content[subset][key], 4)
        rows.append(row)
    return rows


def table(args) -> None:
    """Print the table of each case and write the raw rows."""
    rows = collect(args.folder)
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (args.folder / "weights.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    for case in CASES:
        here = [row for row in rows if row["case"] == case]
        columns = [name for name in ERRORS if any(f"{args.subset}_{name}" in r for r in here)]
        if not here:
            continue
        means, spread, count = {}, {}, {}
        for rule in RULES:
            mine = [row for row in here if row["rule"] == rule]
            if mine:
                values = [[row[f"{args.subset}_{c}"] for row in mine] for c in columns]
                means[rule] = [statistics.fmean(v) for v in values]
                spread[rule] = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
                count[rule] = len(mine)
        grid = [m for rule, m in means.items() if is_fixed(rule)] or list(means.values())
        best = [min(column) for column in zip(*grid, strict=True)]
        print(f"\n{case}, {args.subset} RMSE, {CASES[case][1]} epochs")
        titles = " | ".join(f"{c}, {ERRORS[c][1]}" for c in columns)
        print(f"\n| weights | seeds | {titles} | balance |")
        print("|---|---|" + "---|" * (len(columns) + 1))
        balance = {
            rule: statistics.geometric_mean(m / b for m, b in zip(mean, best, strict=True))
            for rule, mean in means.items()
        }
        for rule, mean in means.items():
            cells = [f"{m:.3g} +- {s:.2g}" for m, s in zip(mean, spread[rule], strict=True)]
            print(f"| {rule} | {count[rule]} | {' | '.join(cells)} | {balance[rule]:.2f} |")
        fixed = {rule: value for rule, value in balance.items() if is_fixed(rule)}
        if fixed and "likelihood" in balance:
            name = min(fixed, key=fixed.get)
            ratio = balance["likelihood"] / fixed[name]
            print(f"\nBest fixed weights: {name}; likelihood is at {ratio:.2f} of their balance.")


def figure(args) -> None:
    """Test errors of a few rules on one case, each seed a point, the mean a bar."""
    import matplotlib.pyplot as plt

    rows = [row for row in collect(args.folder) if row["case"] == args.case]
    columns = [c for c in ERRORS if any(f"test_{c}" in row for row in rows)]
    picture, axes = plt.subplots(1, len(columns), figsize=(3.2 * len(columns), 2.4))
    for axis, column in zip(axes, columns, strict=True):
        for k, rule in enumerate(args.rules):
            values = [row[f"test_{column}"] for row in rows if row["rule"] == rule]
            axis.barh(k, statistics.fmean(values), color="0.8")
            axis.plot(values, [k] * len(values), "k.", markersize=4)
        axis.set_yticks(range(len(args.rules)), args.rules if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.set_xlabel(f"{column}, {ERRORS[column][1]}")
    picture.tight_layout()
    picture.savefig(args.out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("folder", type=Path)
    runs.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    runs.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    runs.add_argument("--jobs", type=int, default=1)
    runs.set_defaults(function=run)
    tables = commands.add_parser("table")
    tables.add_argument("folder", type=Path)
    tables.add_argument("--subset", default="test", choices=("train", "val", "test"))
    tables.set_defaults(function=table)
    figures = commands.add_parser("figure")
    figures.add_argument("folder", type=Path)
    figures.add_argument("out", type=Path)
    figures.add_argument("--case", default="ethanol_painn")
    shown = ["equal", "softadapt", "likelihood", "likelihood_auto", "hand_made"]
    figures.add_argument("--rules", nargs="+", default=shown)
    figures.set_defaults(function=figure)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
