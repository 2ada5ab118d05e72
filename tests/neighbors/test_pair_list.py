"""The neighbour list against sums over all images, and against another code where that is right."""

import itertools

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from matscipy.neighbours import neighbour_list

from schnetpack_softadapt.neighbors.pair_list import LinkedCells, neighbor_pairs

CUTOFF = 4.0


def brute_force(positions, cell, pbc, cutoff):
    """Set of (i, j, shift) closer than the cutoff, from all images that could be."""
    cell = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    spread = np.ptp(positions, axis=0).max() * np.sqrt(3) if len(positions) else 0.0
    # |n| a sin(angles) < cutoff + spread; the pseudo-inverse has the reciprocal heights as columns
    per_cell = np.linalg.norm(np.linalg.pinv(cell), axis=0)
    n = np.where(pbc, np.ceil((cutoff + spread) * per_cell), 0).astype(int)
    shifts = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in n)), -1).reshape(-1, 3)
    translations = shifts @ cell
    pairs = set()
    for i in range(len(positions)):
        for j in range(len(positions)):
            r = np.linalg.norm(positions[j] - positions[i] + translations, axis=1)
            close = shifts[r < cutoff].tolist()
            pairs |= {(i, j, *shift) for shift in close if i != j or any(shift)}
    return pairs


def neighbor_shifts(positions, cell, pbc, cutoff):
    """idx_i, idx_j, shifts, r_ij."""
    cells = LinkedCells(positions, cell, pbc, cutoff)
    return *cells.shifts(), cells.pairs(0, len(positions))[2]


def check(positions, cell, pbc, cutoff=CUTOFF):
    idx_i, idx_j, shifts, r_ij = neighbor_shifts(positions, cell, pbc, cutoff)
    found = [tuple(map(int, row)) for row in np.column_stack([idx_i, idx_j, shifts])]
    assert len(set(found)) == len(found)
    assert set(found) == brute_force(positions, cell, pbc, cutoff)
    assert (np.diff(idx_i) >= 0).all()
    i, j, r, offsets = neighbor_pairs(positions, cell, pbc, cutoff)
    assert (i == idx_i).all()
    assert (j == idx_j).all()
    assert (r == r_ij).all()
    # one rounding of a sum of a few lengths near 10 Ang
    np.testing.assert_allclose(r, positions[j] + offsets - positions[i], atol=1e-13)
    return len(found)


CELLS = {
    "cubic": np.diag([6.0, 6.5, 7.0]),
    "triclinic": np.array([[5.0, 0.0, 0.0], [2.4, 5.5, 0.0], [-1.7, 2.2, 4.8]]),
    "left-handed": np.array([[0.0, 5.2, 0.0], [5.0, 0.0, 0.0], [0.3, -0.7, 5.6]]),
    "tiny": np.array([[1.3, 0.0, 0.0], [0.5, 1.2, 0.0], [0.2, 0.3, 1.7]]),
    "needle": np.array([[1.1, 0.2, 0.0], [0.0, 1.4, 0.0], [0.3, 0.0, 11.0]]),
    "skewed": np.array([[3.0, 0.0, 0.0], [7.9, 3.1, 0.0], [-4.0, 4.0, 3.3]]),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_against_all_images(name, pbc):
    rng = np.random.default_rng(7)
    n_atoms = 3 if name in ("tiny", "needle") else 7
    cell = CELLS[name]
    # some atoms lie outside the cell
    positions = rng.uniform(-0.4, 1.3, (n_atoms, 3)) @ cell
    assert check(positions, cell, pbc) > 0


def test_lone_atoms():
    assert check(np.zeros((1, 3)), np.eye(3) * 3.0, [True] * 3) == 6
    assert check(np.zeros((1, 3)), np.eye(3) * 3.0, [False] * 3) == 0
    assert check(np.zeros((0, 3)), np.eye(3), [True] * 3) == 0
    assert check(np.array([[0.0, 0, 0], [100.0, 0, 0]]), np.zeros((3, 3)), [False] * 3) == 0


def test_atoms_on_cell_walls_and_at_one_place():
    cell = np.eye(3) * 4.5
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0 - 1e-16], repeat=3))) @ cell
    check(corners, cell, [True] * 3)
    # -1e-17 is wrapped to exactly 1.0
    check(np.array([[-1e-17, 0.0, 0.0], [4.5, 4.5, -1e-17]]), cell, [True] * 3)
    check(np.zeros((3, 3)), np.zeros((3, 3)), [False] * 3)


@pytest.mark.parametrize("atoms", [molecule("C6H6"), fcc111("Al", (2, 2, 3)), bulk("Mo")])
def test_vectors_of_non_periodic_directions_do_not_matter(atoms):
    """A slab without a height is where MatScipy's list is silently wrong."""
    reference = None
    rng = np.random.default_rng(0)
    pbc = atoms.pbc
    for other in (0.0, 1e-3, np.nan, rng.normal(size=(3, 3))[~pbc]):
        cell = np.array(atoms.cell)
        cell[~pbc] = other
        pairs = neighbor_pairs(atoms.positions, cell, pbc, CUTOFF)
        order = np.lexsort([*pairs[2].round(6).T, pairs[1], pairs[0]])
        pairs = [x[order] for x in pairs]
        check(atoms.positions, cell, pbc)
        reference = reference or pairs
        for a, b in zip(pairs, reference, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_against_matscipy_in_a_large_crystal():
    atoms = bulk("Mo", cubic=True).repeat((9, 8, 10))
    atoms.rattle(0.1, seed=1)
    atoms.positions += 17.0
    i, j, r = neighbour_list("ijD", atoms, 5.2)
    ours = neighbor_pairs(atoms.positions, atoms.cell, atoms.pbc, 5.2)
    assert len(ours[0]) == len(i)
    a = np.lexsort([*r.round(6).T, j, i])
    b = np.lexsort([*ours[2].round(6).T, ours[1], ours[0]])
    assert (ours[0][b] == i[a]).all()
    assert (ours[1][b] == j[a]).all()
    np.testing.assert_allclose(ours[2][b], r[a], atol=1e-11)


def test_atoms_in_far_cells():
    """Shifts are integers of 32 bits, and differences of two cells must not overflow."""
    far = 2**29 - 5
    near = np.array([[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]])
    moved = near + np.array([[-far, 0, 0], [far, 0, 0]])
    pairs, expected = ([*neighbor_shifts(x, np.eye(3), [1, 1, 1], 0.6)] for x in (moved, near))
    assert len(expected[0]) == 4
    for k in (0, 1):
        assert (pairs[k] == expected[k]).all()
    # R_j - R_i has grown by 2 far for the first atom, and the shift takes that back
    turn = np.where(expected[0] == 0, -2 * far, 2 * far)
    assert (pairs[2].astype(int)[:, 0] == expected[2][:, 0] + turn).all()
    np.testing.assert_allclose(pairs[3], expected[3], atol=1e-6)


def test_growing_pair_list():
    """Many more pairs than the first guess of memory has room for."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 3, (90, 3))
    positions[:84] *= 0.3  # the crowded atoms come first, then last
    for points in (positions, positions[::-1]):
        assert check(points, np.zeros((3, 3)), [False] * 3, cutoff=2.0) > 64 * 90


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "cutoff", "words"),
    [
        (np.zeros((1, 3)), np.diag([3.0, 3.0, 0.0]), [1, 1, 1], 4.0, "lattice vector 2"),
        (np.zeros((1, 3)), np.array([[1.0, 0, 0], [2, 0, 0], [0, 0, 1]]), [1, 1, 0], 4.0, "depen"),
        (np.array([[0, 0, 0], [np.nan, 0, 0]]), np.eye(3), [1, 1, 1], 4.0, "atom 1"),
        (np.zeros((1, 3)), np.diag([3.0, np.inf, 3.0]), [1, 1, 1], 4.0, "not finite"),
        (np.zeros((1, 3)), np.eye(3), [1, 1, 1], 0.0, "cutoff"),
        (np.array([[0, 0, 0], [0, 0, 6e8]]), np.eye(3), [1, 1, 1], 4.0, "too far away"),
    ],
)
def test_refuses(positions, cell, pbc, cutoff, words):
    with pytest.raises(ValueError, match=words):
        neighbor_pairs(positions, cell, np.array(pbc, bool), cutoff)
