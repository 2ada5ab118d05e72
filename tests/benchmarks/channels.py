"""Functions for each pair of elements against weighted functions and channels, at equal CPU time.

    python tests/benchmarks/channels.py run FOLDER [--data NAME=DB ..] [--seconds S] [--seeds 1 ..]
    python tests/benchmarks/channels.py table FOLDER

Every case trains the shipped recipe (`experiment=mlearn_softadapt`, SPRING) for as many epochs as S
CPU seconds take on one thread; seconds of an epoch come from a short run before, which also builds
the store. The same command again continues. Without a database, NAME "mote2" is the shipped set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ERRORS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_Ang", "stress_rmse_MPa")
CASES = {
    "full": [],
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


def train(folder: Path, name: str, database: str | None, case: str, more: list[str]) -> Path:
    """One run in folder/name/...; returns its folder."""
    source = "data=mote2_pbe" if database is None else f"data.datapath={database}"
    overrides = oblique(ELEMENTS[name]) if "oblique" in case else CASES[case]
    command = [
        str(Path(sys.executable).with_name("spktrain")),
        "experiment=mlearn_softadapt",
        "task/optimizer=softadapt_spring",
        source,
        "globals.model_path=best_model",
        "trainer.accelerator=cpu",
        "print_config=false",
        f"run.path={folder}",
        *overrides,
        *more,
    ]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    run_id = next(m.split("=")[1] for m in more if m.startswith("run.id="))
    return folder / run_id


def measure(folder: Path, args) -> None:
    """Train all cases that are not there yet."""
    timer = ["+callbacks.timer._target_=epoch_timer.EpochTimer", "+callbacks.timer.skip=1"]
    for seed in args.seeds:
        for entry in args.data:
            name, _, database = entry.partition("=")
            database = str(Path(database).resolve()) if database else None
            for case in args.cases or CASES:
                label = f"{name}_{case.replace(' ', '_').replace(',', '')}"
                speed = folder / f"{label}_speed" / "epochs.json"
                if not speed.exists():
                    more = [f"run.id={label}_speed", "trainer.max_epochs=4", *timer]
                    train(folder, name, database, case, more)
                seconds = json.loads(speed.read_text())["cpu_s_per_epoch"]
                epochs = max(2, round(args.seconds / seconds))
                more = [f"run.id={label}_{seed}", f"trainer.max_epochs={epochs}", f"seed={seed}"]
                run = folder / f"{label}_{seed}"
                if not (run / "metrics.json").exists():
                    run = train(folder, name, database, case, more)
                test = json.loads((run / "metrics.json").read_text())["test"]
                summary = {"data": name, "case": case, "seed": seed, "epochs": epochs}
                summary |= {"seconds": seconds, "test": {k: test[k] for k in ERRORS if k in test}}
                (run / "channels.json").write_text(json.dumps(summary))
                print(summary, flush=True)


def table(folder: Path) -> None:
    """Means over seeds."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for path in sorted(folder.glob("*/channels.json")):
        row = json.loads(path.read_text())
        rows.setdefault((row["data"], row["case"]), []).append(row)
    print("| data | case | CPU s/epoch | epochs | seeds | meV/atom | meV/Ang | MPa |")
    print("|---|---|---|---|---|---|---|---|")
    for (data, case), found in rows.items():
        cells = []
        for key in ERRORS:
            values = [row["test"][key] for row in found if key in row["test"]]
            spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "-")
        head = f"| {data} | {case} | {found[0]['seconds']:.2f} | {found[0]['epochs']}"
        print(f"{head} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=["mote2"])
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    measure(args.folder.resolve(), args) if args.what == "run" else table(args.folder)


if __name__ == "__main__":
    main()
