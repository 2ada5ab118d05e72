"""Table of a study: mean and standard deviation over the seeds of each case, as Markdown.

    python tests/benchmarks/study_table.py runs/study_mote2/standardize_False [--subset test]

Reads `metrics.json` of the runs CASE_SEED in a folder, as the `study_*` experiments make them. Runs
that are not finished are named, not counted.
"""

import argparse
import json
import statistics
from pathlib import Path

COLUMNS = {
    "energy, meV/atom": "energy_rmse_meV_per_atom",
    "forces, meV/Ang": "forces_rmse_meV_per_Ang",
    "stress, MPa": "stress_rmse_MPa",
}
#: as in tables 1 and 2 of the paper, then what it does not have
ORDER = (
    "energy_only",
    "no_stress",
    "energy_90",
    "forces_90",
    "stress_90",
    "equal",
    "softadapt_beta_0.01",
    "softadapt_beta_0.1",
    "softadapt_beta_1",
    "softadapt_beta_2",
    "softadapt_from_energy",
    "softadapt_from_forces",
    "softadapt_from_stress",
    "linear_ramp",
    "two_stage",
    "relobralo",
    "uncertainty",
)


def shown(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.fmean(values)
    digits = 2 if mean < 10 else 1 if mean < 100 else 0
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} +- {statistics.stdev(values):.{digits}f}"


def balance(metrics: dict[str, float], best: dict[str, float]) -> float:
    """Geometric mean of the three errors over the smallest of each among the cases."""
    return statistics.geometric_mean(metrics[key] / best[key] for key in COLUMNS.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--subset", default="test", choices=("train", "val", "test"))
    args = parser.parse_args()
    for folder in (f for f in args.folders if f.is_dir()):
        cases: dict[str, list[dict[str, float]]] = {}
        missing, epochs, seconds = [], set(), []
        for run in sorted(p for p in folder.iterdir() if p.is_dir()):
            path = run / "metrics.json"
            content = json.loads(path.read_text()) if path.exists() else {}
            if args.subset not in content:
                missing.append(run.name)
                continue
            cases.setdefault(run.name.rpartition("_")[0], []).append(content[args.subset])
            epochs.add(content["epochs"])
            seconds.append(content["wall_s"])
        if not cases:
            print(f"{folder}: no finished runs")
            continue
        means = {
            case: {key: statistics.fmean(run[key] for run in runs) for key in COLUMNS.values()}
            for case, runs in cases.items()
        }
        best = {key: min(m[key] for m in means.values()) for key in COLUMNS.values()}
        print(
            f"\n{folder}: {args.subset} RMSE, mean +- standard deviation over seeds; "
            f"{min(epochs)} to {max(epochs)} epochs, {statistics.fmean(seconds):.0f} s a run"
        )
        print(f"\n| case | seeds | {' | '.join(COLUMNS)} | balance |")
        print("|---|---|" + "---|" * (len(COLUMNS) + 1))
        known = [case for case in ORDER if case in cases]
        for case in known + sorted(set(cases) - set(known)):
            values = [shown([run[key] for run in cases[case]]) for key in COLUMNS.values()]
            row = [case, str(len(cases[case])), *values, f"{balance(means[case], best):.2f}"]
            print(f"| {' | '.join(row)} |")
        print("\nbalance: geometric mean of the three errors over the smallest of their column")
        if missing:
            print(f"not finished: {', '.join(missing)}")


if __name__ == "__main__":
    main()
