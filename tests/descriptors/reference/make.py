"""Makes the folder `HO`: a potential and a structure of our own, and what n2p2 computes for them.

    python make.py N2P2_VALUES

N2P2_VALUES is the program of `n2p2_values.cpp`, see README.md.
"""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "HO"
SYMBOLS = ("H", "O", "H", "O", "H")
N_HIDDEN = (4, 3)
# both elements, every kind of n2p2 that we have too, both signs, shifts, several cutoffs, integer
# and other exponents; not in the order in which n2p2 sorts them
FUNCTIONS = """\
H 2 H 0.3 0.0 4.0
H 2 O 0.2 1.0 3.5
H 2 H 1.1 1.5 4.0
H 2 H 0.3 0.0 3.2
H 3 H O 0.05 1 1 4.0
H 3 H O 0.05 -1 1 4.0
H 3 O O 0.03 1 2.5 3.5
H 3 H O 0.1 -1 4 4.0
H 9 H H 0.1 -1 3 3.8
H 9 H O 0.02 1 16 4.0 0.5
H 12 0.4 2.0 4.0
H 13 0.02 0.7 1 2 3.6
O 13 0.02 0.7 -1 1.3 3.6
O 3 H H 0.2 -1 7 3.9 1.0
O 2 O 0.3 0.0 4.0
O 9 O O 0.1 -1 1 4.0
O 9 H O 0.1 1 2 4.0
"""
HEADER = f"""\
# Length unit: Angstrom
# Energy unit: eV
number_of_elements 2
elements H O
atom_energy H -1.5
atom_energy O -20.25
cutoff_type 1
scale_symmetry_functions
center_symmetry_functions
scale_min_short 0.0
scale_max_short 1.0
global_hidden_layers_short {len(N_HIDDEN)}
global_nodes_short {" ".join(map(str, N_HIDDEN))}
global_activation_short {"t " * len(N_HIDDEN)}l
"""


def write(name: str, lines: list[str]) -> None:
    (FOLDER / name).write_text("\n".join(lines) + "\n")


def write_structure(rng: np.random.Generator) -> None:
    """A triclinic cell, smaller than the cutoffs, without close contacts."""
    cell = np.array([[3.6, 0.0, 0.0], [0.7, 3.3, 0.0], [-0.4, 0.5, 3.8]])
    images = np.array(list(np.ndindex(3, 3, 3))) - 1
    while True:
        scaled = rng.random((len(SYMBOLS), 3))
        shifts = scaled[:, None, None] - scaled[None, :, None] + images
        distances = np.linalg.norm(shifts @ cell, axis=-1)
        if distances[distances > 0].min() > 1.2:
            break
    lines = ["begin", *(f"lattice {a!r} {b!r} {c!r}" for a, b, c in cell.tolist())]
    for symbol, (x, y, z) in zip(SYMBOLS, (scaled @ cell).tolist(), strict=True):
        lines.append(f"atom {x!r} {y!r} {z!r} {symbol} 0.0 0.0 0.0 0.0 0.0")
    write("input.data", [*lines, "energy 0.0", "charge 0.0", "end"])


def write_scaling(rng: np.random.Generator) -> None:
    """A range around the values of the structure, different for each function."""
    rows = [line.split() for line in (FOLDER / "G_unscaled.txt").read_text().splitlines()[1:]]
    lines = []
    for element, symbol in enumerate(("H", "O"), 1):
        g = np.array([row[4:] for row in rows if row[1] == symbol], float)
        low, high = (g.mean(0) * rng.uniform(*x, g.shape[1]) for x in ((0.05, 0.1), (4.0, 8.0)))
        mean = low + rng.uniform(0.3, 0.7, g.shape[1]) * (high - low)
        for k, row in enumerate(np.stack([low, high, mean, 0.2 * (high - low)], 1).tolist(), 1):
            lines.append(f"{element} {k} " + " ".join(map(repr, row)))
    write("scaling.data", lines)


def write_weights(rng: np.random.Generator) -> None:
    for symbol, number in (("H", 1), ("O", 8)):
        sizes = (sum(line[0] == symbol for line in FUNCTIONS.splitlines()), *N_HIDDEN, 1)
        n = sum((a + 1) * b for a, b in pairwise(sizes))
        write(f"weights.{number:03d}.data", [repr(x) for x in rng.normal(0, 0.7, n).tolist()])


def main(program: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    functions = [f"symfunction_short {line}" for line in FUNCTIONS.splitlines()]
    write("input.nn", [*HEADER.splitlines(), *functions])
    write_structure(rng)
    subprocess.run([program, "unscaled"], cwd=FOLDER, check=True)
    write_scaling(rng)
    write_weights(rng)
    subprocess.run([program], cwd=FOLDER, check=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
