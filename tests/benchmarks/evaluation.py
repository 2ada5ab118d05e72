"""Microseconds per atom of energy, forces and stress, beside SchNetPack's SchNet and PaiNN.

    python tests/benchmarks/evaluation.py [--threads N ...] [--json FILE] [--repeat 15]

Systems: 54-atom Mo with 24 functions within 5.0 Ang, the same with 39 functions within 5.2 Ang, and
1080 atoms of water with 27 and 30 functions within 12 bohr (structures and functions of another
code's files in the shared `reference` folder; without them the water is left out and the Mo
generated). Rows:

    kernels ...    the compiled symmetry functions alone: values, and values with the
                   vector-Jacobian product from which forces and stress follow
    reference ...  the same by the plain torch backend
    ACSF, SchNet, PaiNN   energy, forces and stress of a model (ours: two hidden layers of 16; the
                   others: 64 features, 3 interactions), the neighbour list excluded; `by modules`
                   is SchNetPack's way through autograd, which training takes
    dscribe        values, where it is installed and has the functions
    neighbour list ...    ours and matscipy's, for comparison

The codes take turns, and the best of `--repeat` turns counts: CPU time for one thread, wall time
for several. Compare rows of one run; absolute numbers of a busy machine mean little.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import schnetpack.nn as snn
import torch
from ase import Atoms
from ase.build import bulk
from environment import describe_machine, write_result
from matscipy.neighbours import neighbour_list
from schnetpack import properties
from schnetpack.atomistic import Atomwise, PairwiseDistances, Strain
from schnetpack.model import NeuralNetworkPotential
from schnetpack.representation import PaiNN, SchNet

from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelEngine
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceEngine
from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the readers of the tests


class System(NamedTuple):
    """A structure with its symmetry functions, in one unit of length."""

    name: str
    atoms: Atoms
    layout: Layout

    def pairs(self) -> tuple[torch.Tensor, ...]:
        """r_ij, idx_i, idx_j, offsets."""
        atoms = self.atoms
        idx_i, idx_j, r_ij, offsets = neighbor_pairs(
            atoms.positions, atoms.cell.array, atoms.pbc, self.layout.cutoff
        )
        return tuple(torch.from_numpy(x) for x in (r_ij, idx_i, idx_j, offsets))

    def inputs(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """A batch of this structure as SchNetPack's models take it."""
        atoms = self.atoms
        _, idx_i, idx_j, offsets = self.pairs()
        return {
            properties.Z: torch.from_numpy(atoms.numbers),
            properties.R: torch.tensor(atoms.positions, dtype=dtype),
            properties.cell: torch.tensor(atoms.cell.array, dtype=dtype)[None],
            properties.pbc: torch.tensor(atoms.pbc)[None],
            properties.n_atoms: torch.tensor([len(atoms)]),
            properties.idx_m: torch.zeros(len(atoms), dtype=torch.long),
            properties.idx_i: idx_i,
            properties.idx_j: idx_j,
            properties.offsets: offsets.to(dtype),
        }


def molybdenum_functions(cutoff: float, etas: tuple[float, ...], n_shifted: int) -> Layout:
    """8 radial functions at the origin and some shifted ones, 8 angular ones for each eta."""
    radial = [(eta, 0.0) for eta in np.geomspace(0.05, 4.0, 8)]
    radial += [(2.0, r_s) for r_s in np.linspace(1.5, 4.5, n_shifted)]
    functions = [SymmetryFunction("G2", (42,), cutoff, eta, r_s) for eta, r_s in radial]
    functions += [
        SymmetryFunction("G4", (42, 42), cutoff, eta, zeta=zeta, lam=lam)
        for eta in etas
        for zeta in (1, 2, 4, 16)
        for lam in (-1, 1)
    ]
    return Layout({42: functions})


def shared_system(name: str) -> System | None:
    """A potential and structure of the shared reference data, None without them."""
    import pytest
    from n2p2_reference import load

    try:
        found = load(name)
    except pytest.skip.Exception:
        return None
    return System(
        name, Atoms(found.numbers, found.positions, cell=found.cell, pbc=True), found.layout
    )


def systems() -> list[System]:
    """The three systems, as far as their data are there."""
    shared = shared_system("acsf24_Mo54")
    atoms = bulk("Mo", cubic=True).repeat(3)
    atoms.rattle(0.1, seed=0)
    atoms = atoms if shared is None else shared.atoms
    found = [
        System("Mo54, 24 functions", atoms, molybdenum_functions(5.0, (0.01, 0.05), 0)),
        System("Mo54, 39 functions", atoms, molybdenum_functions(5.2, (0.01, 0.05, 0.12), 7)),
    ]
    if shared is not None:
        found[0] = found[0]._replace(layout=shared.layout)
    water = shared_system("H2O_RPBE-D3")
    if water is None:
        print("no shared reference data (SOFTADAPT_SHARED): water is left out")
    else:
        found.append(water._replace(name="water 1080"))
    return found


def our_model(system: System, dtype: torch.dtype) -> DescriptorPotential:
    """An untrained potential whose scaling fits the structure."""
    torch.manual_seed(0)
    elements = system.layout.elements
    model = DescriptorPotential(
        representation=ACSF(layout=system.layout),
        output_modules=[
            ElementalAtomwise(n_hidden=(16, 16)),
            ForcesAndStress(calc_forces=True, calc_stress=True),
        ],
    ).to(dtype)
    n = model.representation.descriptor.n_columns
    table = np.broadcast_to(np.arange(1.0, n + 1), (len(elements), n))
    model.representation.scaling.set_statistics(0 * table, 10 * table, 5 * table, table)
    return model.eval()


def stock_model(representation: type, cutoff: float) -> NeuralNetworkPotential:
    """SchNetPack's own, 64 features and 3 interactions."""
    torch.manual_seed(0)
    return NeuralNetworkPotential(
        representation=representation(
            n_atom_basis=64,
            n_interactions=3,
            radial_basis=snn.GaussianRBF(n_rbf=20, cutoff=cutoff),
            cutoff_fn=snn.CosineCutoff(cutoff),
        ),
        input_modules=[Strain(), PairwiseDistances()],
        output_modules=[Atomwise(n_in=64, output_key="energy"), ForcesAndStress(calc_stress=True)],
    ).eval()


def dscribe_values(system: System) -> Callable | None:
    """Values of the angular and unshifted radial functions of one element by dscribe."""
    try:
        from dscribe.descriptors import ACSF as DscribeACSF
    except ImportError:
        return None
    functions = [f for values in system.layout.functions.values() for f in values]
    if len(system.layout.elements) > 1 or any(f.cutoff_fn != "cosine" for f in functions):
        return None
    descriptor = DscribeACSF(
        species=sorted(set(system.atoms.symbols)),
        r_cut=system.layout.cutoff,
        g2_params=[[f.eta, f.r_s] for f in functions if f.kind == "G2"],
        g4_params=[[f.eta, f.zeta, f.lam] for f in functions if f.kind == "G4"],
        periodic=True,
    )
    return lambda: descriptor.create(system.atoms)


def codes(system: System) -> dict[str, Callable]:
    """What is timed, by name."""
    r_ij, idx_i, idx_j, _ = system.pairs()
    numbers = torch.from_numpy(system.atoms.numbers)
    indices = (idx_i, idx_j, numbers)
    single = r_ij.float()
    kernels, reference = KernelEngine(system.layout), ReferenceEngine(system.layout)
    grad_g = torch.randn(len(numbers), system.layout.n_columns, dtype=torch.float64)

    def both(engine, r_ij):
        pairs = engine.prepare(r_ij, *indices)
        engine.values(pairs)
        engine.vjp(pairs, grad_g.to(r_ij.dtype))

    def evaluate(model, dtype):
        inputs = system.inputs(dtype)
        return lambda: model(dict(inputs))

    cutoff = system.layout.cutoff
    found = {
        "kernels, values, float64": lambda: kernels.values(kernels.prepare(r_ij, *indices)),
        "kernels, values + VJP, float64": lambda: both(kernels, r_ij),
        "kernels, values + VJP, float32": lambda: both(kernels, single),
        "reference, values + VJP, float64": lambda: both(reference, r_ij),
    }
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        found[f"ACSF, {name}"] = evaluate(our_model(system, dtype), dtype)
    model, inputs = our_model(system, torch.float64), system.inputs(torch.float64)
    found["ACSF by modules, float64"] = lambda: NeuralNetworkPotential.forward(model, dict(inputs))
    for representation in (SchNet, PaiNN):
        stock = stock_model(representation, cutoff)
        found[f"{representation.__name__}, float32"] = evaluate(stock, torch.float32)
    values = dscribe_values(system)
    if values is not None:
        found["dscribe, values"] = values
    atoms = system.atoms
    found["neighbour list, ours"] = lambda: neighbor_pairs(
        atoms.positions, atoms.cell.array, atoms.pbc, cutoff
    )
    found["neighbour list, matscipy"] = lambda: neighbour_list("ijDS", atoms, cutoff)
    return found


def measure(
    functions: dict[str, Callable], threads: int, repeat: int, calls: int = 1
) -> dict[str, float]:
    """Best seconds of each function in turns of some calls each.

    What ran before has emptied the caches for the first call of a turn.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(repeat + 1):  # the first compiles and warms up
        for name, function in functions.items():
            for _ in range(calls):
                start = clock()
                function()
                if turn:
                    best[name] = min(best[name], clock() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    n_cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, n_cores}))
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{describe_machine()}; microseconds per atom")
    rows = []
    for system in systems():
        n_atoms = len(system.atoms)
        functions = codes(system)
        n_neighbors = len(system.pairs()[1]) / n_atoms
        repeat = args.repeat if n_atoms < 200 else max(2, args.repeat // 5)
        print(f"\n{system.name}: {n_atoms} atoms, {n_neighbors:.0f} neighbours per atom")
        times = {}
        for threads in args.threads:
            torch.set_num_threads(threads)
            times[threads] = measure(functions, threads, repeat, 3 if n_atoms < 200 else 1)
        print(f"  {'':34s}" + "".join(f"{n:9d} thread(s)" for n in args.threads))
        for code in functions:
            per_atom = [1e6 * times[n][code] / n_atoms for n in args.threads]
            print(f"  {code:34s}" + "".join(f"{x:19.2f}" for x in per_atom))
            rows += [
                {
                    "system": system.name,
                    "code": code,
                    "threads": n,
                    "n_atoms": n_atoms,
                    "n_neighbors": n_neighbors,
                    "us_per_atom": x,
                }
                for n, x in zip(args.threads, per_atom, strict=True)
            ]
    if args.json:
        write_result(args.json, rows)


if __name__ == "__main__":
    main()
