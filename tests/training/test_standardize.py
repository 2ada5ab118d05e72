"""Scales of the losses: independent of size, composition and units, and well-posed."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import units

from schnetpack_softadapt.data.statistics import TrainingTargets, composition_fit
from schnetpack_softadapt.training.standardize import (
    Standardization,
    energy_variances,
    force_scales,
    virial_scale,
)

ELEMENTS = np.array([42, 52])
SPREAD = {42: 0.03, 52: 0.08}  # eV, of local energies


def targets_of(compositions, rng, scale=1.0, forces=True):
    """Independent normal local energies, forces and virials, for atoms given as counts."""
    compositions = np.asarray(compositions, dtype=float)
    n_atoms = compositions.sum(axis=1).astype(int)
    numbers = np.concatenate([np.repeat(ELEMENTS, row.astype(int)) for row in compositions])
    spread = np.array([SPREAD[z] for z in numbers])
    structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
    local = rng.normal(scale=spread) + np.where(numbers == 42, -5.0, -3.0)
    energy = np.bincount(structure, local)
    virial = np.zeros((len(n_atoms), 3, 3))
    np.add.at(virial, structure, rng.normal(scale=0.5, size=(len(numbers), 3, 3)))
    virial = 0.5 * (virial + virial.transpose(0, 2, 1))
    volumes = 15.0 * n_atoms
    return TrainingTargets(
        elements=ELEMENTS,
        compositions=compositions,
        n_atoms=n_atoms,
        volumes=volumes,
        numbers=numbers,
        energy=energy * scale,
        forces=rng.normal(size=(len(numbers), 3)) * np.where(numbers == 42, 2.0, 0.5)[:, None]
        if forces
        else None,
        stress=virial / volumes[:, None, None] * scale,
        stress_mask=np.ones(len(n_atoms), dtype=bool),
        group=np.zeros(len(n_atoms), dtype=int),
    )


def fitted(targets):
    standardization = Standardization()
    standardization.fit(targets)
    standardization.means = composition_fit(targets)[1]
    return standardization


def spread_of_energy(standardization, targets):
    """E' of every structure, as the task computes it."""
    means = targets.compositions @ standardization.means
    structure = np.repeat(np.arange(len(targets.n_atoms)), targets.n_atoms)
    scale = standardization.energy_spread(
        torch.from_numpy(targets.numbers), torch.from_numpy(structure), len(targets.n_atoms)
    )
    return (targets.energy - means) / scale.numpy()


def virials(standardization, targets):
    voigt = targets.stress.reshape(-1, 9)[:, [0, 4, 8, 5, 2, 1]]
    scale = float(standardization.stress_scale) * np.sqrt(targets.n_atoms)
    return voigt * (targets.volumes / scale)[:, None]


@pytest.mark.parametrize("copies", [1, 8, 27])
def test_loss_does_not_depend_on_system_size(copies):
    # fitted on small cells, applied to supercells of the same local energies and virials
    rng = np.random.default_rng(copies)
    cell = rng.integers(1, 6, size=(400, 2))
    standardization = fitted(targets_of(cell, rng))
    large = targets_of(cell * copies, rng)
    # the variance of 400 samples is known to sqrt(2 / 400) = 7 %; three sigma
    assert np.var(spread_of_energy(standardization, large)) == pytest.approx(1.0, abs=0.21)
    # per unit of the error: a loss that grew with size would be 8 or 27 times as large
    # off-diagonal entries of a symmetrised random virial have half the variance of the diagonal;
    # 2400 numbers, both in the fit and here: 4 %; three sigma
    assert np.var(virials(standardization, large)) == pytest.approx(1.0, abs=0.12)


def test_loss_does_not_depend_on_composition():
    rng = np.random.default_rng(0)
    cell = np.array([[1, 9]] * 300 + [[9, 1]] * 300 + [[5, 5]] * 300)
    targets = targets_of(cell, rng)
    standardized = spread_of_energy(fitted(targets), targets).reshape(3, 300)
    # 300 samples: 8 %; three sigma. One common sigma would give 1.2, 0.4
    assert np.var(standardized, axis=1) == pytest.approx([1.0, 1.0, 1.0], abs=0.25)


def test_variances_of_elements_are_found():
    rng = np.random.default_rng(0)
    targets = targets_of(rng.integers(1, 12, size=(3000, 2)), rng)
    sigma = fitted(targets).energy_variance[[42, 52]].sqrt().numpy()
    # 3000 structures know a variance to sqrt(2 / 3000) = 2.6 %, a deviation to half of that; three
    # sigma, and some more since the two elements share the structures
    assert sigma == pytest.approx([0.03, 0.08], rel=0.05)


@pytest.mark.parametrize("factor", [1000.0, 1.0 / units.Hartree, units.mol / units.kcal])
def test_scales_follow_the_unit(factor):
    cell = np.random.default_rng(1).integers(1, 6, size=(30, 2))
    a = fitted(targets_of(cell, np.random.default_rng(2)))
    b = fitted(targets_of(cell, np.random.default_rng(2), scale=factor))
    # the estimate is equivariant: only rounding and the stopping rule of 1e-8 remain
    torch.testing.assert_close(
        b.energy_variance[ELEMENTS], a.energy_variance[ELEMENTS] * factor**2, rtol=1e-7, atol=0
    )  # the iteration stops at a relative change of 1e-8
    assert float(b.stress_scale) == pytest.approx(float(a.stress_scale) * factor, rel=1e-10)


def test_dependent_compositions():
    # every structure MoTe2: only sigma_Mo^2 + 2 sigma_Te^2 is known; the elements share equally
    rng = np.random.default_rng(3)
    targets = targets_of([[4, 8]] * 50 + [[8, 16]] * 50, rng)
    variance = fitted(targets).energy_variance[ELEMENTS].numpy()
    assert variance[0] == pytest.approx(variance[1], rel=1e-6)
    # a hundred structures less one parameter, and the stopping rule of 1e-8
    squares = spread_of_energy(fitted(targets), targets) ** 2
    assert np.mean(squares) == pytest.approx(0.99, rel=1e-6)


def test_variance_of_one_element_by_hand():
    # y^2 / N = 1, 4, 9, mean 14/3; one parameter was fitted: times 3/2
    y = np.array([2.0, -4.0, 6.0])
    variance = energy_variances(np.full((3, 1), 4.0), y)
    assert variance == pytest.approx([7.0], rel=1e-6)
    assert energy_variances(np.array([[4.0]]), np.array([1.0])) is None  # as many as parameters
    assert energy_variances(np.full((3, 1), 4.0), np.zeros(3)) is None


def test_force_scales_by_hand():
    numbers = np.array([42, 42, 42, 52])
    forces = np.array([[1.0, 2.0, 2.0]] * 3 + [[0.0, 0.0, 0.0]])
    # mean squares 3, 3, 3, 0: overall 9/4, which counts as one more atom
    scales = force_scales(numbers, forces, [42, 52])
    assert scales == pytest.approx(np.sqrt([(9 + 2.25) / 4, 2.25 / 2]))
    assert force_scales(numbers, np.zeros((4, 3)), [42, 52]) is None


def test_virial_scale_by_hand():
    # one atom, V = 2, pure shear +-1: virials +-2 in one of six components; 12 - 1 degrees
    stress = np.zeros((2, 3, 3))
    stress[:, 0, 1] = stress[:, 1, 0] = [1.0, -1.0]
    tau = virial_scale(np.ones((2, 1)), stress, np.full(2, 2.0))
    assert tau == pytest.approx(np.sqrt(8.0 / 11.0))
    pressure = np.stack([np.eye(3)] * 4)
    assert virial_scale(np.ones((4, 1)), pressure, np.ones(4)) is None  # the mean explains all


def test_masked_stresses_do_not_count():
    rng = np.random.default_rng(4)
    targets = targets_of(rng.integers(1, 6, size=(20, 2)), rng)
    targets.stress_mask[5] = False
    targets.stress[5] = 1e6
    without = [np.delete(x, 5, 0) for x in (targets.compositions, targets.stress, targets.volumes)]
    expected = virial_scale(*without)
    assert float(fitted(targets).stress_scale) == pytest.approx(expected, rel=1e-12)
    assert expected < 1.0  # eV: the masked one would make it 1e7


def test_no_spread_keeps_the_unit_and_says_so(caplog):
    rng = np.random.default_rng(5)
    targets = targets_of([[1, 2]], rng, forces=False)
    standardization = fitted(targets)
    assert bool(standardization.fitted)
    assert float(standardization.energy_variance[42]) == 1.0
    assert "no spread" in caplog.text


def test_unknown_elements_have_the_overall_scale():
    rng = np.random.default_rng(6)
    standardization = fitted(targets_of(rng.integers(1, 6, size=(50, 2)), rng))
    low, high = sorted(standardization.force_scale[[42, 52]].tolist())
    assert low < float(standardization.force_scale[14]) < high


def test_weights_are_repetitions():
    """A set with each structure as often as it weighs has the same scales."""
    rng = np.random.default_rng(4)
    targets = targets_of(rng.integers(1, 9, (3000, 2)), rng)
    # so that it matters which structures weigh more
    weight = np.where(targets.compositions[:, 0] > targets.compositions[:, 1], 3, 1)
    spread = np.where(weight == 3, 2.0, 1.0)
    of_atoms = np.repeat(spread, targets.n_atoms)[:, None]
    mean = targets.compositions @ composition_fit(targets)[1]
    targets = dataclasses.replace(
        targets,
        energy=mean + (targets.energy - mean) * spread,
        forces=targets.forces * of_atoms,
        stress=targets.stress * spread[:, None, None],
    )
    weighted = dataclasses.replace(targets, labels={"structure_weight": weight})
    index = np.repeat(np.arange(3000), weight)
    atoms = np.split(np.arange(len(targets.numbers)), np.cumsum(targets.n_atoms)[:-1])
    atoms = np.concatenate([atoms[k] for k in index])
    repeated = dataclasses.replace(
        targets,
        numbers=targets.numbers[atoms],
        forces=targets.forces[atoms],
        **{
            name: getattr(targets, name)[index]
            for name in ("compositions", "n_atoms", "volumes", "energy", "stress", "stress_mask")
        },
    )
    ours, theirs, plain = fitted(weighted), fitted(repeated), fitted(targets)
    assert ours.means == pytest.approx(theirs.means, rel=1e-9)
    for name in ("energy_variance", "force_scale", "stress_scale"):
        found, expected = getattr(ours, name).numpy(), getattr(theirs, name).numpy()
        # but for the prior, which counts as one atom in either
        assert found == pytest.approx(expected, rel=0.02)
        assert getattr(plain, name).numpy() != pytest.approx(expected, rel=0.05)
