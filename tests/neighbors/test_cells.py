"""Volumes of cells, by numpy and torch."""

import numpy as np
import pytest
import torch

from schnetpack_softadapt.neighbors.cells import stress_volumes, volumes

CELL = np.random.default_rng(6).normal(size=(3, 3))
# of both hands, without a third vector, with one that the others span, none at all
CELLS = np.array(
    [CELL, CELL[::-1], CELL * [[1], [1], [0]], CELL[[0, 1, 0]] + CELL[[0, 1, 1]], 0 * CELL]
)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_volumes(kind):
    a, b, c = CELL
    expected = abs(a @ np.cross(b, c)) * np.array([1, 1, 0, 0, 0])
    np.testing.assert_allclose(volumes(kind(CELLS)), expected, atol=1e-14)
    assert float(volumes(kind(CELL))) == pytest.approx(expected[0], rel=1e-14)
    assert np.isnan(volumes(kind(CELLS * np.nan))).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_volumes_of_a_stress(kind):
    """A direction without period leaves a slab its volume, three of them leave none."""
    pbc = kind(np.array([[True] * 3, [False, False, True], [False] * 3]))
    cells = kind(CELLS[[0, 1, 1]])
    whole = volumes(cells)
    for shape in (pbc, pbc.reshape(-1)):
        assert stress_volumes(cells, shape).tolist() == [float(whole[0]), float(whole[1]), 0.0]
    assert stress_volumes(kind(CELLS[3:]), pbc[:2]).tolist() == [0.0, 0.0]
    assert np.isnan(stress_volumes(cells * float("nan"), pbc)[:2]).all()  # no number, not zero
