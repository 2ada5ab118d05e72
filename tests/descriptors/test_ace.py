"""The cluster expansion against sums over tuples, and its parameters; more in test_densities."""

import math
from itertools import product

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import EngineCalls, tensors, values_of
from scipy.special import lpmv

from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.descriptors.ace.coupling import (
    generalised,
    independent,
    real_clebsch_gordan,
)
from schnetpack_softadapt.descriptors.ace.harmonics import spherical_harmonics
from schnetpack_softadapt.descriptors.ace.radial import radial_functions
from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan
from schnetpack_softadapt.model import ACE

EXPLICIT = ClusterExpansion(["H", "O"], 3.5, "chebyshev", n_functions=260, l_weight=0.5)
CONTRACTED = ClusterExpansion(
    ["H", "O"],
    cutoff=3.5,
    inner=1.6,
    inner_width=0.9,
    n_max=[4, 3, 2, 1],
    l_max=[0, 3, 3, 4],
    channels=[{"H": 0.3, "O": -1.1}],
)
POWER = ClusterExpansion(
    ["H", "O"],
    cutoff=3.5,
    radial="chebyshev",
    decay=2.0,
    cutoff_fn="power",
    max_order=3,
    degree=7,
    l_weight=1.5,
)
# four different densities of l = 1 are coupled in three ways
DISTINCT = ClusterExpansion(["H", "O"], cutoff=3.5, n_max=[1, 1, 1, 2], l_max=[0, 1, 1, 1])
_RNG = np.random.default_rng(0)
# what potentials of others have: radial functions of each l and bond, five and six densities
TABLE = ClusterExpansion(
    ["H", "O"],
    cutoff=3.5,
    radial="chebyshev_power",
    decay=2.5,
    inner=1.6,
    inner_width=0.9,
    radial_table=[[[_RNG.normal(size=(2, 4)) for _ in range(3)] for _ in "HO"] for _ in "HO"],
    products=[
        [[[0, 1, 1]], 0],
        [[[2, 1, 0], [2, 2, 1]], 2],
        [[[1, 1, 0], [1, 1, 1], [2, 2, 1]], 2],
        [[[1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1]], 1],
        [[[0, 1, 0], [1, 1, 0], [1, 2, 1], [2, 1, 1], [2, 2, 0]], [1, 2]],
        [[[1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1], [2, 1, 0], [2, 1, 1]], [1, 1, 1]],
        [[[1, 1, 1]] * 6, [0, 0, 0]],
    ],
)
BOX = 20 * np.eye(3)


# --- against sums over tuples of neighbours


def complex_harmonics(unit, level):
    """(P, 2 l + 1) with the phase of Condon and Shortley, 4 pi normalised."""
    phi = np.arctan2(unit[:, 1], unit[:, 0])
    columns = []
    for m in range(-level, level + 1):
        a, f = abs(m), math.factorial
        norm = math.sqrt((2 * level + 1) * f(level - a) / f(level + a))
        y = norm * lpmv(a, level, unit[:, 2]) * np.exp(1j * a * phi)
        columns.append(y if m >= 0 else (-1) ** a * y.conj())
    return np.stack(columns, 1)


def complex_coupling(l1, l2, level):
    """(2 l1 + 1, 2 l2 + 1, 2 L + 1) Clebsch-Gordan coefficients."""
    c = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * level + 1))
    for m1, m2 in product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        if abs(m1 + m2) <= level:
            entry = clebsch_gordan(2 * l1, 2 * l2, 2 * level)[m1 + l1, m2 + l2]
            c[m1 + l1, m2 + l2, m1 + m2 + level] = entry
    return c


def sum_over_tuples(function, weights, radial, harmonics):
    """One function of one atom; arrays by neighbour."""
    parts, level = function
    scalars = [weights[x.channel] * radial[:, x.n - 1] for x in parts]
    total = 0.0
    for js in product(range(len(radial)), repeat=len(parts)):
        y = [harmonics[x.l][j] for x, j in zip(parts, js, strict=True)]
        if len(parts) == 1:
            angular = y[0][0]
        elif len(parts) == 2:
            angular = (y[0] * y[1].conj()).sum()
        else:
            c = complex_coupling(parts[0].l, parts[1].l, level)
            left, right = np.einsum("abm,a,b->m", c, y[0], y[1]), y[2]
            if len(parts) == 4:
                c = complex_coupling(parts[2].l, parts[3].l, level)
                right = np.einsum("abm,a,b->m", c, y[2], y[3])
            angular = (left * right.conj()).sum()
        assert abs(angular.imag) < 1e-10 or len(parts) > 2
        total += math.prod(s[j] for s, j in zip(scalars, js, strict=True)) * angular
    return total


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_values_are_sums_over_tuples(make_backend, order):
    positions, numbers = bf.random_cluster(7, size=2.6)
    r_ij, idx_i, idx_j = bf.pairs_of(positions, BOX, False, 3.5)
    rng = np.random.default_rng(order)
    for descriptor in (EXPLICIT, CONTRACTED, DISTINCT):
        g = values_of(make_backend(descriptor), positions, BOX, False, numbers)[0]
        mine = idx_i == 0
        vectors, z_j = r_ij[mine], numbers[idx_j[mine]]
        r = np.linalg.norm(vectors, axis=1)
        assert len(r) >= 5
        radial = radial_functions(descriptor, torch.tensor(r)).numpy()
        harmonics = [complex_harmonics(vectors / r[:, None], x) for x in range(5)]
        weights = [
            np.array([dict(zip((1, 8), row, strict=True))[z] for z in z_j])
            for row in descriptor.weights
        ]
        of_order = [k for k, f in enumerate(descriptor.functions) if len(f.parts) == order]
        # those with the largest angular momenta, and others
        of_order.sort(key=lambda k: max(x.l for x in descriptor.functions[k].parts))
        odd = [k for k in of_order if descriptor.functions[k].level % 2][-4:]
        chosen = {*of_order[-4:], *odd, *rng.choice(of_order, min(4, len(of_order)), replace=False)}
        for k in chosen:
            expected = sum_over_tuples(descriptor.functions[k], weights, radial, harmonics)
            assert abs(expected.imag) < 1e-10
            assert g[k] == pytest.approx(expected.real, rel=1e-11, abs=1e-12)


def test_radial_functions():
    d = ClusterExpansion(["H"], 4.0, "chebyshev", decay=3.0, n_max=[5], l_max=[0], max_order=1)
    r = torch.linspace(0.5, 3.99, 20, dtype=torch.float64)
    scaled = 1 - 2 * (np.exp(-3.0 * (r.numpy() / 4 - 1)) - 1) / (np.exp(3.0) - 1)
    cut = 0.5 * (np.cos(np.pi * r.numpy() / 4) + 1)
    for n in range(1, 6):
        polynomial = 1 if n == 1 else 0.5 * (1 - np.cos((n - 1) * np.arccos(scaled)))
        np.testing.assert_allclose(radial_functions(d, r)[:, n - 1], polynomial * cut, atol=1e-13)


def test_bessel_functions_are_orthonormal_and_end_smoothly():
    d = ClusterExpansion(["H"], 4.0, "bessel", n_max=[6], l_max=[0], max_order=1)
    x, w = np.polynomial.legendre.leggauss(60)
    r = torch.tensor(2 * (x + 1))
    values = radial_functions(d, r).numpy()
    overlap = np.einsum("p,pm,pn->mn", 2 * w * r.numpy() ** 2, values, values)
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-12)
    near = radial_functions(d, torch.tensor([4.0 - 1e-3], dtype=torch.float64))
    assert near.abs().max() < 1e-6  # of third order


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cutoff_fn": "power"},
        {"radial": "chebyshev"},
        {"radial": "chebyshev", "outer_width": 0.4},
        {"radial": "chebyshev_power", "decay": 3.0},
    ],
)
def test_inner_and_outer_cutoff(make_backend, options):
    d = ClusterExpansion(
        ["H"], 3.0, inner=1.5, inner_width=0.4, n_functions=40, l_weight=0.5, **options
    )
    backend = make_backend(d)

    def values(r):
        r_ij = np.array([[2.0, 0, 0], [0, 0.6 * r, 0.8 * r]])
        inputs = tensors(r_ij, np.zeros(2, int), np.array([1, 2]), [1, 1, 1])
        return backend.values(*inputs)[0].detach().numpy()

    for end, inside in ((3.0, -1), (1.1, 1)):
        gone = values(end)
        assert np.array_equal(values(end - inside * 0.05), gone)
        for step in (1e-2, 1e-3):
            changed = np.abs(values(end + inside * step) - gone)
            assert 0 < changed.max() <= 300 * step**2
    assert not np.array_equal(values(1.4), values(1.6))


# --- coupling


def test_harmonics_of_every_direction():
    """Addition theorem: sum_m Y_lm(a) Y_lm(b) = (2 l + 1) P_l(a.b), at the poles as anywhere."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(12, 3))
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    unit = np.concatenate([unit, np.eye(3), -np.eye(3)])
    for level, y in enumerate(spherical_harmonics(torch.tensor(unit), 9)):
        expected = (2 * level + 1) * lpmv(0, level, np.clip(unit @ unit.T, -1, 1))
        np.testing.assert_allclose((y @ y.T).numpy(), expected, atol=1e-12)


def random_densities(levels, same, n, seed=0):
    """A (n, 2 l + 1) of random environments, the same for equal labels."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(n * 8, 3))
    harmonics = spherical_harmonics(torch.tensor(unit / np.linalg.norm(unit, axis=1)[:, None]), 5)
    factors = rng.normal(size=(8, n, 8))
    return [
        (factors[label][..., None] * harmonics[x].numpy().reshape(n, 8, -1)).sum(1)
        for x, label in zip(levels, same, strict=True)
    ]


@pytest.mark.parametrize(
    ("levels", "same", "number"),
    [
        ((1, 1, 1, 1), (0, 0, 0, 0), 1),
        ((2, 2, 2, 2), (0, 0, 0, 0), 1),
        ((4, 4, 4, 4), (0, 0, 0, 0), 2),
        ((2, 2, 2, 2), (0, 0, 2, 2), 3),
        ((2, 2, 2, 2), (0, 1, 1, 1), None),
        ((1, 1, 2, 2), (0, 0, 2, 2), None),
        ((1, 2, 2, 3), (0, 1, 1, 3), None),
        ((3, 3, 3, 5), (0, 0, 0, 3), None),
        ((1, 2, 3, 4), (0, 1, 2, 3), 3),
        ((2, 2, 2), (0, 0, 0), 1),
        ((1, 1, 2), (0, 0, 2), 1),
        ((1, 1, 1), (0, 1, 2), 0),
        ((3, 3), (0, 0), 1),
        ((1, 2), (0, 1), 0),
    ],
)
def test_as_many_functions_as_are_independent(levels, same, number):
    """The rank of all paths on random environments, by singular values."""
    kept = independent(levels, same)
    densities = random_densities(levels, same, 40)

    def values(path):
        if len(levels) == 2:
            return np.einsum("na,na->n", *densities)
        left = np.einsum("na,nb,abm->nm", *densities[:2], real_clebsch_gordan(*levels[:2], path))
        right = densities[2]
        if len(levels) == 4:
            c = real_clebsch_gordan(*levels[2:], path)
            right = np.einsum("na,nb,abm->nm", *densities[2:], c)
        return (left * right).sum(1)

    def rank(paths):
        if not paths:
            return 0
        singular = np.linalg.svd(np.stack([values(x) for x in paths]), compute_uv=False)
        return int((singular > 1e-10 * np.linalg.norm(densities[0])).sum())

    if len(levels) == 4:
        low = max(abs(levels[0] - levels[1]), abs(levels[2] - levels[3]))
        paths = range(low, min(levels[0] + levels[1], levels[2] + levels[3]) + 1)
        assert rank([*paths]) == len(kept)
    assert rank(kept) == len(kept)
    assert number is None or len(kept) == number


@pytest.mark.parametrize(
    ("levels", "same", "number"),
    [
        ((1, 1, 1, 1, 2), (0, 0, 0, 0, 4), 1),  # once in the symmetric fourth power of l = 1
        ((1, 1, 1, 1, 2), (0, 1, 2, 3, 4), 6),
        ((1, 1, 1, 1, 1, 1), (0, 0, 0, 0, 0, 0), 1),
        ((1, 1, 1, 1, 1, 1), (0, 1, 2, 3, 4, 5), 15),  # (a b) (c d) (e f) of six vectors
    ],
)
def test_five_and_six_densities(levels, same, number):
    assert len(independent(levels, same)) == number


def test_six_equal_vectors_give_the_cube_of_their_square():
    (a,) = random_densities((1,), (0,), 1)
    b = np.einsum("abcdef,a,b,c,d,e,f", generalised((1,) * 6, (0, 0, 0)), *[a[0]] * 6)
    c = real_clebsch_gordan(1, 1, 0)[0, 0, 0]  # of a scalar product
    assert b == pytest.approx((c * a[0] @ a[0]) ** 3, rel=1e-12)


def test_all_functions_together_are_independent():
    d = ClusterExpansion(["H"], 4.0, "chebyshev", decay=2.0, degree=9, l_weight=1.0)
    rng = np.random.default_rng(0)
    n, size = 300, 12
    vectors = rng.normal(size=(n * size, 3))
    vectors *= (rng.uniform(0.8, 3.9, n * size) / np.linalg.norm(vectors, axis=1))[:, None]
    idx_i = np.repeat(np.arange(n), size)
    g = EngineCalls(d.engine("cpu", "reference")).values(*tensors(vectors, idx_i, idx_i, [1] * n))
    # products of many factors are alike: as far as double precision reaches
    g = g.detach().numpy()
    singular = np.linalg.svd(g / np.linalg.norm(g, axis=0), compute_uv=False)
    assert len(singular) == len(d.functions) > 80
    assert singular[-1] > 1e-12 * singular[0], singular[-1] / singular[0]


# --- parameters


def test_functions_are_chosen_and_named():
    sizes = [ClusterExpansion(["W"], n_functions=n).n_columns for n in (1, 60, 700)]
    assert sizes == [1, 60, 700]
    few, many = (ClusterExpansion(["W"], n_functions=n).functions for n in (60, 200))
    assert many[:60] == few  # the first of a larger set
    assert len(set(many)) == 200
    d = ClusterExpansion(["W"], n_max=[3, 2], l_max=[0, 1], max_order=2)
    # A_1, A_2, A_3; and 11, 12, 22 for l = 0 and 1
    assert d.n_columns == 9
    assert d.describe(74, 8) == "A(2, 1) A(2, 1)"
    # degree 2 n + 2 l_weight l of products of two
    assert ClusterExpansion(["W"], degree=4, max_order=2, l_weight=0.5).n_columns == 4 + 7
    assert EXPLICIT.describe(8, 1) == "A(1, 0)_O"
    assert any(DISTINCT.describe(1, k).endswith("_O, L = 1") for k in range(DISTINCT.n_columns))
    two = [ClusterExpansion(["W", "Be"], degree=5, channels=n).n_columns for n in (1, 2, None)]
    assert two[0] == ClusterExpansion(["W"], degree=5).n_columns < two[1] == two[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": []}, "elements must be given"),
        ({"elements": ["W", 74]}, "each once"),
        ({"n_functions": None}, "give n_functions, or degree, or n_max and l_max"),
        ({"n_functions": 2.5}, "n_functions must be a whole number"),
        ({"radial": "sine"}, "radial must be one of chebyshev, bessel"),
        ({"radial": "chebyshev", "cutoff_fn": "none"}, "jump at the cutoff"),
        ({"cutoff": float("nan")}, "cutoff must be positive"),
        ({"inner": 1.0}, "inner_width above 0"),
        ({"max_order": 5}, "max_order must be from 1 to 4"),
        ({"n_max": [3, 2]}, "one number for each order"),
        ({"channels": 2}, "1 elements have no more than 1 channels"),
        ({"channels": [{"Mo": 1.0}]}, "a finite weight for each of W"),
        ({"elements": ["W", "H"], "channels": [{"W": 1, "H": 1}] * 2}, "depend on each other"),
        ({"products": [[[[1, 1, 0]], 0]]}, "products must be independent invariants"),
        ({"products": [[[[0, 2, 0], [0, 1, 0]], 0]]}, "in ascending order"),
        ({"radial_table": [[[[[1.0, float("inf")]]]]]}, "finite coefficients"),
        ({"radial_table": [[[[[1.0, 0.0]]]]]}, "no radial function"),
        ({"radial": "chebyshev_power", "decay": 1.0}, "a decay above 1"),
        ({"n_functions": None, "degree": 60, "l_weight": 3.0}, "more than 5000 functions"),
    ],
)
def test_wrong_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        ClusterExpansion(**{"elements": ["W"], "n_functions": 10, **options})


def test_representation_chooses_the_elements():
    representation = ACE(cutoff=4.0, parameters={"n_functions": 30, "channels": 2})
    assert representation.descriptor is None  # until the elements are known
    representation.build(["W", "Be"])
    assert representation.descriptor.elements == (4, 74)
    assert representation.descriptor.cutoff == 4.0
    assert representation.n_atom_basis == 30
    assert ACE(descriptor=CONTRACTED.to_dict()).descriptor == CONTRACTED
    with pytest.raises(ValueError, match="give n_functions"):
        ACE(parameters={"radial": "bessel"})
