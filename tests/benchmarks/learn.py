"""Labels that active learning needs, and those that random choice from the same exploration needs.

The teacher is EMT for copper. Both start from the same cold structures; the test set is of hot,
strained and expanded ones that EMT itself visits. A table, and a picture beside the others.

    python tests/benchmarks/learn.py FOLDER [ROUNDS [SEEDS]]
"""

import os
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

from schnetpack_softadapt.learn.loop import Learning, learn

RESULTS = Path(__file__).parent / "results"
ERROR = "forces_rmse_meV_per_Ang"
N = 6
CHOICES = {"uncertain": "active learning", "random": "random choice"}


def labelled(atoms):
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results, stress=atoms.get_stress())
    return atoms


def start(n: int = 6) -> list:
    """Copper with a lattice constant of 3.6 Ang and small displacements."""
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 1, 1))
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        found.append(labelled(atoms))
    return found


def test() -> list:
    """Molecular dynamics with the teacher at three temperatures in cells of three volumes."""
    found = []
    for temperature in (300, 900, 1500):
        for a in (3.5, 3.6, 3.75):
            atoms = bulk("Cu", "fcc", a=a, cubic=True).repeat((2, 1, 1))
            atoms.calc = EMT()
            rng = np.random.default_rng(temperature)
            dynamics = Langevin(
                atoms, 4 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng
            )
            for _ in range(6):
                dynamics.run(50)
                found.append(labelled(atoms))
    return found


def run(folder: Path, choose: str, seed: int, rounds: int, executor: Executor) -> pd.DataFrame:
    settings = Learning(
        train=[str(folder / "start.extxyz")],
        test=[str(folder / "test.extxyz")],
        # not from what was labelled: explorations of extremes lead to larger ones
        start=[str(folder / "start.extxyz")],
        calculator="ase.calculators.emt:EMT",
        executor=executor,
        members=2,
        # solved anew each time, each member on another 60 %
        model={
            "model": "linear",
            "cutoff": 5.0,
            "num_val": 0.4,
            "overrides": ["model.representation.parameters.n_functions=120"],
        },
        refine=False,
        explore=[
            {
                "method": "md",
                "temperature": [300, 1500],
                "steps": 250,
                "every": 5,
                "timestep": 4.0,
                "ensemble": "nvt",
                "stop": 1.0,
                "repeats": 2,
            },
            {"method": "strain", "strain": 0.05, "sigma": 0.1, "n": 60},
        ],
        uncertain=0.03,
        hopeless=1.0,
        n=N,
        choose=choose,
        rounds=rounds,
        agreed=-1.0,  # all rounds, for the figure
        seed=seed,
    )
    return learn(settings, folder / f"{choose}-{seed}", say=lambda text: None)


def needed(labels: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Labels at which the smallest error so far falls to the target, between rounds; NaN: never."""
    best = np.minimum.accumulate(errors)
    if best[-1] > target:
        return np.nan
    k = int(np.argmax(best <= target))
    if k == 0:
        return float(labels[0])
    part = np.log(best[k - 1] / target) / np.log(best[k - 1] / best[k])
    return float(labels[k - 1] + part * (labels[k] - labels[k - 1]))


def main(folder: Path, rounds: int = 6, seeds: int = 2) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "start.extxyz", start())
    write(folder / "test.extxyz", test())
    means = {}
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    executor = ThreadPoolExecutor(1)  # one process for all
    for choose, name in CHOICES.items():
        tables = [run(folder, choose, seed, rounds, executor) for seed in range(seeds)]
        labels = tables[0]["structures"].to_numpy() - tables[0]["structures"][0]
        errors = np.stack([table[ERROR] for table in tables])
        means[choose] = labels, np.exp(np.log(errors).mean(0))
        (line,) = axes.plot(*means[choose], "o-", label=name)
        axes.plot(labels, errors.T, ".", color=line.get_color(), alpha=0.4)
    axes.set(xlabel="labels asked for", ylabel="test RMSE of forces (meV/Ang)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "learn.png", dpi=120)
    print("| labels |", " | ".join(CHOICES.values()), "|\n|---|---|---|")
    for k, n in enumerate(means["random"][0]):
        print(f"| {n} |", " | ".join(f"{errors[k]:.3g}" for _, errors in means.values()), "|")
    target = means["random"][1].min()
    print(
        f"{target:.3g} meV/Ang: {needed(*means['uncertain'], target):.3g} labels of active"
        f" learning, {needed(*means['random'], target):.3g} of random choice"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
