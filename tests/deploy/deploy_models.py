"""Small untrained models and structures for the tests of `deploy`."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, mx2

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["CUTOFF", "make_layout", "make_model", "mo", "mote2"]

CUTOFF = 4.5


def make_layout(cutoff_fn: str = "cosine") -> Layout:
    """Mo with seven functions, Te with five, of all kinds that n2p2 knows; not in its order."""

    def f(kind, neighbors, eta, **kwargs):
        kwargs.setdefault("cutoff", CUTOFF)
        return SymmetryFunction(kind, neighbors, eta=eta, cutoff_fn=cutoff_fn, **kwargs)

    return Layout(
        {
            "Mo": [
                f("G4", (52, 42), 0.02, zeta=2, lam=1),
                f("G2", (42,), 0.3, r_s=1.5),
                f("G2", (52,), 0.1),
                f("G2", (42,), 0.1),
                f("G5", (42, 42), 0.05, zeta=4, lam=-1, cutoff=4.0),
                f("wG2", (), 0.2, r_s=0.5),
                f("G4", (42, 42), 0.02, zeta=1, lam=-1),
            ],
            "Te": [
                f("wG4", (), 0.03, zeta=2, lam=1),
                f("G2", (52,), 0.2),
                f("G2", (42,), 0.2),
                f("G5", (42, 52), 0.02, zeta=1, lam=1),
                f("G2", (42,), 0.2, cutoff=4.0),
            ],
        }
    )


def make_model(
    seed: int = 0,
    scaling: str = "scale_center",
    activation: str = "tanh",
    layout: Layout | None = None,
    stress: bool = True,
) -> DescriptorPotential:
    """A float64 model with random weights whose scaling is fitted to a few rattled structures."""
    torch.manual_seed(seed)
    layout = layout or make_layout()
    networks = ElementalAtomwise(
        n_hidden=(6, 5),
        activation=activation,
        per_atom_output_key=keys.atomic_energies,
        fit_shifts=False,
        shifts={"Mo": -10.0, "Te": -3.5},
        fit_scale=False,
    )
    model = DescriptorPotential(
        representation=ACSF(layout=layout, scaling=scaling),
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=stress)],
    ).double()
    for bias in networks.biases:
        torch.nn.init.normal_(bias, std=0.3)
    networks.scale = torch.tensor(0.7, dtype=torch.float64)
    values = []
    for structure in (mo(0.3, seed=1), mote2(0.3, seed=2), mote2(0.2, seed=3)):
        if not set(structure.numbers) <= set(layout.elements):
            continue
        idx_i, idx_j, r_ij, _ = neighbor_pairs(
            structure.positions, structure.cell.array, structure.pbc, layout.cutoff
        )
        z = torch.from_numpy(structure.numbers)
        engine = layout.engine()
        values.append((engine.values(engine.prepare(r_ij, idx_i, idx_j, z)), z))
    model.representation.scaling.fit(values)
    model.metadata = {"units": {"energy": "eV", "length": "Ang"}}
    return model.eval()


def mo(rattle: float = 0.1, seed: int = 0, n: int = 2) -> Atoms:
    """A rattled cubic bcc cell of 2 n^3 Mo atoms."""
    atoms = bulk("Mo", cubic=True) * (n, n, n)
    atoms.rattle(rattle, seed=seed)
    return atoms


def mote2(rattle: float = 0.1, seed: int = 0) -> Atoms:
    """A rattled 2 x 2 layer of MoTe2 in a periodic box, strained a little."""
    atoms = mx2("MoTe2", kind="2H", a=3.55, thickness=3.6, size=(2, 2, 1), vacuum=2.0)
    atoms.pbc = True
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms
