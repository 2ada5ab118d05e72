"""Channels of element weights against the functions of single elements that they are sums of."""

import json
from itertools import combinations_with_replacement

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import KernelCalls, ReferenceCalls

from schnetpack_softadapt.descriptors.acsf.channels import element_channels
from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

ELEMENTS = (1, 6, 8)
TABLES = ({1: 1.0, 6: 1.0, 8: 1.0}, {1: -0.7, 6: 0.3, 8: 1.2}, {1: 0.5, 8: -1.5})
RADIAL = ({"cutoff": 4.0, "eta": 0.3}, {"cutoff": 3.5, "eta": 1.1, "r_s": 1.4})
ANGULAR = (
    ("G5", {"cutoff": 4.0, "eta": 0.05, "zeta": 2, "lam": 1}),
    ("G5", {"cutoff": 4.0, "eta": 0.05, "zeta": 1.5, "lam": -1}),
    ("G4", {"cutoff": 3.8, "eta": 0.02, "zeta": 4, "lam": -1, "cutoff_fn": "poly2"}),
)


def resolved_and_contracted():
    """Layouts by elements and by channels, and M (D, C) with G_channels = G_elements M."""
    terms = [("G2", p, (z,)) for p in RADIAL for z in ELEMENTS]
    pairs = list(combinations_with_replacement(ELEMENTS, 2))
    terms += [(kind, p, zs) for kind, p in ANGULAR for zs in pairs]
    sums = [("G2", p, w) for p in RADIAL for w in TABLES]
    sums += [(kind, p, w) for kind, p in ANGULAR for w in TABLES]
    matrix = np.zeros((len(terms), len(sums)))
    for row, (kind, parameters, zs) in enumerate(terms):
        for column, (other, others, weights) in enumerate(sums):
            if (kind, parameters) == (other, others):
                matrix[row, column] = np.prod([weights.get(z, 0.0) for z in zs])
    full = [SymmetryFunction(kind, zs, **p) for kind, p, zs in terms]
    channels = [SymmetryFunction("w" + kind, (), **p, weights=w) for kind, p, w in sums]
    return Layout(dict.fromkeys(ELEMENTS, full)), Layout(dict.fromkeys(ELEMENTS, channels)), matrix


@pytest.fixture(scope="module")
def inputs():
    """A periodic cell of three elements, with images of one atom among its neighbours."""
    rng = np.random.default_rng(3)
    cell = np.array([[3.4, 0.0, 0.0], [0.5, 3.8, 0.0], [-0.2, 0.3, 4.1]])
    numbers = np.array([1, 6, 8, 6, 1])
    positions = rng.uniform(size=(5, 3)) @ cell
    pairs = bf.pairs_of(positions, cell, True, 4.0)
    return tuple(torch.tensor(x) for x in (*pairs, numbers))


@pytest.mark.parametrize("make", [ReferenceCalls, KernelCalls], ids=["reference", "kernels"])
def test_channels_are_weighted_sums_of_the_functions_of_elements(make, inputs):
    """G_c = sum_z w_z G2_z, and over pairs of elements likewise: values and all derivatives."""
    resolved, contracted, matrix = resolved_and_contracted()
    full, channels, matrix = make(resolved), make(contracted), torch.tensor(matrix)
    absolute, numbers = matrix.abs(), inputs[3]

    def same(found, terms, of_elements):
        # rounding: relative to the sum of the absolute terms
        error = (found - of_elements @ matrix).abs()
        assert torch.all(error <= 1e-12 * (terms @ absolute))
        assert torch.all((found != 0).flatten(0, -2).any(0))

    g = full.values(*inputs)
    same(channels.values(*inputs), g.abs(), g)
    jacobian = bf.pair_jacobian(full, inputs)
    size = jacobian.abs().amax((0, 1)).expand_as(jacobian)
    same(bf.pair_jacobian(channels, inputs), size, jacobian)
    generator = torch.manual_seed(0)
    tangent = torch.randn(inputs[0].shape, dtype=torch.float64, generator=generator)
    jvp = full.jvp(*inputs, tangent)
    size = full.jvp(*inputs, inputs[0]).abs().amax(0).expand_as(jvp)
    same(channels.jvp(*inputs, tangent), 10 * size, jvp)
    grad_g = torch.randn(len(numbers), matrix.shape[1], dtype=torch.float64, generator=generator)
    found, expected = channels.vjp(*inputs, grad_g), full.vjp(*inputs, grad_g @ matrix.T)
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()
    stored, of_elements = channels.jacobian(*inputs), full.jacobian(*inputs)
    for name in ("values", "dg_dstrain", "dg_dr"):
        x = torch.tensor(getattr(of_elements, name))
        size = x.abs().amax(tuple(range(x.dim() - 1))).expand_as(x)
        same(torch.tensor(getattr(stored, name)), size, x)


def test_columns_depend_on_elements_with_a_weight():
    _, contracted, _ = resolved_and_contracted()
    blind = [k for k in range(contracted.n_columns) if k not in contracted.columns(8, 6)]
    assert blind == [2, 5, 8, 11, 14]  # the last table, which leaves carbon out
    assert contracted.columns(6, 8) == list(range(contracted.n_columns))


@pytest.mark.parametrize("n_elements", [1, 2, 3, 5, 9])
def test_number_of_functions_does_not_grow(n_elements):
    one = default_layout(["Mo"]).n_columns
    layout = default_layout(range(21, 21 + n_elements), channels=2)
    assert set(layout.n_functions.values()) == {one if n_elements == 1 else 2 * one}
    # nor does what a store keeps of a pair of atoms
    stored = {len(layout.columns(z, other)) for z in layout.elements for other in layout.elements}
    assert max(stored) <= 2 * one
    assert len(set(layout.functions[21])) == layout.n_columns
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_enough_channels_span_all_pairs_of_elements(n):
    elements = [4, 22, 42, 74][:n]
    n_pairs = n * (n + 1) // 2
    tables = element_channels(elements, 99)
    assert len(tables) == n_pairs
    w = np.array([[weight for _, weight in table] for table in tables])
    assert np.linalg.matrix_rank(w[:n]) == n
    products = [np.outer(t, t)[np.triu_indices(n)] for t in w]
    assert np.linalg.matrix_rank(products) == n_pairs
    assert np.all(np.abs(w).max(1) <= 1)
    assert np.all(w[0] == 1)
    assert element_channels(elements[::-1], 2) == tables[:2]  # whatever the order


def test_weights_given_by_element():
    tables = [{"Mo": 1.0, 52: 1.0}, {"Te": 2.0}]
    layout = default_layout(["Mo", "Te"], channels=tables, n_radial=2, zetas=[1])
    assert {f.weights for f in layout.functions[42]} == {((42, 1.0), (52, 1.0)), ((52, 2.0),)}
    assert "weights Mo=1 Te=1" in str(layout)
    with pytest.raises(ValueError, match="exclude each other"):
        default_layout(["Mo"], weighted=True, channels=2)
    with pytest.raises(ValueError, match="at least one channel"):
        default_layout(["Mo"], channels=0)


@pytest.mark.parametrize(
    ("kind", "weights", "match"),
    [
        ("wG2", {"Xx": 1.0}, "'Xx' is no chemical element"),
        ("wG2", {"H": float("nan")}, "weight of H is not finite"),
        ("wG2", {"H": 0.0}, "all element weights are zero"),
        ("G2", {"H": 1.0}, "G2 takes no element weights; wG2 does"),
    ],
)
def test_errors_name_the_problem(kind, weights, match):
    with pytest.raises(ValueError, match=match):
        SymmetryFunction(kind, () if kind == "wG2" else ("H",), 4.0, 1.0, weights=weights)


def test_layouts_without_weights_keep_their_fingerprint():
    """Stores and models made before there were weights remain valid."""
    assert default_layout(["Mo", "Te"]).fingerprint == "255c2982d425394f"
    assert default_layout(["Mo", "Te"], weighted=True).fingerprint == "562fac92ed59d644"
