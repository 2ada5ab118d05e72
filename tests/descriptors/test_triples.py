import itertools

import numpy as np
import pytest
import torch

from schnetpack_softadapt.descriptors.acsf.triples import NeighborTable


@pytest.fixture
def pairs():
    """Central atoms in random order, one without neighbours, and elements of the neighbours."""
    rng = np.random.default_rng(0)
    idx_i = rng.choice([0, 1, 2, 4, 5], size=40)
    z_j = rng.choice([1, 7, 8], size=40)
    within = rng.random(40) < 0.8
    return idx_i, z_j, within


def expected(idx_i, z_j, within, is_center, neighbors):
    found = set()
    for p, q in itertools.combinations(range(len(idx_i)), 2):
        if idx_i[p] != idx_i[q] or not (within[p] and within[q] and is_center[p]):
            continue
        if neighbors and tuple(sorted((z_j[p], z_j[q]))) != neighbors:
            continue
        found.add(frozenset((p, q)))
    return found


@pytest.mark.parametrize("neighbors", [(), (1, 1), (1, 7), (1, 8), (7, 7), (7, 8), (8, 8), (1, 9)])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_every_triple_once(pairs, neighbors, size):
    idx_i, z_j, within = pairs
    is_center = np.isin(idx_i, [0, 2, 4])
    table = NeighborTable(*(torch.tensor(x) for x in pairs))
    triples = table.triples(torch.tensor(is_center), neighbors)
    total = int(triples.total)
    found = []
    for start in range(0, total, size):
        first, second = triples.pairs(start, min(start + size, total))
        found += [frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert len(found) == len(set(found)) == total
    assert set(found) == expected(idx_i, z_j, within, is_center, neighbors)


def test_no_pairs():
    empty = torch.zeros(0, dtype=torch.int64)
    table = NeighborTable(empty, empty, empty.bool())
    assert int(table.triples(empty.bool(), (1, 1)).total) == 0
    assert int(table.triples(empty.bool()).total) == 0
