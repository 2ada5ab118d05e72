"""LAMMPS with our exported potential: mliap, hdnnp and the ASE calculator, side by side.

    python tests/benchmarks/lammps.py [n ...]

n: edges of cubic cells of 2 n^3 Mo atoms. Needs `lmp` with ML-IAP (Python), PYTHON and ML-HDNNP.
Times are CPU seconds of the loop, so that other work on the machine does not count; "weak" is the
time of one rank with half of the atoms over that of two ranks with all.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))

import numpy as np
from ase.build import bulk
from deploy_models import make_model

from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.deploy.exchange.text import TextPotential, read_text
from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

STEPS = 20


def crystal(n: int, m: int):
    atoms = bulk("Mo", cubic=True) * (n, n, m)
    atoms.rattle(0.02, seed=0)
    return atoms


def lammps(folder: Path, style: str, ranks: int, steps: int) -> tuple[float, float, float]:
    """CPU seconds of the loop (the slowest rank's), of the whole, and memory of a rank in MB."""
    text = (folder / "in.lammps").read_text().replace("create 300.0", "create 10.0")
    text = text.replace("run             100", f"run {steps}")
    if style == "hdnnp":
        lines = text.splitlines()
        gone = ("pair_", "python", "compute", "fix             counts", '                "from')
        lines = [line for line in lines if not line.startswith(gone)]
        text = "\n".join(re.sub("^#(pair_| +cflength)", r"\1", line) for line in lines) + "\n"
        text = text.replace(" c_outside", "")
    (folder / "in.bench").write_text(text)
    command = ["mpirun", "--allow-run-as-root", "-np", str(ranks), "/usr/bin/time", "-f", "T %U %M"]
    done = subprocess.run(
        [*command, "lmp", "-in", "in.bench"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    (wall,) = re.findall(r"Loop time of (\S+)", done.stdout)
    (use,) = re.findall(r"(\S+)% CPU use", done.stdout)
    whole = [(float(a), float(b) / 1024) for a, b in re.findall(r"T (\S+) (\S+)", done.stderr)]
    return float(wall) * min(1.0, float(use) / 100), *max(whole)


def kernels(atoms, folder: Path) -> float:
    """CPU seconds of one evaluation of all atoms, neighbours given."""
    potential = TextPotential(read_text(folder))
    i, j, r_ij, _ = neighbor_pairs(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff)
    n = len(atoms)
    rows, one = np.zeros(n + 1, np.int64), np.full(len(j), n)
    potential(r_ij, i, one, rows, n)
    start = time.process_time()
    for _ in range(5):
        potential(r_ij, i, one, rows, n)
    return (time.process_time() - start) / 5


def main(sizes: list[int]) -> None:
    model = make_model(layout=default_layout(["Mo"], 5.0))
    print(model.representation.descriptor.title)
    print(
        "| atoms | what | ranks | us per step and atom | whole run, s | MB per rank |\n|"
        + "---|" * 6
    )
    for n in sizes:
        rates = {}
        for ranks, m in ((1, n), (2, n), (2, 2 * n)):
            atoms = crystal(n, m)
            with tempfile.TemporaryDirectory() as name:
                export_potential([model], name, atoms)
                if ranks == 1:
                    own = kernels(atoms, Path(name)) * 1e6 / len(atoms)
                    print(
                        f"| {len(atoms)} | kernels and networks alone | | {own:.1f} | | |",
                        flush=True,
                    )
                for style in ("mliap", "hdnnp") if m == n and n <= 12 else ("mliap",):
                    loop, whole, memory = lammps(Path(name), style, ranks, STEPS)
                    rate = loop * ranks * 1e6 / STEPS / len(atoms)
                    rates[style, ranks, m] = rate
                    row = f"{style} | {ranks} | {rate:.1f} | {whole:.1f} | {memory:.0f}"
                    print(f"| {len(atoms)} | {row} |", flush=True)
        print(f"weak scaling: {rates['mliap', 1, n] / rates['mliap', 2, 2 * n]:.2f}", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [8, 12])
