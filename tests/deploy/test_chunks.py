"""Evaluation in chunks of atoms against evaluation at once."""

import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from deploy_models import make_layout, make_model, mo, mote2

from schnetpack_softadapt.deploy import calculator
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.extrapolation import ExtrapolationError
from schnetpack_softadapt.model.pair_evaluator import PairEvaluator
from schnetpack_softadapt.neighbors.pair_list import LinkedCells, neighbor_pairs


def outside_of_cell(atoms: Atoms) -> Atoms:
    """The same crystal, with atoms given in other cells and in any order."""
    rng = np.random.default_rng(0)
    atoms = atoms[rng.permutation(len(atoms))]
    atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    return atoms


def slab() -> Atoms:
    atoms = mote2()
    atoms.pbc = [True, True, False]
    return atoms


def wire() -> Atoms:
    atoms = mote2(seed=1)
    atoms.pbc = [False, True, False]
    return atoms


def cluster() -> Atoms:
    atoms = mo()
    atoms.pbc = False
    atoms.cell = np.zeros((3, 3))
    return atoms


def lone_atom_beside() -> Atoms:
    """Chunks without a pair, and an element that only one of them has."""
    atoms = mo(n=1) + Atoms("Te2", [[30.0, 0, 0], [60.0, 0, 0]])
    atoms.pbc = False
    return atoms


STRUCTURES = {
    "crystal": lambda: outside_of_cell(mo()),
    "cell smaller than the cutoff": lambda: mo(n=1),
    "two elements": lambda: outside_of_cell(mote2()),
    "slab": slab,
    "wire": wire,
    "cluster": cluster,
    "lone atoms": lone_atom_beside,
}


def results(atoms, model, **kwargs) -> dict:
    """All that the calculator gives, with itself."""
    atoms = atoms.copy()
    atoms.calc = SoftAdaptCalculator(model, **kwargs)
    atoms.get_forces()
    return {**atoms.calc.results, "calculator": atoms.calc}


def assert_same(got: dict, expected: dict, rtol: float = 1e-11):
    """Sums over the same terms in another order: a few roundings of the largest number."""
    assert got.keys() == expected.keys()
    for name in expected.keys() - {"calculator"}:
        scale = max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(got[name], expected[name], atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_evaluation_at_once(name):
    atoms, model = STRUCTURES[name](), make_model()
    expected = results(atoms, model)
    assert np.abs(expected["forces"]).max() > 0.01 or name == "lone atoms"
    assert ("stress" in expected) == bool(atoms.pbc.any())
    for size in {1, 2, 5, 7, len(atoms) - 1, len(atoms), 1000}:
        got = results(atoms, model, atoms_per_chunk=size)
        assert_same(got, expected)
        assert got["calculator"].neighbors.n_updates == (size >= len(atoms))


@pytest.mark.parametrize(
    ("change", "kwargs"),
    [
        ({"scaling": "center"}, {}),
        ({"stress": False}, {"stress_key": None}),
        ({}, {"position_unit": 0.8, "energy_unit": "Ha"}),
        ({}, {"dtype": "float32"}),
    ],
)
def test_options(change, kwargs):
    atoms, model = mote2(), make_model(**change)
    expected = results(atoms, model, **kwargs)
    assert np.abs(expected["forces"]).max() > 0.01
    assert_same(results(atoms, model, atoms_per_chunk=5, **kwargs), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_reference_backend(dtype):
    atoms, model = mote2(), make_model()
    model.representation.backend = "reference"
    expected = results(atoms, model, dtype=dtype)
    got = results(atoms, model, dtype=dtype, atoms_per_chunk=5)
    # torch rounds to the model's precision
    assert_same(got, expected, 1e-11 if dtype == "float64" else 1e-5)


def test_committee_of_different_functions():
    """Two models share their symmetry functions; the third has others, and another cutoff."""
    wider = make_layout("poly2")
    models = [make_model(0), make_model(1), make_model(2, layout=wider)]
    atoms = outside_of_cell(mote2())
    expected = results(atoms, models)
    assert expected["forces_std"].max() > 0.01
    for size in (1, 5):
        assert_same(results(atoms, models, atoms_per_chunk=size), expected)


def test_no_more_atoms_at_a_time(monkeypatch):
    seen = []
    evaluate = PairEvaluator.__call__

    def spy(self, r_ij, idx_i, idx_j, numbers, n_central, start=0):
        seen.append((start, n_central, len(numbers), len(np.unique(idx_i))))
        return evaluate(self, r_ij, idx_i, idx_j, numbers, n_central, start)

    monkeypatch.setattr(PairEvaluator, "__call__", spy)
    results(mote2(), make_model(), atoms_per_chunk=5)
    # one atom of each element stands for the neighbours
    assert seen == [(0, 5, 7, 5), (5, 5, 7, 5), (10, 2, 4, 2)]


# --- extrapolations


def squeezed() -> Atoms:
    atoms = mote2(0.3, seed=9)
    atoms.set_cell(atoms.cell * 0.9, scale_atoms=True)
    return atoms


def test_extrapolations_are_counted_alike(caplog):
    model = make_model()
    told, counted = [], []
    for size in (None, 1, 5):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            atoms = squeezed()
            atoms.calc = SoftAdaptCalculator(model, atoms_per_chunk=size)
            for _ in range(2):
                atoms.get_forces()
                atoms.rattle(0.05, seed=1)
        told.append([r.getMessage() for r in caplog.records])
        monitor = atoms.calc.extrapolation
        counted.append((monitor.n_steps, monitor.n_last, monitor.n_total, monitor.counts.tolist()))
    assert counted[0][1] > 3
    assert counted[0][0] == 2
    assert len(told[0]) == 1
    assert told == told[:1] * 3
    assert counted == counted[:1] * 3


def test_too_many_extrapolations_in_all_chunks_together():
    model, errors = make_model(), []
    for size in (None, 1, 5):
        n_last = results(squeezed(), model, atoms_per_chunk=size)["calculator"].extrapolation.n_last
        results(squeezed(), model, atoms_per_chunk=size, max_extrapolations=n_last)
        with pytest.raises(ExtrapolationError) as error:
            results(squeezed(), model, atoms_per_chunk=size, max_extrapolations=n_last - 1)
        errors.append(str(error.value))
    assert errors == errors[:1] * 3


# --- when, and when not


def test_large_structures_go_in_chunks_by_themselves(monkeypatch):
    monkeypatch.setattr(calculator, "_LARGEST_WHOLE", 11)
    monkeypatch.setattr(calculator, "_ATOMS_PER_CHUNK", 5)
    model, atoms = make_model(), mote2()
    expected = results(atoms, model, atoms_per_chunk=12)
    assert expected["calculator"].neighbors.n_updates == 1
    got = results(atoms, model)
    assert got["calculator"].neighbors.n_updates == 0
    assert_same(got, expected)
    assert results(mo(n=1), model)["calculator"].neighbors.n_updates == 1
    # other models need all pairs at once
    dummy = {"dummy": torch.zeros(1)}
    assert results(atoms, model, additional_inputs=dummy)["calculator"].neighbors.n_updates == 1


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(ValueError, match="atoms_per_chunk must be positive"):
        SoftAdaptCalculator(make_model(), atoms_per_chunk=size)


def test_models_that_need_all_pairs():
    with pytest.raises(ValueError, match="needs models with descriptors"):
        SoftAdaptCalculator(
            make_model(), atoms_per_chunk=5, additional_inputs={"dummy": torch.zeros(1)}
        )


def test_errors_are_those_of_evaluation_at_once():
    exploded, flat, unknown = mo(), mo(), molecule("H2O")
    exploded.positions[3] = np.nan
    flat.cell[2] = 0.0
    for atoms, words in (
        (exploded, "has exploded"),
        (flat, "lattice vector 2"),
        (unknown, "does not know H, O"),
    ):
        for size in (None, 2):
            with pytest.raises(ValueError, match=words):
                results(atoms, make_model(), atoms_per_chunk=size)


# --- neighbours of some atoms


@pytest.mark.parametrize("name", STRUCTURES)
def test_pairs_of_some_atoms(name):
    atoms = STRUCTURES[name]()
    arguments = (atoms.positions, atoms.cell.array, atoms.pbc, 4.5)
    idx_i, idx_j, r_ij, _ = neighbor_pairs(*arguments)
    cells = LinkedCells(*arguments)
    for start, stop in ((0, len(atoms)), (0, 1), (2, 2), (1, 4), (len(atoms) - 1, len(atoms))):
        chosen = (idx_i >= start) & (idx_i < stop)
        for got, expected in zip(cells.pairs(start, stop), (idx_i, idx_j, r_ij), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected[chosen])
