"""Labels that active learning needs, and those that random choice from the same exploration needs.

The teacher is EMT for copper, the model is linear. Random choice gets three times as many labels a
round; all else is the same: walks, their stop, rounds. Two cases:

kinds: half of the walks are of crystals, one each of vacancy, interstitial, three surfaces,
    stacking fault, island on a surface and strained crystal; the first labels are of the crystal.
    The test set has as many structures of each kind, from dynamics of the teacher; the error is the
    mean over the kinds of the RMSE of forces.
one: hot and strained crystals alone.

    python tests/benchmarks/learn.py run FOLDER kinds 0 1 2 3 4     # seeds
    python tests/benchmarks/learn.py table FOLDER kinds [--picture learn.png]
    python tests/benchmarks/learn.py networks FOLDER kinds 0 1      # trained on these labels
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from scipy.stats import ttest_1samp

from schnetpack_softadapt import api
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.learn.loop import Learning, learn

A = 3.6
N = {"uncertain": 4, "random": 12}
ROUNDS = 5
NAMES = {"uncertain": "active learning", "random": "random choice"}


def crystal() -> Atoms:
    return bulk("Cu", "fcc", a=A, cubic=True).repeat(2)


def vacancy() -> Atoms:
    return crystal()[1:]


def interstitial() -> Atoms:
    atoms = crystal() + Atoms("Cu", [(A / 2, A / 2, A / 2)])
    atoms.rattle(0.02, seed=0)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(steps=60)
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)


def slab(build, size) -> Atoms:
    atoms = build("Cu", size, a=A, vacuum=6.0)
    atoms.pbc = True
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)


def fault() -> Atoms:
    """Close-packed layers ABCAB|ABC."""
    d = A / np.sqrt(2)
    cell = np.array([[2 * d, 0, 0], [d, d * np.sqrt(3), 0], [0, 0, 8 * A / np.sqrt(3)]])
    layer = np.array([[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]])
    positions = [
        np.c_[layer + "ABC".index(name) / 6, np.full(4, k / 8)] @ cell
        for k, name in enumerate("ABCABABC")
    ]
    return Atoms("Cu32", np.concatenate(positions), cell=cell, pbc=True)


def island() -> Atoms:
    """Four atoms on (100)."""
    atoms, d = slab(fcc100, (3, 3, 3)), A / np.sqrt(2)
    first = np.add(atoms.positions[atoms.positions[:, 2].argmax()], (d / 2, d / 2, A / 2))
    atoms += Atoms("Cu4", [np.add(first, (x, y, 0)) for x in (0, d) for y in (0, d)])
    atoms.wrap()
    return atoms


def strained(seed: int = 0, largest: float = 0.06) -> Atoms:
    atoms, epsilon = crystal(), np.random.default_rng(seed).uniform(-largest, largest, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (epsilon + epsilon.T) / 2), scale_atoms=True)
    return atoms


KINDS = {
    "crystal": crystal,
    "strained": strained,
    "vacancy": vacancy,
    "interstitial": interstitial,
    "(111)": lambda: slab(fcc111, (2, 2, 5)),
    "(100)": lambda: slab(fcc100, (2, 2, 5)),
    "(110)": lambda: slab(fcc110, (2, 2, 7)),
    "fault": fault,
    "island": island,
}


def labelled(atoms: Atoms, kind: str) -> Atoms:
    atoms = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results, stress=atoms.get_stress())
    atoms.info["group"] = kind
    return atoms


def dynamics(atoms: Atoms, kind: str, temperature: float, n: int, seed: int) -> list[Atoms]:
    """n structures of the teacher, 80 fs apart, after 200 fs."""
    rng, found = np.random.default_rng(seed), []
    atoms = atoms.copy()
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    md = Langevin(
        atoms,
        4 * units.fs,
        temperature_K=temperature,
        friction=0.02 / units.fs,
        rng=rng,
        fixcm=False,
    )
    md.run(30)
    for _ in range(n):
        md.run(20)
        found.append(labelled(atoms, kind))
    return found


def prepare(folder: Path, case: str) -> None:
    """What all runs of a case share: first labels, test set, starts of the walks."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "start.extxyz").exists():
        return
    if case == "kinds":
        train = [a for seed in range(3) for a in dynamics(crystal(), "crystal", 300, 2, seed)]
        test = [
            atoms
            for kind, make in KINDS.items()
            for t, temperature in enumerate((300, 600, 900))
            for atoms in dynamics(
                strained(100 + t) if kind == "strained" else make(), kind, temperature, 3, 50 + t
            )
        ]
        start = [make() for kind, make in KINDS.items() if kind != "crystal"]
        start += [crystal()] * len(start)
    else:
        small = bulk("Cu", "fcc", a=A, cubic=True).repeat((2, 1, 1))
        train, test = [], []
        for seed in range(6):
            atoms = small.copy()
            atoms.rattle(0.02, seed=seed)
            train.append(labelled(atoms, "crystal"))
        for temperature in (300, 900, 1500):
            for a in (3.5, 3.6, 3.75):
                atoms = bulk("Cu", "fcc", a=a, cubic=True).repeat((2, 1, 1))
                test += dynamics(atoms, f"{temperature} K, {a} Ang", temperature, 6, temperature)
        start = train
    write(folder / "train.extxyz", train)
    write(folder / "test.extxyz", test)
    write(folder / "start.extxyz", start)


def settings(folder: Path, case: str, choose: str, seed: int, model: dict, executor) -> Learning:
    md = {"method": "md", "every": 4, "timestep": 4.0, "stop": 1.0}
    explore = {
        "kinds": [{**md, "temperature": [300, 900], "steps": 40, "repeats": 16}],
        "one": [
            {**md, "temperature": [300, 1500], "steps": 120, "repeats": 4},
            {"method": "strain", "strain": 0.05, "sigma": 0.1, "n": 60},
        ],
    }
    return Learning(
        train=[str(folder / "train.extxyz")],
        test=[str(folder / "test.extxyz")],
        start=[str(folder / "start.extxyz")],
        calculator="ase.calculators.emt:EMT",
        executor=executor,
        **model,
        explore=explore[case],
        uncertain=0.01,
        n=N[choose],
        choose=choose,
        rounds=ROUNDS,
        agreed=-1.0,  # all rounds, for the figure
        seed=seed,
    )


def by_kind(folder: Path, predictions: Path) -> dict[str, float]:
    """RMSE of forces of each kind in the test set, meV/Ang."""
    test = read(folder / "test.extxyz", ":")
    of_atom = np.repeat([a.info["group"] for a in test], [len(a) for a in test])
    with np.load(predictions) as file:
        squares = (file["forces"] - file["forces_ref"]) ** 2
    return {k: 1e3 * squares[of_atom == k].mean() ** 0.5 for k in dict.fromkeys(of_atom)}


def run(folder: Path, case: str, seeds: list[int], model: dict) -> None:
    """Errors of each kind after each round go to FOLDER/CASE/errors-SEED.csv."""
    folder = folder / case
    prepare(folder, case)
    executor = ThreadPoolExecutor(1)
    for seed in seeds:
        rows = []
        for choose in N:
            out = folder / f"{choose}-{seed}"
            chosen = settings(folder, case, choose, seed, model, executor)
            table = learn(chosen, out, say=lambda _: None)
            for number, n in enumerate(table["structures"]):
                errors = by_kind(folder, out / f"round-{number:02}" / "test.npz")
                labels = n - table["structures"][0]
                rows.append({"choose": choose, "round": number, "labels": labels, **errors})
        pd.DataFrame(rows).to_csv(folder / f"errors-{seed}.csv", index=False)
        print(folder.name, seed, flush=True)


def networks(folder: Path, case: str, seeds: list[int]) -> None:
    """Errors of networks that are trained on what linear models asked for, and on random choice."""
    folder = folder / case
    names = ["active", "random, as many", f"random, {N['random'] // N['uncertain']} times as many"]
    rows = ["| seed | model | " + " | ".join(names) + " |\n|---|---|---|---|---|"]
    for seed in seeds:
        last = f"round-{ROUNDS - 1:02}/train.db"
        active, random = (read_database(folder / f"{choose}-{seed}" / last) for choose in N)
        for model in ("acsf", "ace"):
            cells = []
            for k, structures in enumerate((active, random[: len(active)], random)):
                out = folder / "networks" / f"{seed}-{model}-{k}"
                if not (out / "test.npz").exists():
                    out.mkdir(parents=True, exist_ok=True)
                    write_database(out / "train.db", structures, names[k])
                    where = {"out": out / "run", "num_val": 0.1, "num_test": 0}
                    trained = api.train(
                        out / "train.db", "data.num_train=null", model=model, **where
                    )
                    api.predict(trained.model, folder / "test.extxyz", out / "test.npz")
                cells.append(f"{np.mean([*by_kind(folder, out / 'test.npz').values()]):.1f}")
            rows.append(f"| {seed} | {model} | " + " | ".join(cells) + " |")
    print("\n".join(rows))


def needed(labels: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Labels from which on the error is below the target, between rounds; NaN: never."""
    above = np.flatnonzero(errors > target)
    if not len(above) or above[-1] + 1 == len(errors):
        return np.nan if len(above) else float(labels[0])
    k = above[-1] + 1
    part = np.log(errors[k - 1] / target) / np.log(errors[k - 1] / errors[k])
    return float(labels[k - 1] + part * (labels[k] - labels[k - 1]))


def table(folder: Path, case: str, target: float | None, picture: Path | None) -> None:
    files = sorted((folder / case).glob("errors-*.csv"))
    tables = [pd.read_csv(file) for file in files]
    kinds = [c for c in tables[0] if c not in ("choose", "round", "labels")]
    labels, errors = {}, {}
    for choose in N:
        own = [t[t["choose"] == choose] for t in tables]
        labels[choose] = own[0]["labels"].to_numpy()
        errors[choose] = np.stack([t[kinds].mean(axis=1) for t in own])  # seeds, rounds
    print(f"{len(files)} seeds; mean over the kinds, geometric mean over the seeds\n")
    print("| round | labels, active | random | meV/Ang, active | random | ratio | p |")
    print("|---|---|---|---|---|---|---|")
    for k in range(1, ROUNDS):
        log = np.log(errors["uncertain"][:, k] / errors["random"][:, k])
        p = ttest_1samp(log, 0.0).pvalue if len(log) > 1 else np.nan
        means = [np.exp(np.log(errors[c][:, k]).mean()) for c in N]
        cells = [k, *(labels[c][k] for c in N), *(f"{m:.1f}" for m in means)]
        cells += [f"{np.exp(log.mean()):.2f}", f"{p:.2g}"]
        print("|", " | ".join(map(str, cells)), "|")
    print("\n| kind, last round |", " | ".join(NAMES.values()), "|\n|---|---|---|")
    for kind in kinds:
        last = [
            np.mean(
                [t[(t["choose"] == c) & (t["round"] == ROUNDS - 1)][kind].item() for t in tables]
            )
            for c in N
        ]
        print(f"| {kind} |", " | ".join(f"{x:.1f}" for x in last), "|")
    if target is not None:
        found = {c: np.array([needed(labels[c], e, target) for e in errors[c]]) for c in N}
        ratios = found["random"] / found["uncertain"]
        print(
            f"\nlabels to {target:g} meV/Ang:", {c: x.round(1).tolist() for c, x in found.items()}
        )
        known = np.log(ratios[np.isfinite(ratios)])
        draws = np.random.default_rng(0).choice(known, (10_000, len(known))).mean(1)
        low, high = np.exp(np.quantile(draws, (0.025, 0.975)))
        print(
            f"ratio in {len(known)} of {len(ratios)} seeds: {np.exp(known.mean()):.2f},"
            f" 95 % {low:.2f} to {high:.2f} by bootstrap,"
            f" p {ttest_1samp(known, 0.0).pvalue:.2g} (paired t-test of the logarithms)"
        )
    if picture is not None:
        figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
        for c, name in NAMES.items():
            (line,) = axes.plot(
                labels[c], np.exp(np.log(errors[c]).mean(0)), "o-", lw=2, label=name
            )
            axes.plot(labels[c], errors[c].T, color=line.get_color(), alpha=0.4, lw=0.7)
        axes.set(xlabel="labels asked for", ylabel="test RMSE of forces (meV/Ang)", yscale="log")
        axes.set_yticks([8, 10, 20, 40, 80], ["8", "10", "20", "40", "80"])
        axes.minorticks_off()
        axes.legend(frameon=False)
        figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table", "networks"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", choices=("kinds", "one"))
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--model", default="{}", help="members and model of Learning, JSON")
    parser.add_argument("--target", type=float, help="meV/Ang")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.what == "run":
        run(args.folder, args.case, args.seeds, json.loads(args.model))
    elif args.what == "networks":
        networks(args.folder, args.case, args.seeds)
    else:
        table(args.folder, args.case, args.target, args.picture)
    sys.exit()
