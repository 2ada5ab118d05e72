"""Molecular dynamics at constant pressure: does the conserved quantity drift, and does it matter?

    python tests/benchmarks/npt.py MODEL STRUCTURE [--repeat 4 4 1] [--ps 10] [--plot FILE]

Dynamics of Martyna, Tobias and Klein (J. Chem. Phys. 101, 4177, 1994; in ASE) from one start at
each time step. The conserved quantity of a smooth potential fluctuates with the square of the time
step and has no drift beyond that; a force that is not the derivative of the energy, a stress of the
wrong size, or a neighbour list that misses pairs shows as a drift that a smaller step does not
cure. Prints, for each step, the drift over the run (least squares) and the standard deviation about
it per atom, temperature, pressure and cell.

Of a slab (`--slab`) only the two lattice vectors in the plane move.
"""

import argparse
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.nose_hoover_chain import IsotropicMTKNPT, MaskedMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from environment import write_result

from schnetpack_softadapt.deploy import SoftAdaptCalculator


def run(start: Atoms, calculator, time_step: float, args) -> dict[str, np.ndarray | float]:
    """One trajectory; values every 10 fs. Time step in fs."""
    atoms = start.copy()
    atoms.calc = calculator
    settings = {
        "timestep": time_step * units.fs,
        "temperature_K": args.temperature,
        "pressure_au": 0.0,
        "tdamp": 100 * units.fs,
        "pdamp": 1000 * units.fs,
    }
    if args.slab:
        # an array: ASE 3.29 indexes with the mask, and with a tuple nothing moves
        dynamics = MaskedMTKNPT(atoms, mask=np.array([True, True, False]), **settings)
    else:
        dynamics = IsotropicMTKNPT(atoms, **settings)
    rows = []

    def record() -> None:
        stress = atoms.get_stress(include_ideal_gas=True)
        rows.append(
            (
                dynamics.get_time() / (1e3 * units.fs),
                dynamics.get_conserved_energy() / len(atoms),
                atoms.get_temperature(),
                -stress[: 2 if args.slab else 3].mean() / units.GPa,
                *atoms.cell.lengths(),
            )
        )

    dynamics.attach(record, interval=max(1, round(10.0 / time_step)))
    before = time.perf_counter()
    dynamics.run(round(1e3 * args.ps / time_step))
    seconds = time.perf_counter() - before
    ps, conserved, temperature, pressure, a, b, c = np.array(rows).T
    settled = ps > 0.1 * args.ps
    slope, constant = np.polyfit(ps, conserved, 1)
    return {
        "time_step_fs": time_step,
        "drift_meV_per_atom": 1e3 * slope * args.ps,
        "deviation_meV_per_atom": 1e3 * float(np.std(conserved - slope * ps - constant)),
        "temperature_K": float(temperature[settled].mean()),
        "pressure_GPa": float(pressure[settled].mean()),
        "lengths_Ang": [float(x[settled].mean()) for x in (a, b, c)],
        "us_per_step_and_atom": 1e6 * seconds * time_step / (1e3 * args.ps) / len(atoms),
        "series": {
            "ps": ps,
            "conserved": 1e3 * (conserved - conserved[0]),
            "temperature": temperature,
            "area or volume": a * b if args.slab else a * b * c,
        },
    }


def plot(results: list[dict], name: str, slab: bool, path: Path) -> None:
    """Conserved quantity, temperature and cell over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    labels = {
        "conserved": "conserved quantity,\nmeV/atom",
        "temperature": "temperature, K",
        "area or volume": "area, Ang$^2$" if slab else "volume of the edges, Ang$^3$",
    }
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for result, colour in zip(results, ("#0072B2", "#D55E00", "#009E73"), strict=False):
            series = result["series"]
            axis.plot(
                series["ps"],
                series[key],
                color=colour,
                linewidth=0.9,
                label=f"{result['time_step_fs']:g} fs",
            )
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper right", ncols=len(results))
    axes[0].set_title(name)
    axes[-1].set_xlabel("time, ps")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("structure")
    parser.add_argument("--repeat", type=int, nargs=3, default=(1, 1, 1))
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--fs", type=float, nargs="+", default=[2.0, 1.0])
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--slab", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    start = read(args.structure).repeat(args.repeat)
    start.pbc = True  # ASE's NPT asks for it; a slab has its vacuum
    rng = np.random.default_rng(1)
    # twice the temperature, half of it goes into the positions
    MaxwellBoltzmannDistribution(start, temperature_K=2 * args.temperature, rng=rng)
    Stationary(start)
    calculator = SoftAdaptCalculator(args.model)
    name = f"{start.get_chemical_formula()}, {args.temperature:g} K, zero pressure"
    print(f"{name}; {args.ps:g} ps")
    print("  fs  drift, meV/atom  deviation, meV/atom       K      GPa  lengths, Ang  us/step/atom")
    results = []
    for time_step in args.fs:
        result = run(start, calculator, time_step, args)
        results.append(result)
        lengths = " ".join(f"{x:.3f}" for x in result["lengths_Ang"])
        print(
            f"{time_step:4g} {result['drift_meV_per_atom']:16.4f}"
            f" {result['deviation_meV_per_atom']:20.4f} {result['temperature_K']:7.1f}"
            f" {result['pressure_GPa']:8.3f}  {lengths} {result['us_per_step_and_atom']:8.1f}",
            flush=True,
        )
    for a, b in pairwise(results):
        order = np.log(a["deviation_meV_per_atom"] / b["deviation_meV_per_atom"]) / np.log(
            a["time_step_fs"] / b["time_step_fs"]
        )
        steps = f"{a['time_step_fs']:g} to {b['time_step_fs']:g} fs"
        print(f"order in the time step, {steps}: {order:.2f}")
    if calculator.extrapolation is not None:
        print(calculator.extrapolation.summary())
    if args.plot:
        plot(results, name, args.slab, args.plot)
    if args.json:
        rows = [{k: v for k, v in result.items() if k != "series"} for result in results]
        write_result(args.json, rows)


if __name__ == "__main__":
    main()
