"""W-Be with and without ZBL below the recipe: errors of groups, dimers, a collision of 5 keV.

    python tests/benchmarks/baseline.py FOLDER [--data wbe.extxyz.xz] [--groups N] [--epochs N]

FOLDER gets databases, runs and `baseline.png`. Of each group N structures of at most 40 atoms; one
tenth for validation, one fifth for the test. Stress is left out: it is zero in half of the groups
and a thousandth of what the energies say in the others.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

#: name of a case: its settings
CASES = {
    "none": [],
    "zbl of the data": ["model/baseline=zbl_softadapt"],
    "zbl 4 4.8": [
        "model/baseline=zbl_softadapt",
        "model.postprocessors.0.inner=4.0",
        "model.postprocessors.0.outer=4.8",
    ],
}
SETTINGS = [
    "experiment=recommended_softadapt",
    "globals.cutoff=5.0",
    "model.representation.grid.n_radial=8",
    "model.representation.grid.n_angular_widths=2",
    "model.representation.grid.zetas=[1,4]",
    "data.num_train=0.7",
    "data.num_val=0.1",
    "data.num_test=0.2",
    "data.splitting=random",
    "trainer.accelerator=cpu",
    "print_config=false",
]


def subset(source: Path, path: Path, n_groups: int) -> None:
    """A database of some structures of each group."""
    rng, groups = np.random.default_rng(0), {}
    for atoms in ase.io.iread(source, ":"):
        if len(atoms) <= 40:
            groups.setdefault(str(atoms.info["group"]), []).append(atoms)
    structures = []
    for name, members in sorted(groups.items()):
        for k in sorted(rng.permutation(len(members))[:n_groups]):
            s = Structure.from_atoms(members[k], group=name)
            s.stress = None
            structures.append(s)
    write_database(path, structures, provenance="W-Be, PRB 99, 184305 (2019), a part")


def group_errors(folder: Path) -> dict[str, dict[str, float]]:
    """RMSE in meV/atom and meV/Ang of all and of each group of the test."""
    a = np.load(folder / "predictions" / "test.npz")
    first = np.concatenate([[0], np.cumsum(a["n_atoms"])])
    energy = 1e3 * (a["energy"] - a["energy_ref"]) / a["n_atoms"]
    forces = 1e3 * (a["forces"] - a["forces_ref"])
    group = a["group_names"][a["group"]]
    table = {}
    for name in ["all", *sorted(set(group))]:
        chosen = np.flatnonzero((group == name) | (name == "all"))
        rows = np.concatenate([np.arange(first[k], first[k + 1]) for k in chosen])
        found = (energy[chosen], forces[rows])
        table[name] = [float(np.sqrt(np.mean(x**2))) for x in found]
    return table


def dimer(calc, symbols: str, distances) -> np.ndarray:
    """Energies less that of the largest distance, eV."""
    found = []
    for r in distances:
        calc.calculate(Atoms(symbols, [[0, 0, 0], [r, 0, 0]]))
        found.append(calc.results["energy"])
    return np.array(found) - found[-1]


def collision(calc, step: float, energy: float = 5000.0):
    """An atom of a W crystal is shot at its neighbour; time (fs) and change of the total energy."""
    atoms = bulk("W", cubic=True, a=3.17) * (3, 3, 3)
    atoms.calc = calc
    vector = atoms.get_distance(0, 1, mic=True, vector=True)
    velocities = np.zeros((len(atoms), 3))
    speed = np.sqrt(2 * energy / atoms.get_masses()[0])
    velocities[0] = speed * vector / np.linalg.norm(vector)
    atoms.set_velocities(velocities)
    start, found, closest = atoms.get_total_energy(), [], np.inf
    md = VelocityVerlet(atoms, timestep=step * units.fs)
    try:
        for k in range(round(6.0 / step)):
            md.run(1)
            closest = min(closest, atoms.get_distance(0, 1, mic=True))
            found.append(((k + 1) * step, atoms.get_total_energy() - start))
    except ValueError as error:
        print("stopped:", error)
    return np.array(found), closest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    database, report = folder / "wbe.db", {}
    if not database.exists():
        subset(args.data, database, args.groups)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    distances = np.arange(0.1, 4.0, 0.02)
    for case, settings in CASES.items():
        name = case.replace(" ", "_")
        run = folder / "runs" / name
        words = [f"data.datapath={database}", f"trainer.max_epochs={args.epochs}", f"run.id={name}"]
        if not (run / "metrics.json").exists():
            spktrain = Path(sys.executable).with_name("spktrain")
            command = [str(spktrain), *SETTINGS, *words, *settings]
            subprocess.run(command, cwd=folder, env=os.environ, check=True)
        report[case] = {"errors": group_errors(run)}
        calc = SoftAdaptCalculator(run)
        for axis, symbols in zip(axes, ("W2", "WBe"), strict=False):
            energies = dimer(calc, symbols, distances)
            axis.plot(distances, energies, label=case)
            below = energies[distances < 1.5]
            report[case][symbols] = {
                "falls from 0.1 to 1.5 Ang": bool((np.diff(below) < 0).all()),
                "eV at 1.37 Ang": float(np.interp(1.37, distances, energies)),
                "eV at 0.1 Ang": float(energies[0]),
            }
            axis.set(title=symbols, xlabel="distance (Ang)", ylabel="energy (eV)", yscale="symlog")
        for step, style in ((0.02, "--"), (0.01, "-")):
            (curve, closest) = collision(calc, step)
            report[case][f"collision, {step} fs"] = {
                "largest change, eV": float(np.abs(curve[:, 1]).max()),
                "change at the end, eV": float(curve[-1, 1]),
                "closest, Ang": float(closest),
                "fs": float(curve[-1, 0]),
            }
            color = axes[0].lines[-1].get_color()
            axes[2].plot(*curve.T, style, color=color, label=f"{case}, {step} fs")
        print(json.dumps({case: report[case]}), flush=True)
    axes[2].set(title="5 keV in W", xlabel="time (fs)", ylabel="change of energy (eV)")
    axes[2].set_yscale("symlog", linthresh=0.1)
    axes[0].legend()
    figure.savefig(folder / "baseline.png", dpi=90)
    (folder / "baseline.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
