"""Bispectrum components against LAMMPS, and their parameters; more in test_densities."""

import json
from pathlib import Path

import brute_force as bf
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read
from engine_calls import EngineCalls, tensors, values_of
from shared import shared_path

from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan, components
from schnetpack_softadapt.model import SNAP

LAMMPS = json.loads((Path(__file__).parent / "reference" / "snap" / "lammps.json").read_text())
BE_W = np.array([4, 74])
TWO_ELEMENTS = {"radii": {"Be": 0.42, "W": 0.5}, "weights": {"Be": 0.96}, "rcutfac": 4.6}
PLAIN = Bispectrum(**TWO_ELEMENTS, twojmax=5)
CHEM = Bispectrum(
    **TWO_ELEMENTS,
    twojmax=2,
    rmin0=0.5,
    chemflag=True,
    sinner={"Be": 1.8, "W": 2.2},
    dinner={"Be": 0.4, "W": 0.6},
)
QUADRATIC = Bispectrum(**TWO_ELEMENTS, twojmax=1, chemflag=True, quadraticflag=True)


def derivatives_as_lammps(backend, positions, cell, numbers, elements):
    """Values (N, D), and -sum_i dB_i/dR_k over the atoms i of each element (N, elements, 3, D)."""
    r_ij, idx_i, idx_j = bf.pairs_of(positions, cell, True, backend.descriptor.cutoff)
    with torch.no_grad():
        jacobian = backend.jacobian(*tensors(r_ij, idx_i, idx_j, numbers))
    out = np.zeros((len(numbers), len(elements), 3, jacobian.values.shape[1]))
    for i, z in enumerate(numbers):
        for block in range(*jacobian.block_first[i : i + 2]):
            out[jacobian.block_atom[block], elements.index(z)] -= jacobian.dg_dr[block]
            out[i, elements.index(z)] += jacobian.dg_dr[block]
    return jacobian.values, out


# --- against LAMMPS


@pytest.mark.parametrize("case", LAMMPS["cases"])
def test_values_and_derivatives_agree_with_another_code(make_backend, case):
    expected = LAMMPS["cases"][case]
    options = dict(expected["options"])
    for name in ("sinner", "dinner"):
        if name in options:
            options[name] = dict(zip(BE_W.tolist(), options[name], strict=True))
    radii, weights = (
        dict(zip(BE_W.tolist(), LAMMPS[k], strict=True)) for k in ("radii", "weights")
    )
    descriptor = Bispectrum(radii, weights, **options)
    cell, numbers = np.array(LAMMPS["cell"]), BE_W[np.array(LAMMPS["types"]) - 1]
    found = derivatives_as_lammps(
        make_backend(descriptor), LAMMPS["scaled"] @ cell, cell, numbers, [4, 74]
    )
    for ours, key in zip(found, ("values", "derivatives"), strict=True):
        theirs = np.array(expected[key])
        assert ours.shape == theirs.shape
        # sums of a few hundred terms of both signs on either side
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "elements", "options"),
    [
        ("Mo_2J6", ["Mo"], {"rcutfac": 4.6, "twojmax": 6}),
        ("Mo_2J8", ["Mo"], {"rcutfac": 4.73, "twojmax": 8}),
        ("WBe_2J8", ["W", "Be"], {"rcutfac": 4.8123, "twojmax": 8}),
        ("W_2J2_small_cell", ["W"], {"rcutfac": 4.73, "twojmax": 2}),
    ],
)
def test_larger_structures_agree_with_another_code(name, elements, options):
    folder = shared_path(f"reference/snap/{name}")
    # not the other file, whose cell lies differently
    atoms = read(folder / "structure.data", format="lammps-data", atom_style="atomic")
    radii, weights = {"Mo": 0.5, "W": 0.5, "Be": 0.417932}, {"Mo": 1, "W": 1, "Be": 0.959049}
    descriptor = Bispectrum(
        {x: radii[x] for x in elements},
        {x: weights[x] for x in elements},
        bzeroflag=False,
        **options,
    )
    backend = EngineCalls(descriptor.engine("cpu", "kernels"))
    numbers = [bulk(x).numbers[0] for x in elements]
    values, derivatives = derivatives_as_lammps(
        backend, atoms.positions, atoms.cell.array, atoms.numbers, numbers
    )
    for ours, file in ((values, "B.txt"), (derivatives.reshape(len(atoms), -1), "dB.txt")):
        theirs = np.loadtxt(folder / file, ndmin=2)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * np.abs(values).max())


@pytest.mark.parametrize("options", [{}, {"rmin0": 0.9}], ids=["usual", "rmin0"])
def test_smooth_across_the_cutoff(make_backend, options):
    descriptor = Bispectrum({"W": 0.5}, rcutfac=3.0, twojmax=4, **options)
    backend = make_backend(descriptor)
    steps = np.array([-1e-3, -1e-5, 0.0, 1e-5, 1e-3])
    found = []
    for step in steps:
        r_ij = np.array([[2.0, 0, 0], [0, 3.0 + step, 0], [-2.0, 0, 0], [0, -3.0 - step, 0]])
        inputs = tensors(r_ij, np.array([0, 0, 1, 2]), np.array([1, 2, 0, 0]), [74, 74, 74])
        tangent = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, -1, 0]]).double()
        grad = torch.ones(3, descriptor.n_columns, dtype=torch.float64)
        slope = (backend.vjp(*inputs, grad) * tangent).sum(1)[1]
        found.append([*backend.values(*inputs)[0].detach().numpy(), slope.item()])
    found = np.array(found)
    assert np.array_equal(found[2], found[3])
    assert np.array_equal(found[2], found[4])
    assert found[2, -1] == 0
    for step, row in zip(steps[:2], found[:2], strict=True):
        assert np.all(np.abs(row[:-1] - found[2, :-1]) <= 100 * step**2)
        assert 1e-3 * abs(step) < np.abs(row[-1]) <= 2000 * abs(step)


def test_atoms_without_neighbours(make_backend):
    """With bzeroflag they have zeros; without, the components of the atom itself."""
    for descriptor in (PLAIN, CHEM, QUADRATIC, Bispectrum({"W": 0.5, "Be": 0.4}, bzeroflag=False)):
        backend = make_backend(descriptor)
        inputs = tensors(np.zeros((0, 3)), *np.zeros((2, 0), int), [74, 4])
        g = backend.values(*inputs).detach()
        expected = torch.zeros_like(g)
        if not descriptor.bzeroflag:
            # sum over m of the diagonal of 1 (x) 1 on j, which is 1
            expected += torch.tensor([b.j + 1.0 for b in components(descriptor.twojmax)])
        torch.testing.assert_close(g, expected, rtol=1e-13, atol=1e-13)


def test_pairs_beyond_their_cutoff_do_not_count(make_backend):
    """That of Be and Be is shorter than that of W and W."""
    backend = make_backend(PLAIN)
    positions, cell, numbers = bf.perturbed_crystal()
    numbers = BE_W[(numbers == 8).astype(int)]
    g = values_of(backend, positions, cell, True, numbers)
    inputs = tensors(*bf.pairs_of(positions, cell, True, PLAIN.cutoff + 1.5), numbers)
    torch.testing.assert_close(backend.values(*inputs).numpy(force=True), g, rtol=1e-12, atol=1e-10)
    r_ij, idx_i, idx_j, z = inputs
    short = (z[idx_i] == 4) & (z[idx_j] == 4) & (torch.linalg.norm(r_ij, dim=1) >= 2 * 0.42 * 4.6)
    assert (torch.linalg.norm(r_ij[short], dim=1) < PLAIN.cutoff).any()
    vjp = backend.vjp(*inputs, torch.ones(g.shape, dtype=torch.float64))
    assert torch.all(vjp[short] == 0)


# --- parameters


def test_numbers_of_components():
    sizes = [Bispectrum({"W": 0.5}, twojmax=j).n_columns for j in (2, 4, 6, 8)]
    assert sizes == [5, 14, 30, 55]
    d = Bispectrum({"W": 0.5}, twojmax=6, quadraticflag=True)
    assert d.n_columns == 495
    assert d.describe(74, 1) == "B(0.5, 0, 0.5)"
    assert d.describe(74, 30) == "B(0, 0, 0) times B(0, 0, 0) / 2"
    assert CHEM.describe(74, 6) == "B(0.5, 0, 0.5) of Be Be W"


def test_coefficients_couple_orthogonally():
    assert clebsch_gordan(1, 1, 0)[0, 1] == pytest.approx(-np.sqrt(0.5), abs=1e-15)
    assert clebsch_gordan(2, 1, 1)[2, 0] == pytest.approx(np.sqrt(2 / 3), abs=1e-15)
    for j1, j2 in ((4, 3), (8, 8), (7, 2)):
        levels = range(abs(j1 - j2), j1 + j2 + 1, 2)
        squares = sum(clebsch_gordan(j1, j2, j) ** 2 for j in levels)
        np.testing.assert_allclose(squares, 1.0, rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": {}}, "at least one element"),
        ({"twojmax": 2.5}, "twojmax"),
        ({"weights": {"Be": 1.0}}, "weights names elements without radius: Be"),
        ({"sinner": {"W": 1.0}}, "together"),
        ({"radii": {"W": -0.5}}, "radii of W must be positive"),
        ({"rcutfac": float("nan")}, "rcutfac must be positive"),
        ({"rmin0": 5.0}, "rmin0 must be"),
    ],
)
def test_wrong_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        Bispectrum(**{"radii": {"W": 0.5}, **options})


def test_representation_chooses_the_radii():
    representation = SNAP(cutoff=5.0, parameters={"twojmax": 2, "radii": {"Be": 0.4, "W": 0.8}})
    assert representation.descriptor is None  # until the elements are known
    representation.build([74, 13])
    assert representation.descriptor.radii == {13: 0.5, 74: 0.8}
    assert representation.descriptor.cutoff == pytest.approx(5.0, rel=1e-15)
    assert representation.n_atom_basis == 5
    assert SNAP(descriptor=PLAIN.to_dict()).descriptor == PLAIN
    with pytest.raises(ValueError, match="rcutfac follows"):
        SNAP(parameters={"rcutfac": 4.0})
