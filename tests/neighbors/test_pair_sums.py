"""Sums over pairs against closed forms."""

import numpy as np
import pytest

from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces, pair_vectors

POSITIONS = np.random.default_rng(3).normal(size=(7, 3))
# two clusters of four and three atoms, the pairs of the first not sorted
IDX_M = np.array([0, 0, 0, 0, 1, 1, 1])
PAIRS = [(i, j) for i in range(7) for j in range(7) if i != j and IDX_M[i] == IDX_M[j]]
IDX_I, IDX_J = np.array([*PAIRS[6:12], *PAIRS[:6], *PAIRS[12:]]).T.copy()


def pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, n_structures):
    forces, virial = np.zeros((len(idx_m), 3)), np.zeros((n_structures, 3, 3))
    add_pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, forces, virial)
    return forces, virial


def test_pair_vectors():
    offsets = np.random.default_rng(4).normal(size=(len(IDX_I), 3))
    r_ij = pair_vectors(POSITIONS, offsets, IDX_I, IDX_J)
    np.testing.assert_array_equal(r_ij, POSITIONS[IDX_J] - POSITIONS[IDX_I] + offsets)


def test_pair_forces_of_a_pair_potential():
    """E = sum_pairs |r|^2 / 4: forces and virial in closed form."""
    r_ij = pair_vectors(POSITIONS, np.zeros((len(IDX_I), 3)), IDX_I, IDX_J)
    forces, virial = pair_forces(IDX_I, IDX_J, r_ij, r_ij / 2, IDX_M, 3)
    for m, n in enumerate((4, 3)):
        atoms = m == IDX_M
        mine, r = POSITIONS[atoms], r_ij[atoms[IDX_I]]
        # each pair counts twice: E = sum_{i<j} r^2 / 2, so F_i = sum_j (R_j - R_i)
        np.testing.assert_allclose(forces[atoms], mine.sum(axis=0) - n * mine, atol=1e-13)
        np.testing.assert_allclose(virial[m], r.T @ r / 2, atol=1e-13)
    assert not virial[2].any()  # a structure without atoms


def test_virial_is_the_symmetric_part():
    rng = np.random.default_rng(5)
    r_ij, gradient = rng.normal(size=(2, len(IDX_I), 3))
    _, virial = pair_forces(IDX_I, IDX_J, r_ij, gradient, np.zeros(7, int), 1)
    product = gradient.T @ r_ij
    np.testing.assert_allclose(virial[0], (product + product.T) / 2, atol=1e-13)


def test_without_pairs():
    none, vectors = np.zeros(0, int), np.zeros((0, 3))
    forces, virial = pair_forces(none, none, vectors, vectors, np.array([0, 1]), 2)
    assert forces.shape == (2, 3)
    assert not forces.any()
    assert not virial.any()


@pytest.mark.parametrize("wrong", [-1, 7])
def test_index_of_no_atom(wrong):
    idx_i = np.array([0, wrong])
    for indices in ((idx_i, idx_i[::-1].copy()), (np.zeros(2, int), idx_i)):
        with pytest.raises(IndexError, match="indices of atoms"):
            pair_vectors(POSITIONS, np.zeros((2, 3)), *indices)
    with pytest.raises(IndexError, match="indices of structures"):
        pair_forces(idx_i[:0], idx_i[:0], np.zeros((0, 3)), np.zeros((0, 3)), idx_i, 7)
