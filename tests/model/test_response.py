"""Stress and forces of a pair potential, where every number is known in closed form."""

import numpy as np
import pytest
import torch
from schnetpack import properties
from schnetpack.atomistic import Forces, PairwiseDistances, Strain
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.model import ForcesAndStress
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

CUTOFF = 4.0


class Pairs(nn.Module):
    """E = 1/2 sum_ij (r_ij - r_c)^2 exp(-r_ij), smooth at the cutoff."""

    def forward(self, inputs):
        r = inputs[properties.Rij].norm(dim=1)
        pair = 0.5 * (r - CUTOFF) ** 2 * torch.exp(-r)
        energy = pair.new_zeros(inputs[properties.n_atoms].shape[0])
        index = inputs[properties.idx_m][inputs[properties.idx_i]]
        inputs["energy"] = energy.index_add(0, index, pair)
        return inputs


def make_batch(structures):
    """Batch of (positions, cell, pbc), float64."""
    batch = {name: [] for name in ("R", "cell", "pbc", "i", "j", "off", "n")}
    start = 0
    for positions, cell, pbc in structures:
        idx_i, idx_j, _, offsets = neighbor_pairs(positions, cell, pbc, CUTOFF)
        batch["R"].append(positions)
        batch["cell"].append(cell)
        batch["pbc"].append(pbc)
        batch["i"].append(idx_i + start)
        batch["j"].append(idx_j + start)
        batch["off"].append(offsets)
        batch["n"].append(len(positions))
        start += len(positions)
    n_atoms = torch.tensor(batch["n"])
    return {
        properties.R: torch.tensor(np.concatenate(batch["R"])).requires_grad_(),
        properties.Z: torch.full((start,), 42),
        properties.cell: torch.tensor(np.array(batch["cell"])),
        properties.pbc: torch.tensor(np.array(batch["pbc"])),
        properties.idx_i: torch.tensor(np.concatenate(batch["i"])).long(),
        properties.idx_j: torch.tensor(np.concatenate(batch["j"])).long(),
        properties.offsets: torch.tensor(np.concatenate(batch["off"])),
        properties.n_atoms: n_atoms,
        properties.idx_m: torch.repeat_interleave(torch.arange(len(n_atoms)), n_atoms),
    }


def run(batch, module):
    for step in (Strain(), PairwiseDistances(), Pairs(), module):
        batch = step(batch)
    return batch


def cell_and_positions(seed=0, n=3):
    rng = np.random.default_rng(seed)
    cell = np.diag([4.0, 4.5, 5.0]) + rng.normal(0, 0.4, (3, 3))
    return rng.random((n, 3)) @ cell, cell, np.array([True] * 3)


def energy_under_strain(structure, strain):
    positions, cell, pbc = structure
    deformation = np.eye(3) + strain
    batch = make_batch([(positions @ deformation.T, cell @ deformation.T, pbc)])
    return Pairs()(PairwiseDistances()(batch))["energy"].item()


def numerical_stress(structure, h=1e-5):
    stress = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * h
            strain[b, a] += 0.5 * h
            difference = energy_under_strain(structure, strain) - energy_under_strain(
                structure, -strain
            )
            stress[a, b] = difference / (2 * h)
    return stress / abs(np.linalg.det(structure[1]))


@pytest.mark.parametrize("handedness", [1, -1])
def test_stress_is_the_strain_derivative(handedness):
    positions, cell, pbc = cell_and_positions()
    structure = (positions, cell[[0, 1, 2] if handedness > 0 else [1, 0, 2]], pbc)
    stress = run(make_batch([structure]), ForcesAndStress(True, True))["stress"]
    # central differences in float64 with h = 1e-5: truncation and rounding both near 1e-10
    np.testing.assert_allclose(stress[0].detach(), numerical_stress(structure), atol=2e-9)
    assert stress.is_contiguous()
    assert torch.equal(stress, stress.transpose(1, 2))


def test_stock_module_flips_the_sign_of_left_handed_cells():
    """Fails when SchNetPack mends its volume: then ours need not differ."""
    positions, cell, pbc = cell_and_positions()
    structure = (positions, cell[[1, 0, 2]], pbc)
    ours = run(make_batch([structure]), ForcesAndStress(True, True))["stress"]
    stock = run(make_batch([structure]), Forces(True, True))["stress"]
    sign = np.sign(np.linalg.det(structure[1]))
    torch.testing.assert_close(ours, sign * stock, rtol=1e-10, atol=1e-13)


def test_forces_are_the_negative_gradient():
    structure = cell_and_positions(1)
    forces = run(make_batch([structure]), ForcesAndStress())["forces"].detach().numpy()
    h = 1e-5
    for atom, axis in ((0, 0), (1, 2), (2, 1)):
        energies = []
        for sign in (1, -1):
            moved = structure[0].copy()
            moved[atom, axis] += sign * h
            energies.append(energy_under_strain((moved, *structure[1:]), np.zeros((3, 3))))
        expected = -(energies[0] - energies[1]) / (2 * h)
        assert forces[atom, axis] == pytest.approx(expected, abs=2e-9)


def test_structure_without_cell_is_refused():
    molecule = (np.array([[0.0, 0, 0], [1.5, 0, 0]]), np.zeros((3, 3)), np.array([False] * 3))
    periodic = cell_and_positions()
    with pytest.raises(ValueError, match="structure 1 of the batch"):
        run(make_batch([periodic, molecule]), ForcesAndStress(True, True))
    forces = run(make_batch([periodic, molecule]), ForcesAndStress(True, False))["forces"]
    r = 1.5  # of E = (r - r_c)^2 exp(-r), both directions of the pair
    slope = (2 * (r - CUTOFF) - (r - CUTOFF) ** 2) * np.exp(-r)
    expected = [[slope, 0, 0], [-slope, 0, 0]]
    np.testing.assert_allclose(forces[-2:].detach(), expected, rtol=1e-13, atol=1e-15)


def test_box_without_periodicity_has_no_stress():
    positions, cell, _ = cell_and_positions()
    with pytest.raises(ValueError, match="no periodic cell"):
        run(make_batch([(positions, cell, np.array([False] * 3))]), ForcesAndStress(True, True))


def test_structures_without_label_are_let_through():
    molecule = (np.array([[0.0, 0, 0], [1.5, 0, 0]]), np.zeros((3, 3)), np.array([False] * 3))
    batch = make_batch([cell_and_positions(), molecule])
    batch[keys.stress_mask] = torch.tensor([1.0, 0.0])
    stress = run(batch, ForcesAndStress(True, True))["stress"]
    assert stress[0].abs().max() > 0
    assert stress[1].abs().max() == 0


def test_slab_stress_counts_the_whole_volume():
    positions, cell, _ = cell_and_positions()
    cell = cell.copy()
    cell[2] = [0, 0, 20.0]
    structure = (positions, cell, np.array([True, True, False]))
    stress = run(make_batch([structure]), ForcesAndStress(True, True))["stress"]
    np.testing.assert_allclose(stress[0].detach(), numerical_stress(structure), atol=2e-9)


def test_strain_module_missing():
    batch = make_batch([cell_and_positions()])
    batch = Pairs()(PairwiseDistances()(batch))
    with pytest.raises(ValueError, match=r"schnetpack\.atomistic\.Strain"):
        ForcesAndStress(True, True)(batch)


def test_no_neighbours_gives_zero():
    positions = np.zeros((1, 3))
    lone = (positions, np.eye(3) * 20, np.array([True] * 3))
    out = run(make_batch([lone]), ForcesAndStress(True, True))
    assert out["forces"].abs().max() == 0
    assert out["stress"].abs().max() == 0


def test_auto_follows_the_labels():
    module = ForcesAndStress("auto", "auto")
    module.follow(has_forces=True, has_stress=False)
    assert module.model_outputs == ["forces"]
    assert module.required_derivatives == [properties.R]
    module = ForcesAndStress("auto", True)
    module.follow(has_forces=False, has_stress=False)
    assert module.model_outputs == ["stress"]
    energy_only = ForcesAndStress("auto", "auto")
    energy_only.follow(has_forces=False, has_stress=False)
    out = run(make_batch([cell_and_positions()]), energy_only)
    assert "forces" not in out
    with pytest.raises(ValueError, match="true, false or auto"):
        ForcesAndStress("yes")
