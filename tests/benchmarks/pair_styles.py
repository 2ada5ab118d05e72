"""CPU time of SNAP potentials and cluster expansions: by the ASE calculator and by LAMMPS.

Energy, forces and stress, in turns on the same crystals, which move a little at every step; us per
atom and step, the median over the turns. LAMMPS rebuilds its neighbour list when it must, like the
calculator.

    python tests/benchmarks/pair_styles.py snap|pace [--potential FILE] [--turns 5] [--json FILE]

With an `lmp` on PATH (the program itself) that has ML-SNAP or ML-PACE beside ours; the potential is
a published one of copper for `pair_style pace`, `Cu-PBE-core-rep.ace`.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("style", choices=("snap", "pace"))
parser.add_argument("--potential", metavar="FILE", help="a published potential of copper")
parser.add_argument("--turns", type=int, default=5)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy, torch and numba are loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.io import write  # noqa: E402
from environment import write_result  # noqa: E402

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator  # noqa: E402
from schnetpack_softadapt.deploy.exchange.pace import read_pace, write_pace  # noqa: E402
from schnetpack_softadapt.deploy.exchange.snap import read_snap  # noqa: E402
from schnetpack_softadapt.descriptors.ace import ClusterExpansion  # noqa: E402
from schnetpack_softadapt.model import (  # noqa: E402
    ACE,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
)

#: name: (crystal, lattice constant, copies, elements, twojmax or number of functions, Ang)
SYSTEMS = {
    "snap": {
        "Mo 2J=6": ("bcc", 3.16, 8, ("Mo",), 6, 4.6),
        "Mo 2J=8": ("bcc", 3.16, 8, ("Mo",), 8, 4.73),
        "W-Be 2J=8": ("bcc", 3.16, 8, ("W", "Be"), 8, 4.8123),
        "Ge 2J=8": ("diamond", 5.76, 5, ("Ge",), 8, 5.5),
    },
    "pace": {
        "Cu, 751": ("fcc", 3.61, 4, ("Cu",), 751, 7.4),
        "Mo, 100": ("bcc", 3.16, 5, ("Mo",), 100, 5.0),
        "Mo, 700": ("bcc", 3.16, 5, ("Mo",), 700, 5.0),
        "W-Be, 300": ("bcc", 3.16, 5, ("W", "Be"), 300, 4.8),
    },
}
LAMMPS = """
units metal
atom_modify map array
read_data structure.data
mass * 50.0
pair_style {style}
pair_coeff * * {files} {elements}
velocity all create 300 1
fix 1 all nve
timestep 0.0001
thermo 1
thermo_style custom step pe press
run 2
print done append done
"""
_TICK = os.sysconf("SC_CLK_TCK")


def bispectrum(folder: Path, elements: tuple[str, ...], twojmax: int, cutoff: float):
    """A potential with small random coefficients, and its files."""
    n = {6: 30, 8: 55}[twojmax]
    lines = [f"{len(elements)} {n + 1}"]
    rng = np.random.default_rng(0)
    for element in elements:
        lines += [f"{element} 0.5 1.0", *map(repr, (rng.normal(size=n + 1) * 1e-4).tolist())]
    path = folder / "x.snapcoeff"
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".snapparam").write_text(f"rcutfac {cutoff}\ntwojmax {twojmax}\n")
    return read_snap(path), "x.snapcoeff x.snapparam"


def expansion(folder: Path, elements: tuple[str, ...], n_functions: int, cutoff: float):
    """Two densities with small random coefficients, and their file."""
    d = ClusterExpansion(elements, cutoff, "chebyshev", n_functions=n_functions, l_weight=0.5)
    networks = ElementalAtomwise(
        n_in=d.n_columns, elements=elements, n_hidden=(2,), activation="finnis_sinclair"
    )
    model = DescriptorPotential(
        representation=ACE(descriptor=d, scaling="none"),
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
        input_dtype_str="float64",
    ).double()
    with torch.no_grad():
        networks.weights[0].mul_(1e-6)
    model.metadata["units"] = {"energy": "eV", "forces": "eV/Ang", "length": "Ang"}
    write_pace(model.eval(), folder / "x.yace")
    return model, "x.yace"


class Lammps:
    """LAMMPS waiting for steps to do."""

    def __init__(self, folder: Path, files: str, elements: tuple[str, ...]):
        self.done, self.finished = folder / "done", 0
        self.process = subprocess.Popen(
            ["lmp", "-log", "none", "-screen", "none"], stdin=subprocess.PIPE, text=True, cwd=folder
        )
        self.send(LAMMPS.format(style=args.style, files=files, elements=" ".join(elements)))

    def send(self, text: str) -> float:
        """CPU seconds of some commands, the last of which appends a line to `done`."""
        before = self.seconds()
        self.process.stdin.write(text)
        self.process.stdin.flush()
        self.finished += 1
        while not self.done.exists() or self.done.read_text().count("\n") < self.finished:
            if self.process.poll() is not None:
                raise SystemExit(f"lmp ended: does it have ML-{args.style.upper()}?")
            time.sleep(0.01)
        return self.seconds() - before

    def seconds(self) -> float:
        """User and system time so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICK

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, folder: Path) -> dict:
    """us per atom and step of both."""
    systems = SYSTEMS[args.style]
    crystal, a, copies, elements, size, cutoff = systems.get(name) or systems["Cu, 751"]
    atoms = bulk(elements[0], crystal, a=a, cubic=True).repeat(copies)
    rng = np.random.default_rng(1)
    if len(elements) > 1:
        atoms.symbols = rng.choice(elements, len(atoms), p=[0.8, 0.2])
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    if name not in systems:
        files = str(Path(args.potential).resolve())
        model = read_pace(files)
    else:
        make = bispectrum if args.style == "snap" else expansion
        model, files = make(folder, elements, size, cutoff)
    write(folder / "structure.data", atoms, format="lammps-data", specorder=list(elements))
    atoms.calc = SoftAdaptCalculator(model)
    atoms.get_forces()
    other = Lammps(folder, files, elements) if shutil.which("lmp") else None
    theirs, ours, n = [], [], args.steps * len(atoms)
    for _ in range(args.turns):
        start = time.process_time()
        for _ in range(args.steps):
            atoms.positions += rng.normal(scale=0.004, size=atoms.positions.shape)
            atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        ours.append((time.process_time() - start) / n)
        if other:
            theirs.append(other.send(f"run {args.steps} post no\nprint done append done\n") / n)
    row = {"atoms": len(atoms), "ours": 1e6 * float(np.median(ours))}
    if other:
        other.close()
        row["lammps"] = 1e6 * float(np.median(theirs))
        row["ratio"] = float(np.median(np.divide(theirs, ours)))
    return row


def main() -> None:
    """Print the table."""
    rows = []
    print("| potential | atoms | ours, us/atom | LAMMPS, us/atom | ratio |\n|---|---|---|---|---|")
    for name in ([Path(args.potential).stem] if args.potential else []) + [*SYSTEMS[args.style]]:
        with tempfile.TemporaryDirectory() as folder:
            row = {"potential": name, **compare(name, Path(folder))}
        rows.append(row)
        other = [f"{row[x]:.1f}" if x in row else "-" for x in ("lammps", "ratio")]
        print(f"| {name} | {row['atoms']} | {row['ours']:.1f} | {' | '.join(other)} |", flush=True)
    if args.json:
        write_result(args.json, rows)


main()
