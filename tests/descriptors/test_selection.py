"""Columns that are kept span what all of them span, whatever the order of atoms and the units."""

import json

import numpy as np
import pytest
import torch
from ase.build import bulk

from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.protocol import Descriptor, read_descriptor
from schnetpack_softadapt.descriptors.selection import (
    sample_values,
    select_columns,
    variance_left,
)
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

RANK = 6


def pool(n_atoms=200, seed=0):
    """20 columns of rank 6: independent ones, a duplicate of each, combinations, a constant."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(n_atoms, RANK)) @ rng.normal(size=(RANK, RANK))
    combined = basis @ rng.normal(size=(RANK, 7))
    columns = [*basis.T, *basis.T, *combined.T, np.full(n_atoms, 0.25)]
    return np.stack(columns, axis=1)[:, rng.permutation(len(columns))]


def rank(x):
    centred = x - x.mean(axis=0)
    return np.linalg.matrix_rank(centred / np.maximum(centred.std(axis=0), 1e-8), tol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_basis_of_duplicates_and_combinations_is_kept(seed):
    x = pool(seed=seed)
    kept = select_columns(x, 20)
    assert len(kept) == rank(x[:, kept]) == rank(x) == RANK
    assert variance_left(x, kept) < 1e-12
    for n in range(1, RANK):  # every one that is kept counts
        assert rank(x[:, select_columns(x, n)]) == n
        assert variance_left(x, select_columns(x, n)) > 1e-6


def test_neither_units_nor_the_order_of_atoms_count():
    x = pool()
    kept = select_columns(x, 4)
    rng = np.random.default_rng(1)
    factors = 10.0 ** rng.uniform(-3, 3, x.shape[1])
    assert select_columns(x * factors + rng.normal(size=x.shape[1]), 4) == kept
    assert select_columns(x[rng.permutation(len(x))], 4) == kept
    # and the order of columns only among duplicates, whose first is taken
    order = rng.permutation(x.shape[1])
    moved = select_columns(x[:, order], 4)
    assert np.allclose(sorted(x[0, order[moved]]), sorted(x[0, kept]))


def test_chosen_columns_leave_little_more_than_principal_components():
    """A grid of Gaussians, of which neighbours are nearly equal."""
    rng = np.random.default_rng(2)
    r = rng.uniform(1.5, 5.0, (400, 8))
    x = np.exp(-2.0 * (r[:, :, None] - np.linspace(1.0, 5.5, 30)) ** 2).sum(axis=1)
    centred = (x - x.mean(0)) / x.std(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    for n in (5, 10, 15):
        least = variances[n:].sum() / variances.sum()
        assert least < variance_left(x, select_columns(x, n)) < 5 * least
        first = list(range(n))
        assert variance_left(x, first) > 20 * variance_left(x, select_columns(x, n))


def test_thresholds():
    x = pool()
    for size, n in ((0.0099, 18), (0.0101, 19)):  # of 20, the constant goes too
        x[:, 0] *= size / np.ptp(x[:, 0])
        kept = select_columns(x, min_range=0.01)
        assert (0 in kept, len(kept)) == (size > 0.01, n)
    # duplicates go, combinations of several columns stay
    assert len(select_columns(pool(), max_correlation=0.999)) == RANK + 7
    with pytest.raises(ValueError, match="range of 1e"):
        select_columns(x, 3, min_range=1e9)


def structures(n=4):
    out = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        atoms = bulk("Cu", cubic=True, a=3.7) * (2, 1, 1)
        atoms.numbers[: 2 + seed % 2] = 79
        atoms.positions += rng.normal(scale=0.15, size=atoms.positions.shape)
        out.append((atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc))
    return out


@pytest.mark.parametrize("name", ["kernels", "reference"])
def test_a_smaller_layout_has_the_columns_of_the_whole(name):
    grid = {"n_radial": 4, "n_angular_widths": 2, "zetas": (1, 2, 4), "angular": "mixed"}
    layout = default_layout(["Cu", "Au"], 4.5, **grid)
    columns = {29: [1, 4, 9, 10, 17, 30], 79: [0, 3, 26]}
    smaller = layout.select(columns)
    assert smaller.n_functions == {29: 6, 79: 3}
    numbers, positions, cell, pbc = structures(1)[0]
    idx_i, idx_j, r_ij, _ = neighbor_pairs(positions, cell, pbc, layout.cutoff)
    found = []
    for descriptor in (layout, smaller):
        engine = descriptor.engine("cpu", name)
        r = torch.from_numpy(r_ij)
        pairs = engine.prepare(r, idx_i, idx_j, numbers)
        change = torch.from_numpy(np.random.default_rng(3).normal(size=r_ij.shape))
        with torch.no_grad():
            values, changes = engine.values(pairs), engine.jvp(pairs, change)
            found.append((np.asarray(values), np.asarray(changes)))
    for whole, part in zip(*found, strict=True):
        for z, chosen in columns.items():
            rows = numbers == z
            scale = np.abs(whole).max()
            expected = whole[rows][:, chosen]
            np.testing.assert_allclose(part[rows, : len(chosen)], expected, atol=1e-13 * scale)
            assert not part[rows, len(chosen) :].any()


def test_samples_are_of_all_structures_and_every_time_the_same():
    layout = default_layout(["Cu", "Au"], 4.5, n_radial=4, n_angular_widths=0)
    whole = sample_values(layout, structures())
    assert {z: x.shape for z, x in whole.items()} == {29: (22, 8), 79: (10, 8)}
    some = sample_values(layout, structures(), n_atoms=7)
    for z, x in some.items():
        assert len(x) == 7
        rows = [int(np.abs(whole[z] - row).sum(axis=1).argmin()) for row in x]
        assert len(set(rows)) == 7
        assert max(rows) >= len(whole[z]) // 2
        np.testing.assert_allclose(whole[z][rows], x, atol=1e-12)
        np.testing.assert_array_equal(sample_values(layout, structures(), n_atoms=7)[z], x)
    with pytest.raises(ValueError, match="no training atom of Ni"):
        sample_values(default_layout(["Cu", "Au", "Ni"], 4.5), structures())


def test_a_file_holds_a_layout(tmp_path):
    layout = default_layout(["Cu"], 4.5)
    path = tmp_path / "layout.yaml"
    write_file(path, json.dumps(layout.to_dict()))
    assert read_descriptor(path) == layout
    assert isinstance(read_descriptor(path), Layout)
    for text in ("", "[1, 2", "kind: acsf\nfunctions: 3\n", "kind: other\n"):
        write_file(path, text)
        with pytest.raises(ValueError, match=r"layout.yaml is no descriptor"):
            read_descriptor(path)


def test_a_family_without_a_choice_says_so():
    class Fixed(Descriptor):
        kind = "fixed_columns"
        to_dict = from_dict = engine = None

    with pytest.raises(ValueError, match="'fixed_columns' cannot be chosen"):
        Fixed.select(Fixed.__new__(Fixed), {})
