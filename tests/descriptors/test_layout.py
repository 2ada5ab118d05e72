import json
import math
import pickle

import pytest

from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction


def small_layout(**changes):
    arguments = {"kind": "G4", "neighbors": (8, 1), "cutoff": 4.0, "eta": 0.1, "zeta": 2} | changes
    return Layout({"O": [SymmetryFunction("G2", (1,), 5, 1), SymmetryFunction(**arguments)]})


def test_functions_normalise_their_arguments():
    f = SymmetryFunction("G4", (8, 1), 4, 1, lam=-1)
    assert f.neighbors == (1, 8)
    assert f == SymmetryFunction("G4", (1, 8), 4.0, 1.0, lam=-1.0)
    assert "H O" in str(f)
    assert "lam=-1" in str(f)


def test_layout_by_symbol_or_number():
    f = SymmetryFunction("G2", (1,), 4, 1)
    g = SymmetryFunction("G2", (8,), 5, 1)
    layout = Layout({"O": [f, g], 1: [f]})
    assert layout == Layout({"H": [f], 8: [f, g]})
    assert layout.elements == (1, 8)
    assert layout.n_functions == {1: 1, 8: 2}
    assert layout.n_columns == 2
    assert layout.cutoff == 5.0
    assert "O: 2 symmetry functions" in str(layout)


def test_written_and_read_back():
    layout = small_layout()
    again = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert pickle.loads(pickle.dumps(layout)) == layout
    symbols = {"O": [{"kind": "G2", "neighbors": ["H"], "cutoff": 4.0, "eta": 1.0}]}
    assert Layout.from_dict(symbols).functions[8][0].neighbors == (1,)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "G5"},
        {"neighbors": (1, 1)},
        {"cutoff": 4.1},
        {"eta": 0.2},
        {"r_s": 0.1},
        {"zeta": 3},
        {"lam": -1},
        {"cutoff_fn": "tanh3"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_knows_every_parameter(change):
    assert small_layout(**change).fingerprint != small_layout().fingerprint
    assert small_layout().fingerprint == small_layout().fingerprint


def test_fingerprint_knows_the_order():
    f, g = small_layout().functions[8]
    assert Layout({8: [f, g]}).fingerprint != Layout({8: [g, f]}).fingerprint


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("G3", (1,), 4.0, 1.0), "unknown symmetry function kind 'G3'"),
        (("G2", (1, 8), 4.0, 1.0), r"takes 1 neighbour element\(s\)"),
        (("wG2", (1,), 4.0, 1.0), r"takes 0 neighbour element\(s\)"),
        (("G2", (1,), 0.0, 1.0), "cutoff must be positive"),
        (("G2", (1,), math.inf, 1.0), "cutoff must be a finite number"),
        (("G2", (1,), math.nan, 1.0), "cutoff must be a finite number"),
        (("G2", (1,), 4.0, math.nan), "eta must be a finite number"),
        (("G2", (1,), 4.0, math.inf), "eta must be a finite number"),
        (("G2", (1,), 4.0, -0.1), "eta must not be negative"),
        (("G2", (1,), 4.0, 1.0, math.nan), "r_s must be a finite number"),
        (("G4", (1, 1), 4.0, 1.0, 0.0, math.inf), "zeta must be a finite number"),
        (("G2", (1,), 4.0, 1.0, 0.0, 1.0, 1.0, "step"), r"cutoff function 'step'.*cosine"),
        (("G4", (1, 1), 4.0, 1.0, 0.0, 0.5), "zeta must be at least 1"),
        (("G4", (1, 1), 4.0, 1.0, 0.0, 1.0, 0.5), r"lam must be \+1 or -1"),
    ],
)
def test_errors_name_the_problem(arguments, match):
    with pytest.raises(ValueError, match=match):
        SymmetryFunction(*arguments)


def test_layout_errors():
    f = SymmetryFunction("G2", (1,), 4, 1)
    with pytest.raises(ValueError, match="at least one element"):
        Layout({})
    with pytest.raises(ValueError, match="O has no symmetry functions"):
        Layout({"O": []})
    with pytest.raises(ValueError, match="O has a symmetry function twice"):
        Layout({"O": [f, f]})
