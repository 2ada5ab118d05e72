"""LAMMPS with our exported potential: mliap, its kernels, hdnnp and the ASE calculator.

    python tests/benchmarks/lammps.py [n ...] [--ranks 1 2] [--styles mliap hdnnp ase] [--repeat 2]

n: edges of cubic cells of 2 n^3 Mo atoms (on two ranks also of twice as many, for weak scaling).
Needs `lmp` with ML-IAP (Python), PYTHON and ML-HDNNP. Times are CPU seconds of the loop, so that
other work on the machine does not count; those of the kernels are measured within the same run.
Rows with less time are kept of repeated ones, which take turns.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from deploy_models import make_model

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.descriptors.acsf.grids import default_layout


def crystal(n: int, m: int):
    atoms = bulk("Mo", cubic=True) * (n, n, m)
    atoms.rattle(0.02, seed=0)
    return atoms


def lammps(folder: Path, style: str, ranks: int, steps: int) -> tuple[float, ...]:
    """CPU seconds of the slowest rank: of the loop, of its kernels, of the whole; wall seconds of
    the loop; memory of a rank in MB."""
    text = (folder / "in.lammps").read_text().replace("create 300.0", "create 10.0")
    text = text.replace("run             100", f"run {steps}")
    if style == "hdnnp":
        lines = text.splitlines()
        gone = ("pair_", "python", "compute", "fix             counts", '                "from')
        lines = [line for line in lines if not line.startswith(gone)]
        text = "\n".join(re.sub("^#(pair_| +maxew)", r"\1", line) for line in lines) + "\n"
        text = text.replace(" c_outside", "").replace("maxew 1000000", "maxew 1000000000")
    else:
        (folder / "timed.mliap").write_text("clammps_timed\nload\n(Vpotential.json\ntR.")
        text = text.replace("unified potential.mliap", "unified timed.mliap")
    (folder / "in.bench").write_text(text)
    shutil.copy(Path(__file__).with_name("lammps_timed.py"), folder)
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    for file in folder.glob("kernels.*"):
        file.unlink()
    command = ["mpirun", "--allow-run-as-root", "-np", str(ranks)]
    command += ["/usr/bin/time", "-f", "T %U %M", "lmp", "-in", "in.bench"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[:3000])
    (wall,) = re.findall(r"Loop time of (\S+)", done.stdout)
    (use,) = re.findall(r"(\S+)% CPU use", done.stdout)
    whole = [(float(a), float(b) / 1024) for a, b in re.findall(r"T (\S+) (\S+)", done.stderr)]
    loop, kernels = float(wall) * min(1.0, float(use) / 100), 0.0
    for file in folder.glob("kernels.*"):
        times = np.loadtxt(file)  # begin and end of each call; the first is of setup
        loop = max(loop, times[-1, 1] - times[0, 1])
        kernels = max(kernels, (times[1:, 1] - times[1:, 0]).sum())
    cpu, memory = max(whole)
    return loop, kernels, cpu, float(wall), memory


def ase(model, atoms, steps: int) -> tuple[float, ...]:
    """As above, with our calculator and ASE's Verlet."""
    atoms.calc = SoftAdaptCalculator(model)
    MaxwellBoltzmannDistribution(atoms, temperature_K=10)
    md = VelocityVerlet(atoms, timestep=units.fs)
    md.run(1)
    cpu, wall = time.process_time(), time.perf_counter()
    md.run(steps)
    return time.process_time() - cpu, 0.0, 0.0, time.perf_counter() - wall, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="*", type=int, default=[8, 12])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--styles", nargs="+", default=["mliap", "hdnnp", "ase"])
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    model = make_model(layout=default_layout(["Mo"], 5.0))
    print(model.representation.descriptor.title)
    print("| atoms | what | ranks | us per step and atom, CPU | wall | whole, s | MB per rank |")
    print("|---" * 7 + "|")
    for n in args.n:
        runs = [(r, m, s) for r in args.ranks for m in (n, 2 * n)[:r] for s in args.styles]
        runs = [(r, m, s) for r, m, s in runs if s == "mliap" or (m == n and n <= 12)]
        runs = [(r, m, s) for r, m, s in runs if r == 1 or s != "ase"]
        found = {}
        with tempfile.TemporaryDirectory() as name:
            for _ in range(args.repeat):
                for ranks, m, style in runs:
                    atoms = crystal(n, m)
                    steps = max(
                        4, min(100, 200_000 // len(atoms)) // (5 if style == "hdnnp" else 1)
                    )
                    if style == "ase":
                        result = ase(model, atoms, steps)
                    else:
                        export_potential([model], name, atoms)
                        result = lammps(Path(name), style, ranks, steps)
                    per = ranks * 1e6 / steps / len(atoms)
                    cpu, kernels, whole, wall, memory = result
                    row = cpu * per, kernels * per, wall * per, whole, memory
                    found[ranks, m, style] = min(found.get((ranks, m, style), row), row)
        for (ranks, m, style), (cpu, kernels, wall, whole, memory) in found.items():
            start = f"| {2 * n * n * m} |"
            rest = f"{whole:.1f} | {memory:.0f} |" if whole else "| |"
            print(f"{start} {style} | {ranks} | {cpu:.1f} | {wall:.1f} | {rest}", flush=True)
            if kernels:
                more = f"{100 * (cpu / kernels - 1):+.0f} %"
                print(f"{start} its kernels | {ranks} | {kernels:.1f} | {more} | | |", flush=True)
        if {(1, n, "mliap"), (2, 2 * n, "mliap")} <= set(found):
            one, two = found[1, n, "mliap"], found[2, 2 * n, "mliap"]
            print(f"weak scaling: {one[0] / two[0]:.2f} CPU, {one[2] / two[2]:.2f} wall")


if __name__ == "__main__":
    main()
