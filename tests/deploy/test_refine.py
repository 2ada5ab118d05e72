"""Models of any source that go on from it: of its form, with its energies before the first step."""

import copy

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from ase.units import GPa
from exported import CRYSTAL, calculated

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
from schnetpack_softadapt.deploy.exchange.pace import write_pace
from schnetpack_softadapt.deploy.exchange.snap import write_snap
from schnetpack_softadapt.deploy.exchange.text import write_text
from schnetpack_softadapt.deploy.loading import load_potential, save_potential
from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.descriptors.elements import UnknownElementError
from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.model import (
    ACSF,
    ZBL,
    CoreRepulsion,
    DescriptorPotential,
    DescriptorRepresentation,
    ElementalAtomwise,
    ForcesAndStress,
)

COMPONENTS = Bispectrum({"W": 0.5, "Be": 0.45}, rcutfac=4.2, twojmax=2)
FUNCTIONS = ClusterExpansion(["W", "Be"], 4.2, n_functions=20)
SYMMETRY = {"n_radial": 3, "n_angular_widths": 1, "zetas": [1, 2], "angular": "G4"}
NETWORK = {"n_hidden": [5, 4], "activation": "tanh"}
#: representation, networks and baseline
SOURCES = {
    "run": (lambda: ACSF(4.2, grid=SYMMETRY), NETWORK, lambda: ZBL()),
    "quadratic run": (lambda: COMPONENTS, {"quadratic": True}, None),
    "export": (lambda: ACSF(4.2, grid=SYMMETRY), NETWORK, lambda: ZBL()),
    "yace": (
        lambda: FUNCTIONS,
        {"n_hidden": [3], "activation": "finnis_sinclair"},
        lambda: CoreRepulsion({"W-Be": [30, 0.3, 0, 0]}, 4.2),
    ),
    "linear yace": (lambda: FUNCTIONS, {}, None),
    "snapcoeff": (lambda: COMPONENTS, {}, None),
    "n2p2": (lambda: ACSF(4.2, grid=SYMMETRY), NETWORK, None),
}
#: eV, what the labels of W and Be differ by
CONSTANTS = {74: -7.0, 4: 2.5}


def structures(elements=None, rattle=0.12):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        atoms = CRYSTAL.copy()
        atoms.numbers[rng.integers(16, size=seed)] = 4
        atoms.numbers = atoms.numbers if elements is None else np.resize(elements, 16)
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(rattle, rng=rng)
        yield atoms


def database(path, labelled, replaced=None):
    """Of structures with a calculator, and CONSTANTS more."""
    found = []
    for atoms in labelled:
        atoms.get_stress()
        s = Structure.from_atoms(atoms)
        s.energy += sum(CONSTANTS.get(z, 0.0) for z in atoms.numbers)
        found.append(s)
    if replaced:
        found[2].numbers[3] = replaced
    write_database(path, found, "a test")
    return data(path)


def data(path):
    module = SoftAdaptDataModule(
        str(path), 4, num_train=4, num_val=1, num_test=1, transforms=[NeighborList(4.2)],
        split_file=None, num_workers=0, store=False,
    )  # fmt: skip
    module.setup()
    return module


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A path of each kind of source, whose data come no closer than the new ones."""
    folder = tmp_path_factory.mktemp("sources")
    frames = list(structures())
    for atoms in frames:
        atoms.calc = LennardJones(sigma=2.2, epsilon=0.5, rc=4.2)
    module, paths = database(folder / "old.db", frames), {}
    for name, (make, network, baseline) in SOURCES.items():
        torch.manual_seed(1)
        described = make()
        if not isinstance(described, ACSF):
            described = DescriptorRepresentation(described, "sigma")
        networks = ElementalAtomwise(**{"n_hidden": [], "dtype": "float64", **network})
        model = DescriptorPotential(
            described,
            output_modules=[networks, ForcesAndStress("auto", "auto")],
            postprocessors=[baseline()] if baseline else [],
        )
        model.initialize_transforms(copy.deepcopy(module) if baseline else module)
        for p in networks.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.2)
        model.double().eval()
        path = folder / name.replace(" ", "-")
        if name.endswith("run"):
            path.mkdir()
            save_potential(model, path / "best_model")
        elif name == "export":
            write_text([model], path)
        elif name == "snapcoeff":
            path = write_snap(model, path.with_suffix(".snapcoeff"))[0]
        elif name.endswith("yace"):
            path = write_pace(model, path.with_suffix(".yace"))
        else:
            write_potential(model, path)
        paths[name] = path
    return paths


def refined(source, module):
    model = DescriptorPotential.like(
        load_potential(source), DescriptorRepresentation(None, "sigma")
    )
    model.initialize_transforms(module)
    return model.double().eval()


def properties(atoms, model):
    atoms = calculated(atoms, model)
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress() / GPa


@pytest.mark.parametrize("name", SOURCES)
def test_has_form_and_energies_of_its_source(name, sources, tmp_path):
    """Energies but for the constants of the elements, which are those of the labels."""
    source = load_potential(sources[name])
    new = [calculated(a, source) for a in structures(rattle=0.05)]
    model = refined(sources[name], database(tmp_path / "new.db", new))
    networks, old = model.output_modules[0], source.output_modules[0]
    assert model.representation.descriptor == source.representation.descriptor
    assert networks.activations == old.activations
    assert [w.shape for w in networks.weights] == [w.shape for w in old.weights]
    assert networks.biases[0].requires_grad == old.biases[0].requires_grad
    known, scaling = (m.representation.scaling for m in (source, model))
    if known.is_fitted:  # the ranges are those of both
        assert (scaling.minimum <= known.minimum).all()
        assert (scaling.n_atoms > known.n_atoms).all()
    atoms = list(structures())[-1]  # not of the new data
    for close in (False, True):
        if close:  # where networks fade, and cores repel
            atoms.set_distance(0, 1, 1.4, fix=0)
        theirs, mine = (properties(atoms, m) for m in (source, model))
        expected = theirs[0] + sum(CONSTANTS[z] for z in atoms.numbers)
        assert mine[0] == pytest.approx(expected, abs=1e-7)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=0, atol=1e-8)
        np.testing.assert_allclose(mine[2], theirs[2], rtol=0, atol=1e-8)
    assert np.abs(mine[1]).max() > 0.1


@pytest.mark.parametrize("name", ["run", "snapcoeff"])
def test_what_new_data_do_not_have_stays(name, sources, tmp_path):
    """Be, and all that does not vary: a crystal at rest, of one element."""
    source = load_potential(sources[name])
    new = [calculated(a, source) for a in structures(elements=[74], rattle=0.0)]
    for atoms in new:
        atoms.set_cell(CRYSTAL.cell, scale_atoms=True)
    model = refined(sources[name], database(tmp_path / "new.db", new))
    atoms = list(structures())[-1]
    theirs, mine = (properties(atoms, m) for m in (source, model))
    expected = theirs[0] + CONSTANTS[74] * np.count_nonzero(atoms.numbers == 74)
    assert mine[0] == pytest.approx(expected, abs=1e-7)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=0, atol=1e-8)


def test_networks_fade_below_the_smaller_distance(sources, tmp_path):
    source = load_potential(sources["run"])
    new = [calculated(a, source) for a in structures(rattle=0.05)]
    new[0].set_distance(0, 1, 1.2, fix=0)
    model = refined(sources["run"], database(tmp_path / "new.db", new))
    assert model.output_modules[0].fade.start.min() == pytest.approx(1.2)
    assert model.baseline.to_dict() == source.baseline.to_dict()


def test_elements_it_does_not_know(sources, tmp_path):
    source = load_potential(sources["run"])
    new = [calculated(a, source) for a in structures(elements=[74])]
    module = database(tmp_path / "new.db", new, replaced=6)
    with pytest.raises(UnknownElementError, match=r"structure 2: .* not know C.*--model"):
        refined(sources["run"], module)


def test_another_cutoff_or_unit_is_refused(sources, tmp_path):
    source = load_potential(sources["run"])
    with pytest.raises(ValueError, match=r"has a cutoff of 4.2 Ang.*globals.cutoff=5"):
        DescriptorPotential.like(source, DescriptorRepresentation(), 5.0)
    source.metadata["units"]["energy"] = "kcal/mol"
    new = [calculated(a, load_potential(sources["run"])) for a in structures(elements=[74])]
    module = database(tmp_path / "new.db", new)
    model = DescriptorPotential.like(source, DescriptorRepresentation())
    with pytest.raises(ValueError, match="kcal/mol, not eV as the data: convert them"):
        model.initialize_transforms(module)
