"""The skin list against fresh lists, however atoms, cell, pbc and number of atoms change."""

import numpy as np
import pytest

from schnetpack_softadapt.deploy.skin import SkinList
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

CUTOFF = 3.0


def as_rows(idx_i, idx_j, r_ij, offsets):
    """Pairs as sorted rows; those within rounding of the cutoff may be in or out."""
    distances = np.linalg.norm(r_ij, axis=1)
    rows = np.column_stack([idx_i, idx_j, r_ij, offsets])[abs(distances - CUTOFF) > 1e-9]
    rows = rows[np.linalg.norm(rows[:, 2:5], axis=1) < CUTOFF]
    return rows[np.lexsort(np.round(rows, 6).T[::-1])]


def assert_same_as_fresh(skin_list, positions, cell, pbc):
    pairs = skin_list.update(positions, cell, pbc)
    fresh = neighbor_pairs(positions, cell, pbc, CUTOFF)
    got, expected = as_rows(*pairs), as_rows(*fresh)
    assert got.shape == expected.shape
    # the same numbers up to the rounding of offsets of a few cells
    np.testing.assert_allclose(got, expected, atol=1e-10)
    assert (np.diff(pairs.idx_i) >= 0).all()


class Walk:
    """A structure whose atoms and cell drift: straight for some steps, then another way.

    Drifts are what finds an error: what moves at random stays where it is for long.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.cell = np.diag(self.rng.uniform(2.5, 6.0, 3)) + self.rng.normal(0, 0.4, (3, 3))
        if seed % 3 == 2:
            self.cell = self.cell[[1, 0, 2]]  # left-handed
        self.pbc = np.array([True, seed % 2 == 0, seed % 4 < 2])
        self.positions = self.rng.uniform(0, 1, (8, 3)) @ self.cell
        self.volume = abs(np.linalg.det(self.cell))

    def step(self):
        if not hasattr(self, "velocity") or self.rng.random() < 0.1:
            self.turn_off()
        if len(self.velocity) == len(self.positions):
            self.positions = self.positions + self.velocity
        if not 0.4 < abs(np.linalg.det(self.cell)) / self.volume < 2.5:
            self.rate = np.eye(3) * np.sign(self.volume - abs(np.linalg.det(self.cell))) * 0.02
        deformation = np.eye(3) + self.rate
        self.cell = self.cell @ deformation
        if self.moves_atoms:
            self.positions = self.positions @ deformation
        if self.rng.random() < 0.08:
            events = [self.wrap, self.flip_pbc, self.exchange, self.change_number, self.stretch]
            events[self.rng.integers(len(events))]()

    def turn_off(self):
        """Choose new velocities of atoms and cell, some of them zero."""
        kind = self.rng.integers(5)
        self.velocity = self.rng.normal(0, [0, 0, 0.01, 0.03, 0.1][kind], self.positions.shape)
        self.velocity += self.rng.normal(0, 0.3, 3)  # of all atoms alike
        rate = self.rng.normal(0, [0.005, 0.015, 0, 0.002, 0][kind], (3, 3))
        if self.rng.random() < 0.3:
            rate = -abs(np.trace(rate)) * np.eye(3)  # compression at fixed fractional coordinates
        if self.rng.random() < 0.3:
            rate = rate - rate.T  # mostly a rotation
        self.rate = rate
        self.moves_atoms = self.rng.random() < 0.7

    def wrap(self):
        scaled = self.positions @ np.linalg.inv(self.cell)
        self.positions = (scaled - np.floor(scaled) * self.pbc) @ self.cell

    def flip_pbc(self):
        self.pbc = self.pbc.copy()
        self.pbc[self.rng.integers(3)] ^= True

    def exchange(self):
        self.positions = self.positions[self.rng.permutation(len(self.positions))]

    def change_number(self):
        keep = self.positions[1:] if len(self.positions) > 4 else self.positions
        new = self.rng.uniform(0, 1, (self.rng.integers(0, 3), 3)) @ self.cell
        self.positions = np.vstack([keep, new])

    def stretch(self):
        """Of the vectors that are not periodic."""
        cell = self.cell.copy()
        cell[~self.pbc] *= self.rng.uniform(0.8, 1.2)
        self.cell = cell


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("skin", [0.0, 0.3, 1.0])
def test_random_walk_equals_fresh_list(seed, skin):
    walk, skin_list = Walk(seed), SkinList(CUTOFF, skin)
    for _ in range(150):
        walk.step()
        assert_same_as_fresh(skin_list, walk.positions, walk.cell, walk.pbc)
    if skin:  # otherwise the comparison says nothing about reuse
        assert skin_list.n_builds < 0.8 * skin_list.n_updates


def test_two_atoms_that_meet():
    """Both move by half of the skin: the list must be new before they are within the cutoff."""
    skin_list = SkinList(CUTOFF, 0.4)
    for step in range(40):
        x = (CUTOFF + 0.41 - 0.02 * step) / 2
        positions = np.array([[-x, 0, 0], [x, 0, 0], [0, 40.0, 0], [0, -40.0, 0]])
        assert_same_as_fresh(skin_list, positions, np.zeros((3, 3)), np.zeros(3, bool))
    assert skin_list.n_builds <= 3


def test_compression_is_seen_without_any_displacement():
    """At fixed fractional coordinates nothing moves but the cell."""
    rng = np.random.default_rng(5)
    scaled, cell = rng.uniform(0, 1, (12, 3)), np.diag([5.0, 6.0, 7.0])
    skin_list = SkinList(CUTOFF, 0.5)
    for step in range(20):
        now = cell * (1 - 0.015 * step)
        assert_same_as_fresh(skin_list, scaled @ now, now, np.ones(3, bool))
    assert skin_list.n_builds < 5


def test_one_cell_element_may_stay_the_same():
    """SchNetPack's list is kept as long as any element of the cell is unchanged."""
    cell = np.diag([6.0, 6.0, 6.0])
    scaled = np.random.default_rng(0).uniform(0, 1, (20, 3))
    skin_list = SkinList(CUTOFF, 0.3)
    for factor in (1.0, 0.97, 0.94, 0.9):
        now = cell * [[factor], [factor], [1.0]]
        assert_same_as_fresh(skin_list, scaled @ now, now, np.ones(3, bool))


def test_uniform_motion_needs_no_new_list():
    rng = np.random.default_rng(1)
    cell = np.diag([5.0, 6.0, 7.0])
    positions = rng.uniform(0, 1, (10, 3)) @ cell
    skin_list = SkinList(CUTOFF, 0.5)
    for k in range(5):
        assert_same_as_fresh(
            skin_list, positions + np.array([2.0 * k, 0, 0]), cell, np.ones(3, bool)
        )
    # expansion at fixed fractional coordinates can only drive pairs apart
    for k in range(5):
        factor = 1.0 + 0.1 * k
        assert_same_as_fresh(skin_list, positions * factor, cell * factor, np.ones(3, bool))
    assert skin_list.n_builds == 1


def test_missing_lattice_vectors_of_slab_and_molecule():
    rng = np.random.default_rng(2)
    slab = np.array([[3.0, 0, 0], [1.0, 3.5, 0], [0, 0, 0]])
    for pbc in ([True, True, False], [False, False, False]):
        skin_list, positions = SkinList(CUTOFF, 0.4), rng.uniform(0, 4, (6, 3))
        for _ in range(30):
            positions = positions + rng.normal(0, 0.03, positions.shape)
            slab = slab @ (np.eye(3) + rng.normal(0, 0.005, (3, 3)))
            assert_same_as_fresh(skin_list, positions, slab, np.array(pbc))
        # a vector that is not used says nothing about the list
        n_builds = skin_list.n_builds
        for height in (5.0, 40.0):
            tall = slab + np.diag([0, 0, height])
            assert_same_as_fresh(skin_list, positions, tall, np.array(pbc))
        assert skin_list.n_builds == n_builds


def test_explosion_is_named():
    skin_list, cell, pbc = SkinList(CUTOFF), np.eye(3) * 5, np.ones(3, bool)
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    skin_list.update(positions, cell, pbc)
    with pytest.raises(ValueError, match="exploded; try a smaller time step"):
        skin_list.update(positions * np.nan, cell, pbc)
    # and the list is not taken for valid afterwards
    assert len(skin_list.update(positions, cell, pbc).idx_i)


def test_periodic_direction_without_vector_is_refused():
    with pytest.raises(ValueError, match="that vector is zero"):
        SkinList(CUTOFF).update(np.zeros((1, 3)), np.diag([3.0, 3.0, 0.0]), np.ones(3, bool))


def test_arguments():
    with pytest.raises(ValueError, match="cutoff must be positive"):
        SkinList(0.0)
    with pytest.raises(ValueError, match="skin not negative"):
        SkinList(3.0, -0.1)
