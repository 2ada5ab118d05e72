"""Does the choice of the training data decide whether a potential transfers? Tungsten.

    python tests/benchmarks/transfer.py prepare FOLDER --entropy FILE [--ordered FILE] [--n 150]
    python tests/benchmarks/transfer.py spread FOLDER
    python tests/benchmarks/transfer.py run FOLDER [--models A1 quadratic ..] [--sets expert ..]
    python tests/benchmarks/transfer.py table FOLDER [--picture PNG]

`prepare` takes about N structures from all groups of the expert set of M. A. Wood et al., Phys.
Rev. B 99, 184305 (2019), and as many atoms from a file of `spk-softadapt generate --method
entropy`. The published SNAP of that paper with its ZBL, read as a model of this package, labels
both. Of either set 70 % of the structures are for training, 10 for validation and 20 for testing:
expert.db, entropy.db, dft.db, the expert set with its own labels, and with a file of `generate
--method entropy --k -3` mixed.db: half of the structures for training, validation and testing of
the entropy set, and as many atoms of ordered ones.

`spread`: widths of energies and descriptors of both sets, figures spread_*.png. `run` trains each
model on each set in FOLDER/runs. `table`: its errors on the test structures of both.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SETS = ("expert", "entropy")
ALL_SETS = (*SETS, "mixed", "dft")
TEACHER = "WBe_Wood_PRB2019"
LEAST_OF_A_GROUP = 3
SHARES = (0.7, 0.8)  # end of train, of val
#: 30 components, which cannot give the 55 of the teacher; structures count alike
COMMON = ["globals.cutoff=4.8", "data.weights=null"]
#: second-order steps for the networks of the paper too, so that a fit takes minutes
NETWORK = ["experiment=recommended_softadapt", "model/representation=snap", *COMMON]
MODELS = {
    "linear": ["experiment=snap_linear", *COMMON],
    "quadratic": ["experiment=snap_quadratic", *COMMON],
    "A1": [*NETWORK, "model.representation.scaling=sigma", "globals.n_hidden=A1"],
    "B1": [*NETWORK, "model.representation.scaling=sigma", "globals.n_hidden=B1"],
    "recipe": ["experiment=recommended_softadapt", "data.weights=null"],
}


def teacher():
    """The published SNAP with its ZBL, as an ASE calculator."""
    from shared import shared_path

    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.exchange.snap import read_snap
    from schnetpack_softadapt.model import ZBL

    model = read_snap(shared_path(f"reference/snap/{TEACHER}.snapcoeff"))
    model.postprocessors.append(ZBL.of_elements([4, 74], inner=4.0, outer=4.8))
    return SoftAdaptCalculator(model)


def expert_structures(n: int, seed: int) -> list:
    """About n structures of all groups, with the labels of DFT."""
    from shared import shared_path

    frames = ase.io.read(shared_path("data/wbe/w.extxyz.xz"), ":")
    rng, chosen = np.random.default_rng(seed), []
    groups = np.array([atoms.info["group"] for atoms in frames])
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        chosen += members[: max(LEAST_OF_A_GROUP, round(n * len(members) / len(frames)))].tolist()
    return [frames[k] for k in sorted(chosen)]


def prepare(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.data.database import write_database
    from schnetpack_softadapt.data.splitting import Split, save_split, split_path
    from schnetpack_softadapt.data.structures import Structure

    expert = expert_structures(args.n, args.seed)
    n_atoms = sum(map(len, expert))
    entropy, n_there = [], 0
    for atoms in ase.io.iread(args.entropy, ":"):
        if n_there < n_atoms:
            entropy.append(atoms)
            n_there += len(atoms)
    if n_there < n_atoms:
        sys.exit(f"{args.entropy} has {n_there} atoms, the expert set {n_atoms}: generate more")
    calculator = teacher()

    def labelled(atoms, label: bool) -> Structure:
        group = atoms.info["group"]
        if label:
            atoms = atoms.copy()
            atoms.calc = calculator
            atoms.get_stress()
        found = Structure.from_atoms(atoms, group)
        if not label:  # of most groups in another unit, see wbe.py
            found.stress = None
        return found

    def parts_of(frames) -> list[list]:
        order = np.random.default_rng(args.seed).permutation(len(frames))
        parts = np.split(order, [round(share * len(order)) for share in SHARES])
        return [[frames[k] for k in sorted(part.tolist())] for part in parts]

    sets = {"expert": parts_of(expert), "entropy": parts_of(entropy), "dft": parts_of(expert)}
    if args.ordered:
        half = [part[: len(part) // 2] for part in sets["entropy"]]
        n_left, ordered = n_atoms - sum(len(atoms) for part in half for atoms in part), []
        for atoms in ase.io.iread(args.ordered, ":"):
            if sum(map(len, ordered)) < n_left:
                ordered.append(atoms)
        sets["mixed"] = [a + b for a, b in zip(half, parts_of(ordered), strict=True)]
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, parts in sets.items():
        structures = [labelled(atoms, name != "dft") for part in parts for atoms in part]
        path = args.folder / f"{name}.db"
        text = f"{name} set of W, labels of {TEACHER if name != 'dft' else 'DFT'}"
        fingerprint = write_database(path, structures, text, overwrite=True)
        ends = np.cumsum([0, *map(len, parts)])
        subsets = (list(range(a, b)) for a, b in itertools.pairwise(ends.tolist()))
        save_split(split_path(path), Split(*subsets, fingerprint=fingerprint))
        print(f"{path}: {len(structures)} structures, {sum(s.n_atoms for s in structures)} atoms")


def read_set(folder: Path, name: str, subset: str | None = None) -> list:
    """All structures of a set, or of a subset of it."""
    from schnetpack_softadapt.data.dataset import read_database
    from schnetpack_softadapt.data.splitting import load_split, split_path

    path = folder / f"{name}.db"
    structures = read_database(path)
    if subset is None:
        return structures
    return [structures[k] for k in getattr(load_split(split_path(path), len(structures)), subset)]


# --- how broad the sets are


def descriptors(structures: Sequence) -> np.ndarray:
    """55 bispectrum components (n, 55) of all atoms, parameters of the teacher."""
    from schnetpack_softadapt.descriptors.selection import sample_values
    from schnetpack_softadapt.descriptors.snap import Bispectrum

    basis = Bispectrum({"W": 0.5}, twojmax=8, rcutfac=4.8123)
    geometry = [(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
    return sample_values(basis, geometry, n_atoms=10**6)[74]


def relative_widths(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Standard deviations (55,) along the principal axes of the other set, in units of its own."""
    centred = other - other.mean(0)
    spread = centred.std(0)
    eigenvalues, axes = np.linalg.eigh((centred / spread).T @ (centred / spread) / len(other))
    return ((values - values.mean(0)) / spread @ axes).std(0) / np.sqrt(eigenvalues)


def spread(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.files import write_file
    from schnetpack_softadapt.reports.style import png_bytes

    names = [*SETS, *(["mixed"] if (args.folder / "mixed.db").exists() else [])]
    found = {name: read_set(args.folder, name) for name in names}
    values = {name: descriptors(structures) for name, structures in found.items()}
    for name, structures in found.items():
        energies = np.array([s.energy / s.n_atoms for s in structures])
        forces = np.linalg.norm(np.concatenate([s.forces for s in structures]), axis=1)
        volumes = np.array([s.volume / s.n_atoms for s in structures])
        print(
            f"{name}: {len(structures)} structures, {len(values[name])} atoms; energy"
            f" {energies.mean():.2f} +- {energies.std():.2f}, {energies.min():.2f} to"
            f" {energies.max():.2f} eV/atom; force {forces.mean():.2f} (mean), {forces.max():.1f}"
            f" (largest) eV/Ang; volume {volumes.min():.1f} to {volumes.max():.1f} Ang^3/atom"
        )
    for one, two in itertools.permutations(names, 2):
        if "expert" not in (one, two):
            continue
        widths = relative_widths(values[one], values[two])
        print(
            f"{one}, whitened with the covariance of {two}: broader in {(widths > 1).sum()} of"
            f" {len(widths)} dimensions; widths {np.median(widths):.3g} (median),"
            f" {widths.min():.3g} to {widths.max():.3g}"
        )
    out = Path(args.pictures or args.folder)
    for name, draw in (("energies", _draw_energies), ("descriptors", _draw_descriptors)):
        path = out / f"transfer_{name}.png"
        write_file(path, png_bytes(draw, found, values))
        print(f"written {path}")


def _draw_energies(found, values):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    for colour, name in zip(CYCLE, SETS, strict=False):
        energies = [s.energy / s.n_atoms for s in found[name]]
        forces = np.linalg.norm(np.concatenate([s.forces for s in found[name]]), axis=1)
        style = {"color": colour, "alpha": 0.6, "label": name}
        left.hist(energies, np.linspace(-9, -3, 61), **style)
        right.hist(np.log10(np.maximum(forces, 1e-3)), np.linspace(-3, 2, 51), **style)
    left.set_xlabel("energy, eV/atom")
    left.set_ylabel("structures")
    left.set_yscale("log")
    right.set_xlabel("log10 of the force on an atom, eV/Å")
    right.set_ylabel("atoms")
    left.legend()
    return figure


def _draw_descriptors(found, values):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 4.2)
    left, right = figure.subplots(1, 2)
    both = np.concatenate([values[name] for name in SETS])
    mean, size = both.mean(0), both.std(0)
    axes = np.linalg.svd((both - mean) / size, full_matrices=False)[2][:2]
    for colour, name in zip(CYCLE[1::-1], SETS[::-1], strict=False):
        x, y = axes @ ((values[name][::3] - mean) / size).T  # a third of the atoms
        left.plot(x, y, ".", color=colour, markersize=2, alpha=0.4, label=name)
    left.set_xlabel("first principal component of both")
    left.set_ylabel("second")
    left.legend(markerscale=5)
    for colour, one, two in zip(CYCLE, SETS, SETS[::-1], strict=False):
        widths = np.sort(relative_widths(values[one], values[two]))[::-1]
        right.plot(np.arange(1, 56), widths, color=colour, label=f"{one}, whitened by {two}")
    right.axhline(1.0, color="#3a3a3a", linewidth=1)
    right.set_yscale("log")
    right.set_xlabel("dimension, in order")
    right.set_ylabel("standard deviation")
    right.legend()
    return figure


# --- training and testing


def run(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.api import run_spktrain

    for model in args.models:
        for name in args.sets:
            folder = args.folder.absolute() / "runs" / f"{model}_{name}"
            if (folder / "metrics.json").exists():
                continue
            run_spktrain(
                [
                    *MODELS[model],
                    f"data.datapath={args.folder.absolute() / name}.db",
                    f"run.path={folder.parent}",
                    f"run.id={folder.name}",
                    "logger=acsf_quiet",
                    "print_config=false",
                    *args.overrides,
                ]
            )
            print(folder.name, json.loads((folder / "metrics.json").read_text())["test"])


def errors(folder: Path, run_folder: Path, name: str) -> dict[str, np.ndarray]:
    """Errors on the test structures of a set: energy (S,) in meV/atom, forces (N, 3) in meV/Ang."""
    from schnetpack_softadapt.deploy.predict import predict

    structures = read_set(folder, name, "test")
    found = predict(run_folder, structures)
    energy = (found["energy"] - found["energy_ref"]) / [s.n_atoms for s in structures]
    forces = found["forces"] - found["forces_ref"]
    return {"energy": 1e3 * energy, "forces": 1e3 * forces.reshape(-1, 3)}


def table(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.api import load
    from schnetpack_softadapt.files import write_file
    from schnetpack_softadapt.reports.style import png_bytes

    print("| model | parameters | trained on | tested on | meV/atom: RMSE, MAE, 95 % |", end="")
    print(" meV/Ang: RMSE, MAE, 95 % |\n|---|---|---|---|---|---|")
    drawn = {}
    for path in sorted((args.folder / "runs").glob("*_*/metrics.json")):
        model, name = path.parent.name.rsplit("_", 1)
        if model not in MODELS:
            continue
        trained = load(path.parent)
        n = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        for test in ("dft",) if name == "dft" else SETS:
            found = errors(args.folder, path.parent, test)
            drawn[model, name, test] = found
            cells = []
            for x in (found["energy"], found["forces"]):
                rmse, mae = np.sqrt((x**2).mean()), np.abs(x).mean()
                cells.append(f"{rmse:.3g}, {mae:.3g}, {np.quantile(np.abs(x), 0.95):.3g}")
            print(f"| {model} | {n} | {name} | {test} | {' | '.join(cells)} |", flush=True)
    if args.picture:
        write_file(args.picture, png_bytes(_draw_errors, drawn))


def _draw_errors(drawn):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    models = [m for m in MODELS if (m, "expert", "entropy") in drawn]
    figure = new_figure(10.0, 4.0)
    for axes, quantity, unit in zip(
        figure.subplots(1, 2), ("energy", "forces"), ("meV/atom", "meV/Å"), strict=True
    ):
        k = 0
        for model in models:
            for name in SETS:
                for test in SETS:
                    error = np.abs(drawn[model, name, test][quantity]).ravel()
                    colour = CYCLE[SETS.index(name)]
                    low, middle, high = np.quantile(error, [0.05, 0.5, 0.95])
                    axes.plot([k, k], [low, high], color=colour, linewidth=5, alpha=0.5)
                    axes.plot(k, middle, "os"[SETS.index(test)], color=colour)
                    k += 1
            k += 1
        axes.set_yscale("log")
        axes.set_xticks([5 * i + 1.5 for i in range(len(models))], models)
        axes.set_ylabel(f"{quantity}, {unit}")
    for marker, name, colour in (
        ("o", "test: expert", "#3a3a3a"),
        ("s", "test: entropy", "#3a3a3a"),
        ("_", "trained on expert", CYCLE[0]),
        ("_", "trained on entropy", CYCLE[1]),
    ):
        axes.plot([], [], marker, color=colour, label=name, markersize=8, markeredgewidth=3)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare")
    command.add_argument("folder", type=Path)
    command.add_argument("--entropy", required=True, help="structures of generate")
    command.add_argument("--ordered", help="likewise, with negative k")
    command.add_argument("--n", type=int, default=150)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=prepare)
    command = commands.add_parser("spread")
    command.add_argument("folder", type=Path)
    command.add_argument("--pictures", help="folder of the figures")
    command.set_defaults(run=spread)
    command = commands.add_parser("run")
    command.add_argument("folder", type=Path)
    command.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    command.add_argument("--sets", nargs="+", choices=ALL_SETS, default=SETS)
    command.add_argument("--overrides", nargs="*", default=[], help="as for spktrain")
    command.set_defaults(run=run)
    command = commands.add_parser("table")
    command.add_argument("folder", type=Path)
    command.add_argument("--picture", help="figure of the distributions of errors")
    command.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
