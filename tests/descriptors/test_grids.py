import numpy as np
import pytest
import torch
from ase.build import bulk
from engine_calls import ReferenceCalls
from n2p2_reference import pair_list

from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS
from schnetpack_softadapt.descriptors.acsf.grids import angular_grid, default_layout, radial_grid
from schnetpack_softadapt.descriptors.acsf.layout import Layout


def test_radial_grid():
    grid = radial_grid(2.0, 6.0, 9)
    centered = [(eta, r_s) for eta, r_s in grid if r_s == 0.0]
    shifted = [(eta, r_s) for eta, r_s in grid if r_s > 0.0]
    assert len(centered) == 4
    # eta = 1 / (2 width^2), widths from the cutoff to half the shortest distance
    widths = [(2 * eta) ** -0.5 for eta, _ in centered]
    np.testing.assert_allclose(widths, np.geomspace(6.0, 1.0, 4))
    np.testing.assert_allclose([r_s for _, r_s in shifted], [2.0, 2.8, 3.6, 4.4, 5.2])
    np.testing.assert_allclose([eta for eta, _ in shifted], 1 / (2 * 0.8**2))


def test_angular_grid_has_whole_multiples_of_one_width():
    grid = angular_grid(5.0, 4, (1, 4))
    assert len(set(grid)) == 16
    etas = sorted({eta for eta, _, _ in grid})
    np.testing.assert_allclose(np.array(etas) / etas[0], [1, 3, 8, 23])
    np.testing.assert_allclose(etas[0], 0.02)


@pytest.mark.parametrize(
    ("elements", "n"),
    [
        (["Mo"], 40),
        (["Mo", "Te"], 104),
        (["Li", "P", "O"], 192),
        (["Li", "P", "O", "Co"], 304),
        (["Cr", "Mn", "Fe", "Co", "Ni"], 80),
        (range(1, 90), 80),
    ],
)
def test_sizes(elements, n):
    layout = default_layout(elements)
    assert set(layout.n_functions.values()) == {n}
    assert layout.cutoff == 6.0
    assert Layout.from_dict(layout.to_dict()) == layout


def test_options():
    layout = default_layout(
        ["Te", 42, "Mo"],
        5.5,
        angular_cutoff=4.0,
        n_radial=3,
        n_angular_widths=1,
        zetas=(1, 8),
        angular="G4",
        cutoff_fn="cosine",
    )
    assert layout.elements == (42, 52)
    assert set(layout.n_functions.values()) == {2 * 3 + 3 * 1 * 2 * 2}
    for f in layout.functions[52]:
        assert f.cutoff_fn == "cosine"
        assert f.kind in ("G2", "G4")
        assert f.cutoff == (5.5 if f.kind == "G2" else 4.0)
    assert {f.neighbors for f in layout.functions[42]} == {
        (42,),
        (52,),
        (42, 42),
        (42, 52),
        (52,) * 2,
    }
    mixed = default_layout(["Mo"], angular="mixed").functions[42]
    assert {(f.kind, f.lam) for f in mixed} == {("G2", 1.0), ("G4", 1.0), ("G5", -1.0)}
    weighted = default_layout(["Mo"], weighted=True, n_angular_widths=0)
    assert {f.kind for f in weighted.functions[42]} == {"wG2"}
    assert default_layout(["H"]).functions[1][0].cutoff_fn in CUTOFFS


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="at least one element"):
        default_layout([])
    with pytest.raises(ValueError, match="shortest distances"):
        default_layout(["Cs"], cutoff=3.0)
    with pytest.raises(ValueError, match="exceeds the cutoff"):
        default_layout(["Mo"], angular_cutoff=7.0)
    with pytest.raises(ValueError, match="G4"):
        default_layout(["Mo"], angular="G3")
    with pytest.raises(ValueError, match="at least one radial"):
        default_layout(["Mo"], n_radial=0)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Mo") * (3, 3, 3),
        bulk("Cs") * (3, 3, 3),
        bulk("C") * (3, 3, 3),
        bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2),
    ],
    ids=["Mo", "Cs", "diamond", "NaCl"],
)
def test_no_function_is_dead_in_a_crystal(atoms):
    """Every function sees a rattled crystal, well above what scaling takes for constant."""
    layout = default_layout(set(atoms.symbols))
    atoms.rattle(0.1, seed=0)
    r_ij, idx_i, idx_j = pair_list(atoms.positions, atoms.cell.array, True, layout.cutoff)
    g = ReferenceCalls(layout).values(
        *(torch.tensor(x) for x in (r_ij, idx_i, idx_j, atoms.numbers))
    )
    for z in layout.elements:
        of_element = g[torch.tensor(atoms.numbers == z)]
        spread = of_element.max(0).values - of_element.min(0).values
        assert torch.all(spread > 2e-8)
        assert torch.all(spread > 1e-3 * of_element.max(0).values)


# --- tables


def radial_parts(**settings):
    layout = default_layout(
        ["Mo"], 6.0, cutoff_fn="cosine", tables=[{"kind": "radial", **settings}]
    )
    return np.array([(f.eta, f.r_s) for f in layout.functions[42]]).T


def test_grids_of_a_table():
    # Imbalzano 2018 with n = 4: r_m = r_c / n^(m/n), eta 1 / r_m^2 or 1 / (r_(m-1) - r_m)^2
    r = 6.0 / 4 ** (np.arange(5) / 4)
    eta, r_s = radial_parts(placement="centred", points=5, r_low=1.5)
    np.testing.assert_allclose(eta, 1 / r**2)
    assert not r_s.any()
    eta, r_s = radial_parts(placement="shifted", points=4, r_low=1.5)
    np.testing.assert_allclose(r_s, r[1:])
    np.testing.assert_allclose(eta, 1 / (r[:-1] - r[1:]) ** 2)
    # Gastegger 2018
    eta, r_s = radial_parts(placement="centred", points=3, r_low=2.0, after="gastegger")
    np.testing.assert_allclose(eta, [1 / 8, 1 / 32, 1 / 72])
    assert not r_s.any()
    eta, r_s = radial_parts(placement="shifted", points=2, r_low=2.0, after="gastegger")
    np.testing.assert_allclose(r_s, [2.0, 4.0])
    np.testing.assert_allclose(eta, 1 / 8)


def test_tables_by_name():
    functions = default_layout(["Mo"], tables="imbalzano").functions[42]
    radial, angular = functions[:10], functions[10:]
    assert {f.kind for f in radial} == {"G2"}
    assert radial[-1].r_s == pytest.approx(1.0)
    assert all(f.r_s < 6.0 for f in radial)
    assert {(f.zeta, f.lam) for f in angular} == {(z, s) for z in (1, 3, 12) for s in (1, -1)}
    assert len({f.eta for f in angular}) == 4
    assert len(angular) == 24
    assert len(default_layout(["Mo", "Te"], tables="imbalzano").functions[52]) == 2 * 10 + 3 * 24


def test_tables_are_added_up():
    radial = {"kind": "radial", "points": 3}
    tables = [radial, {**radial, "channels": 2}, {"kind": "narrow", "weighted": True, "cutoff": 4}]
    layout = default_layout(["Mo", "Te"], tables=[*tables, radial])
    functions = layout.functions[42]
    kinds = [(f.kind, len(f.weights)) for f in functions]
    expected = [("G2", 0)] * 6 + [("wG2", 2)] * 6 + [("wG4", 0)] * 8  # what is there twice once
    assert kinds == expected
    assert {f.cutoff for f in functions} == {6.0, 4.0}
    assert Layout.from_dict(layout.to_dict()) == layout
    with pytest.raises(ValueError, match=r"no tables named 'behler'.*imbalzano"):
        default_layout(["Mo"], tables="behler")
    with pytest.raises(ValueError, match="list of tables is empty"):
        default_layout(["Mo"], tables=[])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "angular"}, r"table 2 \(angular\): kind must be one of"),
        ({"zeta": 1}, r"table 2 \(wide\): unknown setting 'zeta'.*zetas"),
        ({"points": 0}, r"table 2 \(wide\): points must be a whole number from 1 on, got 0"),
        ({"points": 2.5}, "points must be a whole number"),
        ({"r_low": 5.0}, r"table 2 \(wide\): r_low must be between 0 and the cutoff of 5, got 5"),
        ({"r_low": 0.0}, "r_low must be between"),
        ({"cutoff": 6.5}, r"table 2 \(wide\): cutoff 6.5 exceeds that of the layout, 6 Ang"),
        ({"placement": "centered"}, r"placement must be one of \['centred', 'shifted'\]"),
        ({"after": "behler"}, "after must be one of"),
        ({"zetas": [0.5]}, "zeta must be at least 1, got 0.5"),
        ({"zetas": []}, "zetas and lambdas must not be empty"),
        ({"lambdas": [0.5]}, r"lam must be \+1 or -1"),
        ({"channels": 0}, "at least one channel"),
        ({"channels": "2"}, "channels must be a number, or weights by element"),
        ({"kind": "ani", "weighted": True}, r"table 2 \(ani\): .*'wANI'"),
    ],
)
def test_errors_name_table_and_setting(change, match):
    with pytest.raises(ValueError, match=match):
        default_layout(["Mo"], tables=[{"kind": "radial"}, {"kind": "wide", **change}])
