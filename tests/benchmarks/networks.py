"""Error against the number of coefficients on bispectrum components, and energy in NVE.

    python tests/benchmarks/networks.py prepare FOLDER [--n 240] [--max-atoms 54]
    python tests/benchmarks/networks.py run FOLDER --data W --models A1 B1 [--twojmax 4 6 8]
        [--recipe] [...]
    python tests/benchmarks/networks.py table FOLDER [--picture PNG]
    python tests/benchmarks/networks.py nve MODEL [MODEL ...] [--picture PNG] [--lammps]

`prepare` writes W.db, Mo.db and Si.db into FOLDER: of W about N small structures, as many of each
group of the expert set of M. A. Wood et al., Phys. Rev. B 99, 184305 (2019), none more than 5
eV/atom above the lowest; of Mo and Si the benchmark of Y. Zuo et al., J. Phys. Chem. A 124, 731
(2020), with its test set.

`run` trains what is not there yet in FOLDER/runs/DATA/MODEL_TWOJMAX[_TAG]; the same command again
goes on. A model is a network (A1 to A5, B1 to B5) or an experiment (snap_linear, snap_quadratic).
Networks are trained with Adam, or by the recommended recipe (--recipe), with second-order steps.
What stands after `--` are overrides as for spktrain, and --tag names them. `table` counts the
coefficients and has the test errors.

`nve`: 16 atoms of bcc W from 3000 K for 7.5 ps, 750 to 1500 samples, the
mean of |H(t) - H(0)| / N against the time step.
"""

import argparse
import itertools
import json
import lzma
import re
import subprocess
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from fits import RIGHT_STRESS, fit, legend, plain_ticks, print_table, save_picture, subcommand

ERRORS = {
    "energy, meV/atom": "energy_rmse_meV_per_atom",
    "forces, meV/Ang": "forces_rmse_meV_per_Ang",
    "stress, MPa": "stress_rmse_MPa",
}
TIME_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0)  # fs
DURATION, SAMPLES, TEMPERATURE = 7500.0, 1000, 3000.0  # fs, -, K
HIGHEST = 5.0  # eV/atom above the lowest


def small_w(n: int, max_atoms: int) -> list[str]:
    """Structures of W, each as extended XYZ, about as many of each group."""
    from shared import shared_path

    packed = shared_path("data") / "wbe" / "w.extxyz.xz"
    with lzma.open(packed, "rt") as file:
        lines = file.readlines()
    groups, k = defaultdict(list), 0
    while k < len(lines):
        n_atoms = int(lines[k])
        frame, k = lines[k : k + n_atoms + 2], k + n_atoms + 2
        energy = float(re.search(r"energy=(\S+)", frame[1])[1]) / n_atoms
        if 1 < n_atoms <= max_atoms:
            groups[re.search(r'group="?([^" ]+)', frame[1])[1]].append((energy, frame))
    lowest = min(energy for group in groups.values() for energy, _ in group)
    chosen, rng = [], np.random.default_rng(0)
    for name, group in sorted(groups.items()):
        frames = [frame for energy, frame in group if energy < lowest + HIGHEST]
        for i in rng.permutation(len(frames))[: round(n / len(groups))]:
            if name not in RIGHT_STRESS:
                frames[i][1] = re.sub(r'stress="([^"]*)"', _times_1000, frames[i][1])
            frames[i][1] = re.sub(r' stress="[-0. ]*"', "", frames[i][1])  # stands for none
            chosen.append("".join(frames[i]))
    return chosen


def _times_1000(match: re.Match) -> str:
    return 'stress="' + " ".join(repr(1e3 * float(x)) for x in match[1].split()) + '"'


def prepare(args: argparse.Namespace) -> None:
    from shared import shared_path

    from schnetpack_softadapt.cli.main import main as command

    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "W.db").exists():
        path = args.folder / "W.extxyz"
        path.write_text("".join(small_w(args.n, args.max_atoms)))
        command(["import", str(path), "--out", str(args.folder / "W.db")])
    for name in ("Mo", "Si"):
        source = shared_path("data") / "mlearn"
        files = [str(source / f"{name}_{part}.extxyz") for part in ("training", "test")]
        if not (args.folder / f"{name}.db").exists():
            # of Si yz and xz are exchanged in the labels
            repair = ["--repair-stress", "Elastic=xx yy zz xz yz xy"] if name == "Si" else []
            command(["import", files[0], "--test", files[1], *repair,
                     "--out", f"{args.folder}/{name}.db"])  # fmt: skip


def run(args: argparse.Namespace) -> None:
    for twojmax in args.twojmax:  # so that all networks share one store
        for model in args.models:
            name = f"{model}_{twojmax}{args.tag and '_'}{args.tag}"
            folder = args.folder / "runs" / args.data / name
            experiment = [f"experiment={model}"]
            if re.fullmatch("[AB][1-5]", model):
                kind = f"experiment=snap_network_{model[0].lower()}"
                experiment = [kind, f"globals.size={model[1]}"]
                if args.recipe:
                    kind = ["experiment=recommended_softadapt", "model/representation=snap"]
                    experiment = [*kind, "globals.cutoff=5", f"globals.n_hidden={model}"]
            experiment.append(f"model.representation.parameters.twojmax={twojmax}")
            overrides = [*experiment, *args.overrides]
            metrics = fit(folder, args.folder / f"{args.data}.db", overrides)
            print(name, metrics["test"], flush=True)


def table(args: argparse.Namespace) -> None:
    from schnetpack_softadapt.api import load

    rows = []
    for path in sorted(args.folder.glob("runs/*/*/metrics.json")):
        metrics, model = json.loads(path.read_text()), load(path.parent)
        n = sum(p.numel() for p in model.parameters())
        name, twojmax, *tag = path.parent.name.rsplit("_", 1)
        if not twojmax.isdigit():
            name, twojmax, tag = *name.rsplit("_", 1), [twojmax]
        row = {"data": path.parts[-3], "model": name, "tag": "".join(tag)}
        row |= {"D": model.representation.n_atom_basis, "coefficients": n}
        row |= {"epochs": metrics["epochs"], "s": metrics["wall_s"]}
        rows.append(row | {k: metrics["test"].get(key, np.nan) for k, key in ERRORS.items()})
    rows.sort(key=lambda r: (r["data"], r["tag"], r["D"], r["model"]))
    print_table(rows[0], (row.values() for row in rows))
    drawn = [r for r in rows if r["data"] == "W" and not r["tag"]]
    save_picture(args.picture, _draw, drawn)


def _draw(rows: list[dict]):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(10.0, 3.6)
    sizes = sorted({row["D"] for row in rows})
    markers = {"A": "o", "B": "s", "snap_linear": "v", "snap_quadratic": "^"}
    for axes, error in zip(figure.subplots(1, 3), ERRORS, strict=True):
        for k, size in enumerate(sizes):
            for kind, marker in markers.items():
                mine = [r for r in rows if r["D"] == size and r["model"].rstrip("12345") == kind]
                mine.sort(key=lambda r: r["coefficients"])
                x, y = [r["coefficients"] for r in mine], [r[error] for r in mine]
                axes.loglog(x, y, f"{marker}-", color=CYCLE[k], markersize=5, linewidth=1)
        axes.xaxis.set_minor_formatter("")
        plain_ticks(axes.yaxis)
        axes.set_xlim(10, 4e4 if max(r["coefficients"] for r in rows) > 2e3 else 2e3)
        axes.set_xlabel("coefficients")
        axes.set_title(error)
    entries = [("-", CYCLE[k], f"D = {size}") for k, size in enumerate(sizes)]
    there = {row["model"].rstrip("12345") for row in rows}
    entries += [(m, "grey", kind.replace("_", " ")) for kind, m in markers.items() if kind in there]
    legend(figure, entries, loc="outside right center", fontsize=10)
    return figure


def crystal():
    """16 atoms of bcc W with velocities of 3000 K."""
    from ase.build import bulk
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    atoms = bulk("W", a=3.185, cubic=True) * 2
    rng = np.random.RandomState(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    Stationary(atoms)
    return atoms


def nve_ase(model: Path) -> list[float]:
    """Mean |H(t) - H(0)| / N by time step, eV/atom, with the ASE calculator."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from schnetpack_softadapt import SoftAdaptCalculator

    calculator, found = SoftAdaptCalculator(model), []
    for step in TIME_STEPS:
        atoms = crystal()
        atoms.calc = calculator
        energies: list[float] = []
        dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
        n = round(DURATION / step)
        dynamics.attach(
            lambda a=atoms, e=energies: e.append(a.get_total_energy()),
            interval=max(1, n // SAMPLES),
        )
        dynamics.run(n)
        h = np.array(energies)
        found.append(float(np.abs(h - h[0]).mean() / len(atoms)))
    return found


def nve_lammps(model: Path) -> list[float]:
    """The same by `lmp` with the potential as `spk-softadapt export` writes it."""
    from tempfile import TemporaryDirectory

    from ase.io.lammpsdata import write_lammps_data

    from schnetpack_softadapt.cli.main import main as command

    found = []
    with TemporaryDirectory() as name:
        folder = Path(name) / "potential"
        with redirect_stdout(sys.stderr):
            command(["export", str(model), "--out", str(folder), "--format", "lammps"])
        lines = (folder / "in.lammps").read_text().splitlines()
        style = "\n".join(line for line in lines if line.startswith(("pair_style", "pair_coeff")))
        write_lammps_data(folder / "w.data", crystal(), velocities=True, units="metal", masses=True)
        for step in TIME_STEPS:
            n = round(DURATION / step)
            every = max(1, n // SAMPLES)
            (folder / "nve.lammps").write_text(
                "units metal\nboundary p p p\natom_modify map array\nread_data w.data\n"
                f"{style}\nfix 1 all nve\ntimestep {step / 1000}\n"
                "thermo_style custom step etotal\nthermo_modify format float %.15g\n"
                f"thermo {every}\nrun {n}\n"
            )
            command_line = ["lmp", "-in", "nve.lammps", "-screen", "none"]
            subprocess.run(command_line, cwd=folder, check=True, timeout=3600)
            log = (folder / "log.lammps").read_text()
            h = np.array(re.findall(r"^\s*\d+\s+(-?\d+\.\d+)\s*$", log, re.MULTILINE), dtype=float)
            found.append(float(np.abs(h - h[0]).mean() / 16))
    return found


def nve(args: argparse.Namespace) -> None:
    results = {}
    engines = {"ASE": nve_ase} | ({"LAMMPS": nve_lammps} if args.lammps else {})

    def rows():
        for model, (code, engine) in itertools.product(args.models, engines.items()):
            found = results[f"{model.name}, {code}"] = engine(model)
            slope = np.polyfit(np.log(TIME_STEPS[:3]), np.log(found[:3]), 1)[0]
            yield model.name, code, *(f"{1e3 * x:.3g}" for x in found), f"{slope:.2f}"

    print("mean |H(t) - H(0)| / N, meV/atom\n")
    print_table(["model", "code", *(f"{t:g} fs" for t in TIME_STEPS), "slope to 2 fs"], rows())
    save_picture(args.picture, _draw_nve, results)


def _draw_nve(results: dict[str, list[float]]):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(6.0, 4.0)
    axes = figure.subplots()
    models = list(dict.fromkeys(name.split(", ")[0] for name in results))
    for name, found in results.items():  # LAMMPS as open squares, so that ASE is seen below
        style = {"marker": "s", "linestyle": "", "markersize": 10, "markerfacecolor": "none"}
        colour = CYCLE[models.index(name.split(", ")[0]) % 8]
        style = style if name.endswith("LAMMPS") else {"marker": "o"}
        axes.loglog(TIME_STEPS, 1e3 * np.array(found), color=colour, label=name, **style)
    first = 1e3 * min(found[0] for found in results.values()) / 2
    square = [first * (t / TIME_STEPS[0]) ** 2 for t in TIME_STEPS]
    axes.loglog(TIME_STEPS, square, "--", color="grey", label="slope 2")
    axes.set_xlabel("time step, fs")
    axes.set_ylabel("mean |H(t) - H(0)| / N, meV/atom")
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = subcommand(commands, prepare)
    command.add_argument("--n", type=int, default=240)
    command.add_argument("--max-atoms", type=int, default=54)
    command = subcommand(commands, run)
    command.add_argument("--data", default="W", choices=("W", "Mo", "Si"))
    command.add_argument("--models", nargs="+", required=True)
    command.add_argument("--twojmax", nargs="+", type=int, default=[4, 6, 8])
    command.add_argument("--recipe", action="store_true")
    command.add_argument("--tag", default="")
    subcommand(commands, table).add_argument("--picture", type=Path)
    command = subcommand(commands, nve, folder=False)
    command.add_argument("models", nargs="+", type=Path)
    command.add_argument("--picture", type=Path)
    command.add_argument("--lammps", action="store_true")
    argv = [*sys.argv[1:], "--"]
    args = parser.parse_args(argv[: argv.index("--")])
    args.overrides = argv[argv.index("--") + 1 : -1]
    args.run(args)


if __name__ == "__main__":
    main()
