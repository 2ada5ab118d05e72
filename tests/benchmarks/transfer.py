"""Does the choice of the training data decide whether a potential transfers? Tungsten.

    python tests/benchmarks/transfer.py prepare FOLDER --entropy FILE [--ordered FILE] [--n 150]
    python tests/benchmarks/transfer.py spread FOLDER [--pictures FOLDER]
    python tests/benchmarks/transfer.py run FOLDER [--models A1 ..] [--sets expert ..]
        [--seeds 0 ..] [--without FAMILY ..]
    python tests/benchmarks/transfer.py table FOLDER [--pictures FOLDER]

`prepare` takes about N structures from all groups of the expert set of M. A. Wood et al., Phys.
Rev. B 99, 184305 (2019), and as many atoms from a file of `spk-softadapt generate --method
entropy`. The published SNAP of that paper with its ZBL, read as a model of this package, labels
both: expert.db and entropy.db; more.db, up to 12 further structures of each group of the expert
set, for testing; dft.db, the expert set with its own labels; with a file of `generate --method
entropy --k -3` mixed.db: half of the entropy set, and as many atoms of ordered structures.

`spread`: widths of energies and descriptors, figures. `run` trains what is not there yet in
FOLDER/runs, each model on each set with each seed, of the network and of the split (70 % of each
group for training, 10 for validation, 20 for testing), and stores its errors. With --without the
expert set lacks a family of groups. `table`: errors on the test structures of both sets, and on
each family; figures transfer_*.png.
"""

import argparse
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import ase.io
import fits
import numpy as np

SETS = ("expert", "entropy")
ALL_SETS = (*SETS, "mixed", "dft")
LEAST_OF_A_GROUP, MORE = 3, 12
#: groups of the expert set that are left out together
FAMILIES = {
    "strained cells": ("slice_sample", "EOS_Data"),
    "gamma surfaces": ("gamma_surface", "gamma_surface_vacancy"),
    "surfaces": ("surface", "WSurface_BeAdhesion"),
    "vacancies": ("vacancy", "Divacancy"),
    "interstitials": tuple(f"BCC_ForceLib_W{x}" for x in ("110", "111", "Oct", "Tet")),
    "dislocations": ("dislocation_quadrupole",),
    "hot crystal": ("md_bulk",),
    "disordered": ("Disordered_Struc",),
}
#: the teacher has 55 components, 4.8123 Ang and a ZBL; structures count alike
COMMON = ["globals.cutoff=4.8", "data.weights=null"]
#: second-order steps for the networks of the paper too, so that a fit takes minutes
NETWORK = ["experiment=recommended_softadapt", "model/representation=snap", *COMMON]
NETWORK += ["model.representation.scaling=sigma"]
RMSE = {"energy": "energy_rmse_meV_per_atom", "forces": "forces_rmse_meV_per_Ang"}
UNITS = {"energy": "meV/atom", "forces": "meV/Å"}
TWOJMAX = "model.representation.parameters.twojmax"
MAIN = ("linear", "quadratic", "A1", "recipe")
MODELS = {
    f"{kind} {j}".removesuffix(" 6"): [f"experiment=snap_{kind}", *COMMON, f"{TWOJMAX}={j}"]
    for kind, sizes in (("linear", "2468"), ("quadratic", "468"))
    for j in sizes
}
MODELS |= {a: [*NETWORK, f"globals.n_hidden={a}"] for a in ("A1", "A3", "A5", "B1", "B3")}
MODELS["recipe"] = ["experiment=recommended_softadapt", "data.weights=null"]


def expert_structures(n: int, seed: int) -> tuple[list, list]:
    """About n structures of all groups, with the labels of DFT, and some more of each."""
    from shared import shared_path

    frames = ase.io.read(shared_path("data/wbe/w.extxyz.xz"), ":")
    chosen, more = [], []
    for members in fits.by_group([atoms.info["group"] for atoms in frames], seed):
        end = max(LEAST_OF_A_GROUP, round(n * len(members) / len(frames)))
        chosen += members[:end].tolist()
        more += members[end : end + MORE].tolist()
    return [frames[k] for k in sorted(chosen)], [frames[k] for k in sorted(more)]


def first_atoms(path: str, n: int) -> list:
    """The first structures of a file that have so many atoms together."""
    found = []
    for atoms in ase.io.iread(path, ":"):
        found.append(atoms)
        n -= len(atoms)
        if n <= 0:
            return found
    sys.exit(f"{path} lacks {n} atoms: generate more")


def prepare(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.data.database import write_database
    from schnetpack_softadapt.data.structures import Structure
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

    expert, more = expert_structures(args.n, args.seed)
    n_atoms = sum(map(len, expert))
    entropy = first_atoms(args.entropy, n_atoms)
    for k, atoms in enumerate(entropy):  # two groups: both sets split the first in the same way
        atoms.info["group"] = f"half {k % 2}"
    sets = {"expert": expert, "more": more, "entropy": entropy, "dft": expert}
    if args.ordered:
        sets["mixed"] = entropy[::2]
        sets["mixed"] += first_atoms(args.ordered, n_atoms - sum(map(len, entropy[::2])))
    calculator = SoftAdaptCalculator(fits.published_snap())

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

    args.folder.mkdir(parents=True, exist_ok=True)
    for name, frames in sets.items():
        structures = [labelled(atoms, name != "dft") for atoms in frames]
        path = args.folder / f"{name}.db"
        text = f"{name} set of W, labels of {'DFT' if name == 'dft' else 'the published SNAP'}"
        write_database(path, structures, text, overwrite=True)
        print(f"{path}: {len(structures)} structures, {sum(s.n_atoms for s in structures)} atoms")


def read_set(folder: Path, name: str) -> list:
    from schnetpack_softadapt.data.dataset import read_database

    return read_database(folder / f"{name}.db")


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
    out = args.pictures or args.folder
    fits.save_picture(out / "transfer_energies.png", _draw_energies, found)
    fits.save_picture(out / "transfer_descriptors.png", _draw_descriptors, values)


def _draw_energies(found):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    for colour, name in zip(CYCLE, SETS, strict=False):
        energies = [s.energy / s.n_atoms for s in found[name]]
        forces = np.linalg.norm(np.concatenate([s.forces for s in found[name]]), axis=1)
        style = {"color": colour, "alpha": 0.6, "label": name}
        left.hist(energies, np.linspace(-9.5, -3, 66), **style)
        right.hist(np.log10(np.maximum(forces, 1e-3)), np.linspace(-3, 2, 51), **style)
    left.set_xlabel("energy, eV/atom")
    left.set_ylabel("structures")
    left.set_yscale("log")
    right.set_xlabel("log10 of the force on an atom, eV/Å")
    right.set_ylabel("atoms")
    left.legend()
    return figure


def _draw_descriptors(values):
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


def split_of(folder: Path, name: str, seed: int, without: str = "") -> list[list[int]]:
    """Structures of a set to train, validate and test, of the expert set without a family."""
    groups = [s.group for s in read_set(folder, name)]
    subsets = fits.split_by_group(groups, seed)
    left_out = FAMILIES.get(without, ())
    return [[k for k in subset if groups[k] not in left_out] for subset in subsets]


def test_structures(folder: Path, seed: int) -> dict[str, list]:
    """Those of both sets, and of each family those that no expert set has for training."""
    found = {}
    for name in SETS:
        structures = read_set(folder, name)
        found[name] = [structures[k] for k in split_of(folder, name, seed)[2]]
    unseen = found["expert"] + read_set(folder, "more")
    return found | {f: [s for s in unseen if s.group in FAMILIES[f]] for f in FAMILIES}


def errors(run_folder: Path, structures: Sequence) -> dict[str, np.ndarray]:
    """Of the energies (S,) in meV/atom and forces (N, 3) in meV/Ang."""
    from schnetpack_softadapt.deploy.predict import predict

    found = predict(run_folder, structures)
    energy = (found["energy"] - found["energy_ref"]) / [s.n_atoms for s in structures]
    forces = found["forces"] - found["forces_ref"]
    return {"energy": 1e3 * energy, "forces": 1e3 * forces.reshape(-1, 3)}


def run(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.api import load
    from schnetpack_softadapt.data.splitting import Split, save_split
    from schnetpack_softadapt.files import replacing

    for without, seed, model, name in itertools.product(
        args.without or [""], args.seeds, args.models, ["expert"] if args.without else args.sets
    ):
        key = "_".join([model, name, str(seed), without]).rstrip("_").replace(" ", "-")
        folder = args.folder.absolute() / "runs" / key
        if (folder / "errors.npz").exists():
            continue
        start = time.process_time()
        split = args.folder.absolute() / "splits" / f"{key}.npz"
        split.parent.mkdir(exist_ok=True)
        save_split(split, Split(*split_of(args.folder, name, seed, without)))
        overrides = [f"data.split_file={split}", f"seed={seed}", *args.overrides]
        metrics = fits.fit(folder, args.folder / f"{name}.db", [*MODELS[model], *overrides])
        tests = test_structures(args.folder, seed)
        if without or name == "dft":  # the errors on dft.db are in the metrics
            tests = {without: tests[without]} if without else {}
        found = {t: errors(folder, structures) for t, structures in tests.items()}
        n = sum(p.numel() for p in load(folder).parameters() if p.requires_grad)
        arrays = {f"{t}, {q}": x for t, pair in found.items() for q, x in pair.items()}
        arrays |= {f"{s}, {q}": metrics[s][RMSE[q]] for s in ("train", "test") for q in RMSE}
        with replacing(folder / "errors.npz") as path, open(path, "wb") as file:
            np.savez(file, key=[model, name, str(seed), without], parameters=n, **arrays)
        print(f"{key}: {time.process_time() - start:.0f} CPU s", flush=True)


# --- tables and figures


def results(folder: Path) -> dict[tuple, list]:
    """What `run` has stored of each seed, by model, set and the family left out."""
    found = defaultdict(list)
    for path in sorted((folder / "runs").glob("*/errors.npz")):
        arrays = dict(np.load(path))
        model, name, _, without = arrays.pop("key").tolist()
        found[model, name, without].append(arrays)
    return found


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def mean_rms(runs: list, test: str, quantity: str) -> float:
    """Of all seeds; NaN without any."""
    return float(np.mean([rms(x[f"{test}, {quantity}"]) for x in runs])) if runs else np.nan


def spread_of(runs: list, test: str, quantity: str) -> str:
    """Mean and standard deviation over the seeds, of energies with the mean absolute error."""

    def of(function) -> str:
        values = [function(x[f"{test}, {quantity}"]) for x in runs]
        deviation = f" ± {fits.short(np.std(values, ddof=1), 2)}" if len(runs) > 1 else ""
        return f"{fits.short(np.mean(values))}{deviation}"

    absolute = f" ({of(lambda x: np.abs(x).mean())})" if quantity == "energy" else ""
    return of(rms) + absolute


def table(args: argparse.Namespace) -> None:
    found, out = results(args.folder), args.pictures or args.folder
    whole = {key[:2]: runs for key, runs in found.items() if not key[2]}
    whole = {key: whole[key] for key in itertools.product(MODELS, ALL_SETS) if key in whole}
    print("\nRMSE (MAE), meV/atom and meV/Ang, mean and standard deviation of the seeds\n")
    rows = []
    for (model, name), runs in whole.items():
        train = " / ".join(fits.short(mean_rms(runs, "train", q)) for q in UNITS)
        tests = [(t, q) for t in (("test",) if name == "dft" else SETS) for q in UNITS]
        cells = [*(spread_of(runs, *test) for test in tests), "", ""][:4]
        rows.append([model, runs[0]["parameters"], name, len(runs), train, *cells])
    columns = [f"{test}: {q}" for test in SETS for q in UNITS]
    fits.print_table(["model", "parameters", "trained on", "seeds", "training", *columns], rows)
    print("\nRMSE on families: expert set with / without the family / entropy set\n")
    unseen, rows = test_structures(args.folder, 0), []
    for q, family in itertools.product(UNITS, FAMILIES):
        cells = []
        for model in MAIN:
            runs = (found[model, *source] for source in sources(family))
            cells.append(" / ".join(fits.short(mean_rms(x, family, q)) for x in runs))
        scale = 1e3 * rms(np.concatenate([s.forces for s in unseen[family]]))
        rows.append([q, family, len(unseen[family]), fits.short(scale), *cells])
    fits.print_table(["", "family", "structures", "RMS force", *MAIN], rows)
    fits.save_picture(out / "transfer_errors.png", _draw_errors, whole)
    fits.save_picture(out / "transfer_families.png", _draw_families, found)
    fits.save_picture(out / "transfer_freedom.png", _draw_freedom, whole)


def sources(family: str) -> list[tuple[str, str]]:
    """Sets, and what they lack, whose models are compared on a family."""
    return [("expert", ""), ("expert", family), ("entropy", "")]


def _draw_errors(whole):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 4.0)
    for axes, (q, unit) in zip(figure.subplots(1, 2), UNITS.items(), strict=True):
        for i, (model, name, test) in enumerate(itertools.product(MAIN, SETS, SETS)):
            runs = [x[f"{test}, {q}"].ravel() for x in whole[model, name]]
            low, middle, high = np.quantile(np.abs(np.concatenate(runs)), [0.25, 0.5, 0.95])
            k, colour = i + i // 4, CYCLE[SETS.index(name)]
            axes.plot([k, k], [low, high], color=colour, linewidth=5, alpha=0.5)
            axes.plot(k, middle, "os"[SETS.index(test)], color=colour)
        axes.set_yscale("log")
        axes.set_xticks([5 * i + 1.5 for i in range(len(MAIN))], MAIN)
        axes.set_ylabel(f"{q}, {unit}")
    tested = [("os"[k], "grey", f"test: {name}") for k, name in enumerate(SETS)]
    trained = [("-", CYCLE[k], f"trained on {name}") for k, name in enumerate(SETS)]
    fits.legend(figure, tested + trained, loc="outside lower center", ncols=4)
    return figure


def _draw_families(found):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 5.0)
    for axes, (q, unit) in zip(figure.subplots(1, 2, sharey=True), UNITS.items(), strict=True):
        for (i, family), (j, model) in itertools.product(enumerate(FAMILIES), enumerate(MAIN)):
            for colour, source in zip(CYCLE, sources(family), strict=False):
                error = mean_rms(found[model, *source], family, q)
                if error > 0.1:  # forces that are zero by symmetry
                    axes.plot(error, 0.16 * (1.5 - j) - i, "v^os"[j], color=colour, markersize=5)
        axes.set_xscale("log")
        axes.set_xlabel(f"{q}, {unit}")
        axes.set_yticks([-i for i in range(len(FAMILIES))], FAMILIES)
    labels = ("expert set", "expert set without the family", "entropy set")
    entries = [("o", colour, label) for colour, label in zip(CYCLE, labels, strict=False)]
    entries += [(marker, "grey", model) for marker, model in zip("v^os", MAIN, strict=True)]
    fits.legend(figure, entries, loc="outside lower center", ncols=4)
    return figure


def _draw_freedom(whole):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 7.5)
    markers = {"linear": "v", "quadratic": "^", "A": "o", "B": "s", "recipe": "*"}
    panels = zip(figure.subplots(2, 2).flat, itertools.product(UNITS, SETS), strict=True)
    for (axes, (q, test)), name, kind in itertools.product(panels, SETS, markers):
        runs = [runs for key, runs in whole.items() if key[0][0] == kind[0] and key[1] == name]
        runs.sort(key=lambda seeds: seeds[0]["parameters"])
        n = [seeds[0]["parameters"] for seeds in runs]
        style = {"color": CYCLE[SETS.index(name)], "markersize": 6, "linewidth": 1}
        axes.loglog(n, [mean_rms(x, test, q) for x in runs], markers[kind] + "-", **style)
        if name == test:
            train = [mean_rms(x, "train", q) for x in runs]
            axes.loglog(n, train, markers[kind] + ":", markerfacecolor="none", **style)
        axes.set_title(f"{q} of the {test} set, {UNITS[q]}")
        axes.set_xlabel("parameters")
        fits.plain_ticks(axes.yaxis)
    for axes in figure.axes:  # some fit all energies exactly
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1.0))
    entries = [("-", CYCLE[k], f"trained on {name}") for k, name in enumerate(SETS)]
    entries += [(":", "grey", "errors of training (open)")]
    entries += [(marker, "grey", kind) for kind, marker in markers.items()]
    fits.legend(figure, entries, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = fits.subcommand(commands, prepare)
    command.add_argument("--entropy", required=True, help="structures of generate")
    command.add_argument("--ordered", help="likewise, with negative k")
    command.add_argument("--n", type=int, default=150)
    command.add_argument("--seed", type=int, default=0)
    command = fits.subcommand(commands, spread)
    command.add_argument("--pictures", type=Path, help="folder of the figures")
    command = fits.subcommand(commands, run)
    command.add_argument("--models", nargs="+", choices=MODELS, default=MAIN)
    command.add_argument("--sets", nargs="+", choices=ALL_SETS, default=SETS)
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--without", nargs="+", choices=FAMILIES, help="of the expert set")
    command.add_argument("--overrides", nargs="*", default=[], help="as for spktrain")
    fits.subcommand(commands, table).add_argument(
        "--pictures", type=Path, help="folder of the figures"
    )
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
