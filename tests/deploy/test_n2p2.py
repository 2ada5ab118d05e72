"""n2p2 potentials: values of n2p2 itself, export-import-predict, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms, units
from deploy_models import make_layout, make_model, mo, mote2
from n2p2_reference import NAMES, load
from schnetpack.transform import AddOffsets
from torch import nn

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential, write_potential
from schnetpack_softadapt.deploy.exchange.n2p2.format import N2P2FormatError
from schnetpack_softadapt.deploy.exchange.n2p2.model import from_model
from schnetpack_softadapt.deploy.exchange.n2p2.read import read_files
from schnetpack_softadapt.deploy.exchange.n2p2.write import write_files
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.model import ElementShift
from schnetpack_softadapt.model.composition import UnsupportedModelError

#: units of the reference potentials; the others state them themselves
UNITS = {"HO": (None, None), "acsf24_Mo54": ("Ang", "eV"), "H2O_RPBE-D3": (None, None)}
SIZES = {
    "HO": (1.0, 1.0),
    "acsf24_Mo54": (1.0, 1.0),
    "H2O_RPBE-D3": (units.Bohr, units.Hartree),
}


def predict(model, atoms):
    atoms = atoms.copy()
    atoms.calc = SoftAdaptCalculator(model)
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()


def assert_same_predictions(model, other, tolerance=1e-12):
    for atoms in (mo(0.2), mote2(0.2)):
        for a, b in zip(predict(model, atoms), predict(other, atoms), strict=True):
            # of energies of 300 eV and forces of a few eV/Ang
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=10 * tolerance)


# --- against n2p2


@pytest.mark.parametrize("name", NAMES)
def test_energy_and_forces_of_n2p2(name):
    reference = load(name)
    model = read_potential(reference.folder, *UNITS[name])
    length, energy = SIZES[name]
    atoms = Atoms(
        reference.numbers, reference.positions * length, cell=reference.cell * length, pbc=True
    )
    atoms.calc = SoftAdaptCalculator(model)
    words = (reference.folder / "energy.txt").read_text().split()
    expected = float(words[words.index("energy_nnp") + 1])
    # tolerances of the reference data, in the units of the files
    assert atoms.get_potential_energy() / energy == pytest.approx(expected, rel=1e-10, abs=0)
    forces = atoms.get_forces() / (energy / length)
    np.testing.assert_allclose(forces, reference.forces, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_functions_and_rows(name):
    """The columns are those of n2p2's own listing, whatever the order of the lines."""
    reference = load(name)
    potential = read_files(reference.folder, "Ang", "eV")  # as they stand in the file
    for number, data in potential.elements.items():
        assert data.functions == list(reference.layout.functions[number])
        np.testing.assert_array_equal(data.statistics, reference.scaling[number])


@pytest.mark.parametrize("name", ["HO", "H2O_RPBE-D3"])
def test_network_of_n2p2(name):
    """Atomic energies and derivatives by the scaled functions, element by element."""
    reference = load(name)
    model = read_potential(reference.folder)
    networks = model.output_modules[0]
    scaled = torch.from_numpy(reference.padded("G_scaled.txt")).requires_grad_()
    numbers = torch.from_numpy(reference.numbers)
    unscaled = torch.from_numpy(reference.padded("G_unscaled.txt"))
    np.testing.assert_allclose(
        model.representation.scaling(unscaled, numbers), scaled.detach(), rtol=0, atol=1e-12
    )
    energies = networks.atomic_energies(scaled, numbers) / networks.scale
    raw = np.loadtxt(reference.folder / "atomic_energies.txt", usecols=2)
    np.testing.assert_allclose(energies.detach(), raw, rtol=0, atol=1e-11)  # of a sum of 25 terms
    (gradient,) = torch.autograd.grad(energies.sum(), scaled)
    np.testing.assert_allclose(gradient, reference.padded("dEdG_scaled.txt"), rtol=0, atol=1e-9)


# --- export and import


@pytest.mark.parametrize("scaling", ["none", "center", "scale", "scale_center", "sigma", "spread"])
def test_round_trip_of_scalings(tmp_path, scaling):
    model = make_model(scaling=scaling)
    write_potential(model, tmp_path)
    again = read_potential(tmp_path)
    expected = "sigma" if scaling == "spread" else scaling  # n2p2 has none without a shift
    assert again.representation.scaling.mode == expected
    assert_same_predictions(model, again)
    # what is outside of the training range is known to both
    for name in ("minimum", "maximum", "mean", "sigma"):
        values = getattr(again.representation.scaling, name)
        assert float(values[0, 0]) in getattr(model.representation.scaling, name)[0].tolist()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "gaussian", "cos"])
def test_round_trip_of_activations(tmp_path, activation):
    model = make_model(activation=activation)
    write_potential(model, tmp_path)
    assert_same_predictions(model, read_potential(tmp_path))


@pytest.mark.parametrize("cutoff_fn", ["tanh3", "exp", "poly1", "poly2", "poly3", "poly4"])
def test_round_trip_of_cutoff_functions(tmp_path, cutoff_fn):
    model = make_model(layout=make_layout(cutoff_fn))
    write_potential(model, tmp_path)
    again = read_potential(tmp_path)
    assert {f.cutoff_fn for f in again.representation.descriptor.functions[52]} == {cutoff_fn}
    assert_same_predictions(model, again)


def test_round_trip_of_a_reference_potential(tmp_path):
    reference = load("acsf24_Mo54")
    model = read_potential(reference.folder, "Ang", "eV")
    write_potential(model, tmp_path)
    again = read_potential(tmp_path)
    assert again.representation.descriptor == model.representation.descriptor
    for a, b in zip(model.output_modules[0].weights, again.output_modules[0].weights, strict=True):
        assert torch.equal(a, b)


def test_mixed_activations_and_float32(tmp_path):
    model = make_model().float()
    model.output_modules[0].activations = ("softplus", "tanh")
    write_potential(model, tmp_path)
    # float32 numbers are written exactly
    assert_same_predictions(model, read_potential(tmp_path))


def test_constant_function_and_unfitted_scaling(tmp_path):
    """n2p2 divides by max - min; ours switches a constant function off."""
    model = make_model()
    scaling = model.representation.scaling
    tables = [getattr(scaling, n).clone() for n in ("minimum", "maximum", "mean", "sigma")]
    for table in tables[:3]:
        table[0, 1] = 0.25
    tables[3][0, 1] = 0.0
    with pytest.warns(UserWarning, match="the same for all training"):
        scaling.set_statistics(*tables)
    write_potential(model, tmp_path / "constant")
    assert_same_predictions(model, read_potential(tmp_path / "constant"))
    scaling.n_atoms.zero_()
    scaling.shift.zero_()
    scaling.factor.fill_(1.0)
    write_potential(model, tmp_path / "unfitted")
    again = read_potential(tmp_path / "unfitted")
    assert again.representation.scaling.mode == "none"
    assert_same_predictions(model, again)


def test_offsets_of_postprocessors(tmp_path):
    model = make_model()
    atomrefs = torch.zeros(100)
    atomrefs[42] = 2.5
    offsets = AddOffsets("energy", add_mean=True, add_atomrefs=True)
    offsets.mean, offsets.atomref = torch.tensor([0.5]), atomrefs
    model.postprocessors.extend([ElementShift(shifts={"Te": -1.25}), offsets])
    write_potential(model, tmp_path)
    atoms = mote2()
    atoms.calc = SoftAdaptCalculator(model, additional_inputs={"dummy": torch.zeros(1)})
    expected = atoms.get_potential_energy()  # by SchNetPack's own forward
    assert predict(read_potential(tmp_path), atoms)[0] == pytest.approx(expected, abs=1e-11)


def test_older_files_of_the_folder_are_replaced(tmp_path):
    write_potential(make_model(), tmp_path)
    write_potential(make_model(layout=Layout({"Mo": make_layout().functions[42][6:]})), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("weights.*")) == ["weights.042.data"]
    assert not list(tmp_path.glob(".*"))  # no temporary files are left


# --- the files


def edited(tmp_path, edit):
    """A good potential of which one file's text went through `edit`."""
    write_potential(make_model(), tmp_path)
    path = tmp_path / "input.nn"
    path.write_text(edit(path.read_text()))
    return tmp_path


def test_lines_in_any_order_and_comments(tmp_path):
    model = make_model()

    def shuffle(text):
        lines = text.splitlines()
        head = [x for x in lines if not x.startswith("symfunction_short")]
        functions = [x + "  # a comment" for x in lines if x.startswith("symfunction_short")]
        return "\n".join([*functions[::-1], "", *head]).replace("elements Mo Te", "elements Te Mo")

    assert_same_predictions(model, read_potential(edited(tmp_path, shuffle)))


def test_normalize_nodes(tmp_path):
    write_potential(make_model(), tmp_path / "plain")
    plain = read_files(tmp_path / "plain")
    divided = read_potential(edited(tmp_path, lambda text: text + "normalize_nodes\n"))
    weights = divided.output_modules[0].weights
    np.testing.assert_allclose(weights[1][0].detach(), plain.elements[42].weights[1] / 6)
    np.testing.assert_allclose(weights[0][1, :5].detach(), plain.elements[52].weights[0] / 5)


def test_reverse_logistic_and_widths_by_element(tmp_path):
    """1 - sigmoid(x); Te with 3 neurons in the second layer, in both spellings of the keyword."""
    write_potential(make_model(activation="sigmoid"), tmp_path)
    potential = read_files(tmp_path)
    te = potential.elements[52]
    te.weights[1], te.biases[1] = te.weights[1][:, :3], te.biases[1][:3]
    te.weights[2] = te.weights[2][:3]
    with pytest.raises(N2P2FormatError, match="hidden layers of the same widths"):
        write_files(potential, tmp_path / "no")
    values = [np.concatenate([w.ravel(), b]) for w, b in zip(te.weights, te.biases, strict=True)]
    np.savetxt(tmp_path / "weights.052.data", np.concatenate(values))
    text = (tmp_path / "input.nn").read_text().replace("short s s l", "short S s l")
    for line in ("element_nodes_short Te 2 3", "element_nodes_short Te 6 3"):
        (tmp_path / "input.nn").write_text(f"{text}{line}\n")
        networks = read_potential(tmp_path).output_modules[0]
        x = torch.linspace(-1, 1, 7, dtype=torch.float64)[None]
        x[:, 5:] = 0  # Te has five functions
        hidden = 1 - torch.sigmoid(x[:, :5] @ torch.from_numpy(te.weights[0]) + te.biases[0])
        hidden = torch.sigmoid(hidden @ torch.from_numpy(te.weights[1]) + te.biases[1])
        expected = hidden @ torch.from_numpy(te.weights[2]) + te.biases[2]
        got = networks.atomic_energies(x, torch.tensor([52]))
        assert got.item() == pytest.approx(expected.item(), abs=1e-13)


def test_normalisation_and_units(tmp_path):
    """E = raw / conv_energy + n mean_energy + atom energies, in Hartree; lengths in Bohr."""
    folder = edited(
        tmp_path,
        lambda text: (
            text.replace("unit     : Ang", "unit : Bohr").replace("unit     : eV", "unit : Hartree")
            + "mean_energy -2.0\nconv_energy 4.0\nconv_length 3.0\n"
        ),
    )
    model = read_potential(folder)
    assert model.representation.descriptor.cutoff == pytest.approx(4.5 * units.Bohr)
    atoms = mo(0.2)
    original = predict(make_model(), atoms)
    atoms.set_cell(atoms.cell * units.Bohr, scale_atoms=True)
    energy, forces, _ = predict(model, atoms)
    offset = -10.0 * len(atoms)
    raw = original[0] - offset
    expected = (raw / 4.0 + offset - 2.0 * len(atoms)) * units.Hartree
    assert energy == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(
        forces, original[1] / 4.0 * units.Hartree / units.Bohr, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("scaling", ["scale", "scale_center", "sigma"])
def test_limits_of_the_scaling(tmp_path, scaling):
    """n2p2: Smin + (Smax - Smin) (G - Gmin) / (Gmax - Gmin), and so on."""
    write_potential(make_model(scaling=scaling), tmp_path)
    text = (tmp_path / "input.nn").read_text()
    text = text.replace("scale_min_short 0.0", "scale_min_short -1.0")
    (tmp_path / "input.nn").write_text(text.replace("max_short 1.0", "max_short 2.0"))
    low, high, mean, sigma = read_files(tmp_path).elements[42].statistics.T
    values = np.random.default_rng(0).uniform(0, 2, (3, 7))
    expected = {
        "scale": -1 + 3 * (values - low) / (high - low),
        "scale_center": -1 + 3 * (values - mean) / (high - low),
        "sigma": -1 + 3 * (values - mean) / sigma,
    }[scaling]
    model = read_potential(tmp_path)
    got = model.representation.scaling(torch.from_numpy(values), torch.full((3,), 42))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    # written with the limits 0 and 1 again, the rest goes into the weights
    write_potential(model, tmp_path / "again")
    assert "scale_min_short 0.0" in (tmp_path / "again/input.nn").read_text()
    assert_same_predictions(model, read_potential(tmp_path / "again"))


def test_unstated_units_warn(tmp_path):
    folder = edited(tmp_path, lambda text: text.replace("unit ", "whatever "))
    with pytest.warns(UserWarning, match="units of the files are not stated.*Bohr and Ha"):
        model = read_potential(folder)
    assert model.representation.descriptor.cutoff == pytest.approx(4.5 * units.Bohr)
    assert read_potential(folder, "Ang", "eV").representation.descriptor.cutoff == 4.5
    with pytest.raises(ValueError, match=r"unknown length unit 'furlong'.*Bohr"):
        read_potential(folder, "furlong", "eV")
    cutoff = read_potential(folder, "bohr.", "HARTREE").representation.descriptor.cutoff
    assert cutoff == pytest.approx(4.5 * units.Bohr)


REFUSED = {
    "cutoff_type 1->cutoff_type 0": "cutoff_type 0 cannot be expressed: a hard cutoff",
    "cutoff_type 1->cutoff_type 3": "cutoff_type 3 cannot be expressed: the normalised",
    "cutoff_type 1->cutoff_type 17": "cutoff_type 17 cannot be expressed: no such type",
    "cutoff_type 1->cutoff_type 1 0.2": "inner radius",
    "cutoff_type 1->": "keyword cutoff_type is missing",
    "cutoff_type 1->cutoff_type 1\ncutoff_type 2": "stands there 2 times",
    "short Te 2->short Te 22": r"line \d+: symmetry function type 22 .*compact support",
    "short Te 2->short Te 99": "type 99 cannot be expressed: no such type",
    "short Te 2->short Xx 2": "'Xx' is not a chemical symbol",
    "short Te 2 Te->short Te 2 O": "not among `elements`",
    "short Te 2 Te 0.2 0.0 4.5->short Te 2 Te 0.2 0.0": "cannot read 'symfunction_short Te 2",
    "short Te 2 Te 0.2->short Te 2 Mo 0.2": "Te has a function twice",
    "t t l->t t t": "output layer must be linear",
    "t t l->r t l": "activation r cannot be expressed: forces of a ReLU network jump",
    "t t l->z t l": "activation z cannot be expressed: no such",
    "t t l->t": "2 hidden layers need",
    "_layers_short 2->_layers_short 0": "must be at least 1",
    "number_of_elements 2->number_of_elements 3": "number_of_elements 3",
    "center_symmetry_functions->scale_symmetry_functions_sigma": "contradict each other",
    "scale_min_short 0.0->scale_min_short a": r"input.nn, line \d+: cannot read 'a'",
    "scale_min_short 0.0->scale_min_short": r"line \d+: scale_min_short needs a number",
    "scale_max_short 1.0->scale_max_short inf": r"line \d+: .*'inf' is not a finite number",
    "short Te 2 Te 0.2 0.0->short Te 2 Te nan 0.0": r"line \d+: .*'nan' is not a finite number",
    "atom_energy Mo -10.0->atom_energy Mo nan": r"line \d+: .*'nan' is not a finite number",
    "cutoff_type 1->cutoff_type 1 nan": r"line \d+: .*'nan' is not a finite number",
    "cutoff_type 1->cutoff_type one": r"line \d+: cannot read 'one'",
    "nodes_short 6 5->nodes_short 6 nan": r"line \d+: cannot read 'nan'",
    "atom_energy Mo->atom_energy O": "atom_energy needs an element of the potential",
    "cutoff_type 1->cutoff_type 1\nconv_energy 2.0": "must be given together",
    "cutoff_type 1->cutoff_type 1\nnnp_type 4G-HDNNP": "long-range charges are not supported",
    "cutoff_type 1->cutoff_type 1\nuse_electrostatics": "only single short-range potentials",
    "cutoff_type 1->cutoff_type 1\nelement_hidden_layers_short Te 3": "all elements share layers",
    "cutoff_type 1->cutoff_type 1\nelement_nodes_short O 1 3": "needs a known element",
    "nodes_short 6 5->nodes_short 6 4": "weights do not make a network of 7 inputs",
}


@pytest.mark.parametrize("change", REFUSED)
def test_refused_keywords(tmp_path, change):
    old, new = change.split("->")
    folder = edited(tmp_path, lambda text: text.replace(old, new))
    with pytest.raises(N2P2FormatError, match=REFUSED[change]):
        read_potential(folder)


def test_refused_files(tmp_path):
    write_potential(make_model(), tmp_path / "good")

    def broken(name, file, edit):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        path = tmp_path / name / file
        path.write_text(edit(path.read_text()))
        return tmp_path / name

    def drop_last_line(text):
        return "".join(text.splitlines(keepends=True)[:-1])

    with pytest.raises(N2P2FormatError, match=r"11 rows, but input.nn has 12"):
        read_potential(broken("a", "scaling.data", drop_last_line))
    with pytest.raises(N2P2FormatError, match=r"line 3: no row of numbers"):
        read_potential(broken("b", "scaling.data", lambda t: t.replace("         1", "x", 1)))
    with pytest.raises(N2P2FormatError, match="expected the row of function 1 of element 2"):
        read_potential(broken("c", "scaling.data", lambda t: t.replace("\n         2", "\n 3")))
    with pytest.raises(N2P2FormatError, match=r"weights.052.data, line \d+: no weight in 'oops'"):
        read_potential(broken("d", "weights.052.data", lambda t: t + "oops\n"))

    def not_finite(column, value):
        def edit(text):
            rows = text.splitlines()
            words = rows[3].split()
            words[column] = value
            return "\n".join([*rows[:3], " ".join(words), *rows[4:]])

        return edit

    with pytest.raises(N2P2FormatError, match=r"weights.042.data, line 4: .*'nan' is not a finite"):
        read_potential(broken("f", "weights.042.data", not_finite(0, "nan")))
    with pytest.raises(N2P2FormatError, match=r"scaling.data, line 4: .*'-inf' is not a finite"):
        read_potential(broken("g", "scaling.data", not_finite(4, "-inf")))

    def no_spread(text):
        rows = text.splitlines()
        words = rows[2].split()
        rows[2] = " ".join([words[0], words[1], words[2], words[2], words[4], words[5]])
        return "\n".join(rows)

    with pytest.raises(N2P2FormatError, match="function 1 of Mo has no spread"):
        read_potential(broken("e", "scaling.data", no_spread))
    shutil.copy(tmp_path / "good/weights.052.data", tmp_path / "good/weightse.052.data")
    with pytest.raises(N2P2FormatError, match=r"found weightse.052.data"):
        read_potential(tmp_path / "good")
    with pytest.raises(FileNotFoundError):
        read_potential(tmp_path / "nowhere")


def test_refused_models(tmp_path):
    with pytest.raises(UnsupportedModelError, match="representation is a descriptor"):
        write_potential(nn.Linear(1, 1), tmp_path)
    with pytest.raises(N2P2FormatError, match="no activation 'silu'; train with one of"):
        write_potential(make_model(activation="silu"), tmp_path)
    model = make_model()
    model.output_modules.append(nn.Identity())
    with pytest.raises(UnsupportedModelError, match="the module Identity"):
        write_potential(model, tmp_path)
    functions = [SymmetryFunction("wG5", (), 4.0, 0.1), SymmetryFunction("G2", (42,), 4.0, 0.1)]
    layout = Layout({"Mo": functions, "Te": functions})
    with pytest.raises(N2P2FormatError, match=r"no weighted wide angular function \(wG5\)"):
        write_potential(make_model(layout=layout), tmp_path)
    functions[0] = SymmetryFunction("wG2", (), 4.0, 0.1, weights={"Mo": 1.0, "Te": -1.0})
    layout = Layout({"Mo": functions, "Te": functions})
    with pytest.raises(N2P2FormatError, match="weigh neighbours by their atomic number"):
        write_potential(make_model(layout=layout), tmp_path)
    functions[0] = SymmetryFunction("ANI", (42, 52), 4.0, 0.1)
    layout = Layout({"Mo": functions, "Te": functions})
    with pytest.raises(N2P2FormatError, match=r"n2p2 has no modified angular function \(ANI\)"):
        write_potential(make_model(layout=layout), tmp_path)
    functions[0] = SymmetryFunction("G2", (42,), 4.0, 0.1, cutoff_fn="poly2")
    layout = Layout({"Mo": functions, "Te": functions})
    with pytest.raises(N2P2FormatError, match="one cutoff function for all"):
        write_potential(make_model(layout=layout), tmp_path)
    untrained = make_model()
    untrained.output_modules[0].index = None
    with pytest.raises(UnsupportedModelError, match="train it first"):
        write_potential(untrained, tmp_path)
    potential = from_model(make_model())
    potential.elements[42].functions.reverse()
    with pytest.raises(N2P2FormatError, match="not in n2p2's order"):
        write_files(potential, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing half written
