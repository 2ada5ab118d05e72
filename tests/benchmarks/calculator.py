"""Steps per second of the ASE calculator, and what it spends outside of descriptors and network.

Each system moves as in molecular dynamics (a little at every step), so that neighbour lists are
rebuilt as often as they would be. Rows of one run are comparable, absolute numbers of different
machines are not.

    python tests/benchmarks/calculator.py [--threads 1] [--json FILE] [--steps 50]
"""

import argparse
import os
import time
import warnings

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--systems", nargs="*", default=["Mo54", "Mo1000", "MoTe2"])
parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = str(args.threads)  # before numpy, torch and numba are loaded

import numpy as np  # noqa: E402
import schnetpack.nn as snn  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import bulk, mx2  # noqa: E402
from environment import write_result  # noqa: E402
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances  # noqa: E402
from schnetpack.interfaces import AtomsConverter, SpkCalculator  # noqa: E402
from schnetpack.model import NeuralNetworkPotential  # noqa: E402
from schnetpack.representation import SchNet  # noqa: E402
from schnetpack.transform import MatScipyNeighborList  # noqa: E402

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator  # noqa: E402
from schnetpack_softadapt.descriptors.acsf.grids import default_layout  # noqa: E402
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction  # noqa: E402
from schnetpack_softadapt.model import (  # noqa: E402
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.compiled_networks import CompiledNetworks  # noqa: E402
from schnetpack_softadapt.model.composition import take_apart  # noqa: E402
from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces  # noqa: E402

CUTOFF = 5.0
#: largest displacement per step, Ang: 300 K and 2 fs
STEP = 0.01


def layout(elements: list[str]) -> Layout:
    """As the paper's potential: 8 radial and 16 angular functions for each neighbour (pair)."""
    functions = []
    for k, first in enumerate(elements):
        functions += [
            SymmetryFunction("G2", (z(first),), CUTOFF, eta) for eta in np.geomspace(0.05, 4, 8)
        ]
        for second in elements[k:]:
            functions += [
                SymmetryFunction("G4", (z(first), z(second)), CUTOFF, eta, zeta=zeta, lam=lam)
                for eta in (0.01, 0.05)
                for zeta in (1, 2, 4, 16)
                for lam in (-1, 1)
            ]
    return Layout(dict.fromkeys(elements, functions))


def z(symbol: str) -> int:
    """Atomic number."""
    return Atoms(symbol).numbers[0]


def recipe(elements: list[str]) -> Layout:
    """As `experiment=recommended_softadapt`: 60 functions for one element, within 6 and 5 Ang."""
    return default_layout(elements, 6.0, n_radial=20, n_angular_widths=4, zetas=[1, 2, 4, 8, 16])


def acsf_model(atoms: Atoms, functions: Layout | None = None) -> DescriptorPotential:
    """Untrained, with a scaling that fits no structure badly."""
    torch.manual_seed(0)
    elements = sorted(set(atoms.get_chemical_symbols()))
    model = DescriptorPotential(
        representation=ACSF(layout=functions or layout(elements)),
        output_modules=[
            ElementalAtomwise(n_hidden=(16, 16)),
            ForcesAndStress(calc_forces=True, calc_stress=True),
        ],
    ).double()
    n = model.representation.descriptor.n_columns
    table = np.broadcast_to(np.arange(1.0, n + 1), (len(elements), n))
    model.representation.scaling.set_statistics(0 * table, 10 * table, 5 * table, table)
    model.metadata = {"units": {"energy": "eV", "length": "Ang"}}
    return model.eval()


def schnet_model() -> NeuralNetworkPotential:
    """64 features, 3 interactions."""
    torch.manual_seed(0)
    return NeuralNetworkPotential(
        representation=SchNet(
            n_atom_basis=64,
            n_interactions=3,
            radial_basis=snn.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
            cutoff_fn=snn.CosineCutoff(CUTOFF),
        ),
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=64, output_key="energy"), Forces()],
    ).eval()


def spk_calculator(model, dtype, folder: str) -> SpkCalculator:
    path = os.path.join(folder, "best_model")
    torch.save(model, path)  # SchNetPack 2.1.1 takes only a path
    return SpkCalculator(
        path,
        MatScipyNeighborList(CUTOFF),
        stress_key="stress",
        energy_unit="eV",
        dtype=dtype,
        converter=AtomsConverter,
    )


def steps_per_second(atoms: Atoms, calculator, n_steps: int) -> float:
    """Energy, forces and stress at positions that move like in dynamics."""
    atoms = atoms.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(0)
    velocity = rng.uniform(-STEP, STEP, atoms.positions.shape)
    atoms.get_forces()  # compiles and builds the list
    seconds = 0.0
    for step in range(n_steps):
        if step % 10 == 0:  # turn back before the structure melts
            velocity = rng.uniform(-STEP, STEP, atoms.positions.shape) - 0.0
        atoms.positions += velocity * (1 if step % 20 < 10 else -1)
        start = time.perf_counter()
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.calc.get_property("stress", atoms)
        seconds += time.perf_counter() - start
    return n_steps / seconds


def overhead(atoms: Atoms, functions: Layout, n: int) -> dict[str, float]:
    """CPU seconds of a step of dynamics in ASE with the skin list valid, and of its large parts.

    The step asks for forces and energy at new positions. `overhead` is what is none of the others.
    """
    calculator = SoftAdaptCalculator(acsf_model(atoms, functions))
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_forces()
    evaluator, neighbors = calculator._evaluators[0].evaluator, calculator.neighbors
    model, engine = take_apart(calculator.model), evaluator.engine
    networks = CompiledNetworks(model.networks, model.scaling)
    rows = model.scaling.index.rows.numpy()[atoms.numbers]
    idx_m = np.zeros(len(atoms), np.int64)
    moves = np.random.default_rng(0).uniform(-STEP, STEP, (n, *atoms.positions.shape)) / 10
    times = {name: [] for name in ("step", "descriptors", "network", "pair list", "force sums")}

    def timed(name, function, *arguments):
        start = time.process_time()
        result = function(*arguments)
        times[name].append(time.process_time() - start)
        return result

    def step():
        atoms.get_forces()
        atoms.get_potential_energy()

    def parts():
        pairs = timed("pair list", neighbors.update, atoms.positions, atoms.cell.array, atoms.pbc)
        arrays = pairs.r_ij, pairs.idx_i, pairs.idx_j, atoms.numbers
        ready = timed("descriptors", engine.prepare, *arrays)
        values = timed("descriptors", engine.values, ready)
        _, gradient = timed("network", networks, rows, values)
        gradient = timed("descriptors", engine.vjp, ready, gradient)
        sums = np.zeros((len(atoms), 3)), np.zeros((1, 3, 3))
        arrays = pairs.idx_i, pairs.idx_j, pairs.r_ij, gradient
        timed("force sums", add_pair_forces, *arrays, idx_m, *sums)

    # in turns, so that what else runs on the machine disturbs all alike; each at new positions,
    # since a second time at the same ones is faster
    for k in range(2 * n):
        atoms.positions += moves[k % n] - (moves[(k - 1) % n] if k else 0.0)
        timed("step", step) if k % 2 else parts()
    times["descriptors"] = np.reshape(times["descriptors"], (n, 3)).sum(1)
    result = {name: float(np.median(values)) for name, values in times.items()}
    result["overhead"] = result["step"] - sum(v for k, v in result.items() if k != "step")
    return result


def print_overhead(name: str, times: dict[str, float], n_atoms: int) -> None:
    """One row of a table, us per atom."""
    columns = "  ".join(f"{key} {1e6 * value / n_atoms:6.2f}" for key, value in times.items())
    print(f"  {name:8s} us/atom: {columns}  ({times['overhead'] / times['step']:.0%})", flush=True)


def main() -> None:
    import tempfile

    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    layer = mx2("MoTe2", kind="2H", a=3.55, thickness=3.6, size=(4, 4, 1), vacuum=2.0)
    layer.pbc = True
    systems = {
        "Mo54": bulk("Mo", cubic=True) * (3, 3, 3),
        "Mo1000": bulk("Mo", cubic=True) * (8, 8, 8),  # 1024 atoms
        "MoTe2": layer,
    }
    table = {}
    for name in args.systems:
        atoms = systems[name]
        atoms.rattle(0.05, seed=0)
        n = max(5, args.steps if len(atoms) < 200 else args.steps // 5)
        model = acsf_model(atoms)
        with tempfile.TemporaryDirectory() as folder:
            rows = {
                "ours, float64": SoftAdaptCalculator(model),
                "ours, float32": SoftAdaptCalculator(model, dtype="float32"),
                "SpkCalculator, our model, float64": spk_calculator(model, torch.float64, folder),
                "SpkCalculator, SchNet, float32": spk_calculator(
                    schnet_model(), torch.float32, folder
                ),
            }
        table[name] = {"n_atoms": len(atoms), "steps_per_second": {}}
        print(f"{name}: {len(atoms)} atoms, {args.threads} thread(s)")
        for label, calculator in rows.items():
            rate = steps_per_second(atoms, calculator, n)
            table[name]["steps_per_second"][label] = rate
            print(f"  {label:36s} {rate:10.1f} steps/s  {1e6 / rate / len(atoms):9.2f} us/atom")
        table[name]["seconds"] = overhead(atoms, layout(sorted(set(atoms.symbols))), n)
        print_overhead(name, table[name]["seconds"], len(atoms))
    print("the recipe of recommended_softadapt, CPU time")
    for cells in ((5, 1, 1), (3, 3, 3), (5, 5, 2)):
        atoms = bulk("Mo", cubic=True) * cells
        atoms.rattle(0.05, seed=0)
        times = overhead(atoms, recipe(["Mo"]), 10 * args.steps)
        name = f"recipe, Mo{len(atoms)}"
        table[name] = {"n_atoms": len(atoms), "seconds": times}
        print_overhead(name, times, len(atoms))
    if args.json:
        rows = [{"system": name, **content} for name, content in table.items()]
        write_result(args.json, rows, threads=args.threads)


if __name__ == "__main__":
    main()
