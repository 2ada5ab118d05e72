"""SNAP potentials of LAMMPS as models, and back."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from ase.units import bar
from exported import CRYSTAL, calculated, lammps_step
from shared import shared_path

from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.deploy.exchange.snap import SnapFormatError, read_snap, write_snap
from schnetpack_softadapt.deploy.exchange.text import write_text
from schnetpack_softadapt.deploy.loading import load_potential
from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.descriptors.snap.clebsch import components
from schnetpack_softadapt.model import (
    ACSF,
    SNAP,
    ZBL,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.composition import UnsupportedModelError

COEFFICIENTS = "2 {n}\nW 0.5 1.0\n{w}\nBe 0.42 0.96  # lighter\n{be}\n"
PARAMETERS = "# small\nrcutfac 4.6\ntwojmax 1\nchemflag 1\nquadraticflag {q}\nbzeroflag 0\n"


def potential(folder, q=0):
    """Random coefficients of two elements; the order of the file is not that of the numbers."""
    n = 17 + q * 16 * 17 // 2
    w, be = np.random.default_rng(0).normal(size=(2, n)) * 0.01
    text = {"n": n, "w": "\n".join(map(repr, w.tolist())), "be": "\n".join(map(repr, be.tolist()))}
    path = folder / "small.snapcoeff"
    path.write_text(COEFFICIENTS.format(**text))
    path.with_suffix(".snapparam").write_text(PARAMETERS.format(q=q))
    return path, w, be


def structure(name):
    folder = shared_path(f"reference/snap/{name}")
    return folder, read(folder / "structure.data", format="lammps-data", atom_style="atomic")


def test_published_potential_of_one_element():
    folder, atoms = structure("Mo_2J6")
    atoms = calculated(atoms, read_snap(folder.parent / "Mo_Zuo_JPCA2020.snapcoeff"))
    expected = np.loadtxt(folder / "energy.txt")
    assert atoms.get_potential_energy() == pytest.approx(float(expected), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), np.loadtxt(folder / "forces.txt"), atol=1e-9)
    pressure = np.loadtxt(folder / "pressure_bar.txt")
    # ten digits in the file, and LAMMPS has another constant for bar
    np.testing.assert_allclose(-atoms.get_stress() / bar, pressure, rtol=1e-6, atol=0.1)


def test_published_potential_of_two_elements():
    """Without ZBL, which is in the reference energies: from the components and coefficients."""
    folder, atoms = structure("WBe_2J8")
    path = folder.parent / "WBe_Wood_PRB2019.snapcoeff"
    atoms = calculated(atoms, read_snap(path))
    words = [line.split("#")[0].split() for line in path.read_text().splitlines()]
    numbers = [float(x[0]) for x in words if len(x) == 1]
    beta = np.reshape(numbers, (2, 56))
    row = (atoms.numbers == 4).astype(int)
    b = np.loadtxt(folder / "B.txt")
    # the reference components were not, the potential's are reduced by those of an isolated atom
    isolated = np.array([x.j + 1.0 for x in components(8)])
    expected = (beta[row, 0] + (beta[row, 1:] * (b - isolated)).sum(1)).sum()
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-9)
    derivatives = np.loadtxt(folder / "dB.txt").reshape(len(atoms), 2, 3, 55)
    expected = np.einsum("ntxk,tk->nx", derivatives, beta[:, 1:])
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-9)


def test_quadratic_potential_has_all_products():
    folder, atoms = structure("Mo_2J6")
    path = folder.parent / "Mo_Zuo_JPCA2020.quadratic.snapcoeff"
    model = read_snap(path)
    assert model.representation.descriptor.n_columns == 495
    atoms = calculated(atoms, model)
    forces, h = atoms.get_forces(), 1e-4
    energies = []
    for sign in (1, -1):
        moved = calculated(atoms, model)
        moved.positions[3, 1] += sign * h
        energies.append(moved.get_potential_energy())
    assert forces[3, 1] == pytest.approx((energies[1] - energies[0]) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("q", [0, 1], ids=["linear", "quadratic"])
def test_order_of_elements_and_written_files(tmp_path, q):
    path, w, be = potential(tmp_path, q)
    model = read_snap(path)
    # isolated atoms: in the file the components of W W W are the first, of Be Be Be the last
    linear = components(1)
    n = len(linear)
    own = np.array([x.j + 1.0 for x in linear])
    for coefficients, first, symbol in ((w, 1, "W"), (be, 17 - n, "Be")):
        expected = coefficients[0] + coefficients[first : first + n] @ own
        if q:
            b = np.zeros(16)
            b[first - 1 : first - 1 + n] = own
            i, j = np.triu_indices(16)
            expected += coefficients[17:] @ (np.where(i == j, 0.5, 1.0) * b[i] * b[j])
        alone = calculated(Atoms(symbol), model)
        assert alone.get_potential_energy() == pytest.approx(expected, abs=1e-12)
    cluster = Atoms("WBeWBe", np.array([[0, 0, 0], [2.1, 0, 0.3], [0.2, 2.4, 0], [1, 1, 1.9]]))
    before = calculated(cluster, model)
    files = write_snap(model, tmp_path / "again.snapcoeff")
    after = calculated(cluster, read_snap(files[0]))
    assert after.get_potential_energy() == pytest.approx(before.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(after.get_forces(), before.get_forces(), atol=1e-12)


def test_scaling_is_in_the_coefficients_written(tmp_path):
    path, *_ = potential(tmp_path)
    model = read_snap(path)
    generator = torch.manual_seed(1)
    scaling, networks = model.representation.scaling, model.output_modules[0]
    with torch.no_grad():
        for x in (scaling.shift, scaling.factor, networks.biases[0]):
            x.copy_(torch.rand(x.shape, dtype=x.dtype, generator=generator))
        networks.scale.fill_(1.7)
    cluster = Atoms("WBeW", [[0, 0, 0], [2.1, 0, 0.3], [0.2, 2.4, 0]])
    before = calculated(cluster, model).get_potential_energy()
    (written, _) = write_snap(model, tmp_path / "scaled.snapcoeff")
    after = calculated(cluster, read_snap(written)).get_potential_energy()
    assert after == pytest.approx(before, abs=1e-11)


def fitted(quadratic, postprocessors=()):
    """A model as a linear fit leaves it: scaled descriptors, random coefficients."""
    generator = torch.manual_seed(3)
    descriptor = Bispectrum({"W": 0.5, "Be": 0.42}, {"Be": 0.96}, twojmax=2, rcutfac=3.6)
    networks = ElementalAtomwise(
        n_in=5, elements=["W", "Be"], n_hidden=(), quadratic=quadratic, shifts={"W": -3.0}
    )
    model = DescriptorPotential(
        representation=SNAP(descriptor=descriptor, scaling="sigma"),
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
        postprocessors=list(postprocessors),
        input_dtype_str="float64",
    ).double()
    scaling = model.representation.scaling
    with torch.no_grad():
        for x in (scaling.shift, scaling.factor, networks.weights[0], networks.biases[0]):
            x.copy_(0.1 * torch.rand(x.shape, dtype=x.dtype, generator=generator))
    networks.scale.fill_(1.7)
    model.metadata["units"] = {"energy": "eV", "forces": "eV/Ang", "length": "Ang"}
    return model.eval()


@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
def test_exported_fit_is_read_back(tmp_path, quadratic):
    model = fitted(quadratic)
    files, _ = export_potential([model], tmp_path, CRYSTAL, "snap")
    assert {"potential.snapcoeff", "snap.lammps", "in.lammps"} <= {f.name for f in files}
    before = calculated(CRYSTAL, model)
    after = calculated(CRYSTAL, load_potential(tmp_path))
    energy = before.get_potential_energy()
    assert after.get_potential_energy() == pytest.approx(energy, abs=1e-10 * abs(energy))
    np.testing.assert_allclose(after.get_forces(), before.get_forces(), atol=1e-9)


def test_text_of_a_quadratic_model(tmp_path):
    """In `potential.json`, which the calculator and LAMMPS' mliap read."""
    model = fitted(True)
    write_text([model], tmp_path)
    before, after = (calculated(CRYSTAL, m) for m in (model, load_potential(tmp_path)))
    np.testing.assert_allclose(after.get_forces(), before.get_forces(), atol=1e-10)


@pytest.mark.skipif(shutil.which("lmp") is None, reason="there is no lmp on PATH")
@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
def test_exported_fit_with_zbl_in_lammps(tmp_path, quadratic):
    zbl = ZBL.of_elements([4, 74], inner=2.0, outer=3.0, fade=False)
    model = fitted(quadratic, [zbl])
    export_potential([model], tmp_path, CRYSTAL, "snap")
    ours, energy, forces, _ = lammps_step(tmp_path, model)
    assert ours.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(ours.get_forces(), forces, atol=1e-9)


def test_fading_models_are_refused(tmp_path):
    model = fitted(False)
    model.output_modules[0].fade = object()
    with pytest.raises(UnsupportedModelError, match="fade=false"):
        export_potential([model], tmp_path, CRYSTAL, "snap")


@pytest.mark.parametrize(
    ("suffix", "old", "new", "message"),
    [
        (".snapparam", "twojmax 1", "", "lacks twojmax"),
        (".snapparam", "twojmax 1", "twojmax 2", "17 coefficients of each element, but 41 belong"),
        (".snapparam", "bzeroflag", "unheardflag", "line 6: 'unheardflag' is not supported"),
        (".snapcoeff", "Be 0.42", "Bx 0.42", "'Bx' is no chemical element"),
        (".snapcoeff", "0.96", "nan", "'nan' is no finite number"),
        (".snapcoeff", "2 17", "2 18", "expected a coefficient of W"),
    ],
)
def test_wrong_files(tmp_path, suffix, old, new, message):
    path, *_ = potential(tmp_path)
    file = path.with_suffix(suffix)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(SnapFormatError, match=message):
        read_snap(path)


def test_other_models_are_refused(tmp_path):
    model = DescriptorPotential(
        representation=ACSF(elements=["W"]),
        output_modules=[ElementalAtomwise(n_in=28, elements=["W"])],
    )
    model.output_modules[0].build(["W"], model.representation.n_atom_basis)
    with pytest.raises(UnsupportedModelError, match="without hidden layers"):
        write_snap(model, tmp_path / "x.snapcoeff")
