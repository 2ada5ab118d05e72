"""Potentials of `pair_style pace` as models, and back."""

import shutil
import subprocess
from functools import lru_cache

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read
from ase.units import bar
from exported import CRYSTAL, calculated, lammps_step
from shared import shared_path

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.deploy.exchange.pace import read_pace, write_pace
from schnetpack_softadapt.deploy.exchange.pace.format import PaceFormatError
from schnetpack_softadapt.deploy.loading import load_potential
from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.model import (
    ACE,
    ZBL,
    CoreRepulsion,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.composition import UnsupportedModelError
from schnetpack_softadapt.model.start import start_from

BESSEL = ClusterExpansion(["W", "Be"], 4.2, n_functions=150, l_weight=0.5)
SMALL = ClusterExpansion(["W", "Be"], 4.2, n_max=[2, 1, 1, 1], l_max=[0, 0, 1, 1])
CHEBYSHEV = ClusterExpansion(
    ["W", "Be"],
    cutoff=4.5,
    radial="chebyshev",
    inner=2.3,
    inner_width=0.8,
    outer_width=0.7,
    n_functions=60,
    channels=[{"W": 1.0, "Be": 0.6}],
)


def table(seed=0):
    """Radial functions of two elements, of l up to 2."""
    rng = np.random.default_rng(seed)
    return [[[rng.normal(size=(3, 4)).tolist() for _ in range(3)] for _ in "ab"] for _ in "ab"]


TABLE = ClusterExpansion(
    ["W", "Be"],
    cutoff=4.2,
    radial="chebyshev_power",
    decay=2.5,
    radial_table=table(),
    products=[
        [[[0, 1, 1]], 0],
        [[[0, 3, 0]], 0],
        [[[2, 1, 0], [2, 3, 1]], 2],
        [[[1, 1, 0], [1, 1, 1], [2, 2, 1]], 2],
        [[[1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1]], 1],
        [[[0, 1, 0], [1, 1, 0], [1, 2, 1], [2, 1, 1], [2, 3, 0]], [1, 2]],
        [[[1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1], [1, 3, 0], [1, 3, 1]], [1, 1, 1]],
        [[[1, 1, 1]] * 6, [0, 0, 0]],
    ],
)


def trained(descriptor, n_densities=1, postprocessors=(), seed=3):
    """A model as training leaves it: scaled descriptors, random coefficients."""
    generator = torch.manual_seed(seed)
    networks = ElementalAtomwise(
        n_in=descriptor.n_columns,
        elements=["W", "Be"],
        n_hidden=() if n_densities == 1 else (n_densities,),
        activation="finnis_sinclair",
        per_atom_output_key=keys.atomic_energies,
        shifts={"W": -3.0, "Be": 0.7},
        dtype="float64",
    )
    model = DescriptorPotential(
        representation=ACE(descriptor=descriptor, scaling="sigma"),
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
        postprocessors=list(postprocessors),
        input_dtype_str="float64",
    ).double()
    scaling = model.representation.scaling
    last = networks.biases[-1]
    with torch.no_grad():
        for x in (*networks.weights, last):
            x.copy_(torch.rand(x.shape, dtype=x.dtype, generator=generator) - 0.5)
        scaling.factor.copy_(0.2 + torch.rand(scaling.factor.shape, generator=generator))
        if n_densities == 1:
            scaling.shift.copy_(torch.rand(scaling.shift.shape, generator=generator))
        networks.weights[0].mul_(0.05)
    networks.scale.fill_(1.7)
    model.metadata["units"] = {"energy": "eV", "forces": "eV/Ang", "length": "Ang"}
    return model.eval()


def assert_equal(one, other, tolerance=1e-10):
    """Energies of atoms, forces and stress, to a part of the largest."""
    for name in ("energies", "forces", "stress"):
        a, b = (np.asarray(x.calc.get_property(name, x)) for x in (one, other))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


# --- published potential


@lru_cache(maxsize=1)
def copper():
    return read_pace(shared_path("reference/ace/Cu/Cu-PBE-core-rep.ace"))


def test_published_potential(tmp_path):
    """LAMMPS' splines differ by 1e-9; products of five and six densities are among them."""
    folder = shared_path("reference/ace/Cu")
    atoms = read(folder / "structure.data", format="lammps-data", atom_style="atomic")
    atoms.numbers[:] = 29
    atoms = calculated(atoms, copper())
    expected = float((folder / "energy.txt").read_text())
    assert atoms.get_potential_energy() == pytest.approx(expected, rel=1e-10)
    energies = atoms.calc.get_property("energies", atoms)
    np.testing.assert_allclose(energies, np.loadtxt(folder / "atomic_energies.txt"), rtol=1e-10)
    forces = np.loadtxt(folder / "forces.txt")
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-8)
    pressure = np.loadtxt(folder / "pressure_bar.txt")
    # LAMMPS has another constant for bar
    np.testing.assert_allclose(-atoms.get_stress() / bar, pressure, rtol=2e-7)
    again = calculated(atoms, read_pace(write_pace(copper(), tmp_path / "again.yace")))
    assert_equal(again, atoms)
    # close atoms repel, alike in both
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.9]
    again.positions[:] = atoms.positions
    assert_equal(again, atoms)
    force, h, energies = atoms.get_forces()[1, 2], 1e-4, []
    for sign in (1, -1):
        moved = calculated(atoms, copper())
        moved.positions[1, 2] += sign * h
        energies.append(moved.get_potential_energy())
    assert force > 20
    assert force == pytest.approx((energies[1] - energies[0]) / (2 * h), rel=1e-6)


# --- written and read


@pytest.mark.parametrize("n_densities", [1, 3], ids=["linear", "finnis_sinclair"])
@pytest.mark.parametrize(
    "descriptor", [BESSEL, CHEBYSHEV, TABLE], ids=["bessel", "chebyshev", "table"]
)
def test_written_model_is_read_back(tmp_path, descriptor, n_densities):
    core = CoreRepulsion({"W-W": [50, 0.2, 0, 0], "W-Be": [30, 0.3, 0, 0]}, descriptor.cutoff)
    if descriptor is CHEBYSHEV:
        cutoffs = descriptor.inner, descriptor.inner_width
        core = CoreRepulsion({"W-Be": [30, 0.3, *cutoffs]}, descriptor.cutoff)
    model = trained(descriptor, n_densities, [core])
    before = calculated(CRYSTAL, model)
    after = calculated(CRYSTAL, load_potential(write_pace(model, tmp_path / "x.yace")))
    assert_equal(after, before)
    without = calculated(CRYSTAL, trained(descriptor, n_densities))
    assert np.abs(without.get_forces() - before.get_forces()).max() > 1e-3


def test_plain_radial_functions_stay_plain(tmp_path):
    """So that the file of a model gives its descriptor back."""
    read_back = read_pace(write_pace(trained(BESSEL), tmp_path / "x.yace"))
    d = read_back.representation.descriptor
    assert d.radial_table is None
    assert set(d.functions) == set(BESSEL.functions)


@pytest.mark.parametrize("n_densities", [1, 2])
def test_other_units(tmp_path, n_densities):
    model = trained(SMALL, n_densities)
    model.metadata["units"] |= {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}
    after = calculated(CRYSTAL, read_pace(write_pace(model, tmp_path / "x.yace")))
    assert_equal(after, calculated(CRYSTAL, model))
    model.metadata["units"]["length"] = "Bohr"
    with pytest.raises(UnsupportedModelError, match="unit of length is Bohr"):
        write_pace(model, tmp_path / "x.yace")


def test_training_goes_on_from_a_file(tmp_path):
    """With the descriptor of the file, scaled anew."""
    source = read_pace(write_pace(trained(TABLE, 2), tmp_path / "x.yace"))
    model = trained(
        ClusterExpansion.from_dict(source.representation.descriptor.to_dict()), 2, (), 5
    )
    start_from(model, source)
    assert_equal(calculated(CRYSTAL, model), calculated(CRYSTAL, source))


# --- in LAMMPS


@lru_cache(maxsize=1)
def missing() -> str:
    """Why LAMMPS cannot run them; empty if it can."""
    if shutil.which("lmp") is None:
        return "there is no lmp on PATH"
    done = subprocess.run(
        ["lmp", "-log", "none"], input="pair_style pace\n", capture_output=True, text=True
    )
    return "lmp lacks ML-PACE" if "Unrecognized pair style" in done.stdout + done.stderr else ""


@pytest.mark.parametrize(
    "case", ["bessel", "chebyshev", "table", "core_repulsion", "close_zbl", "published"]
)
def test_exported_model_in_lammps(tmp_path, case):
    if missing():
        pytest.skip(missing())
    structure, zbl = CRYSTAL.copy(), []
    if case == "published":
        model, structure = copper(), bulk("Cu", cubic=True).repeat(2)
        structure.rattle(0.1, seed=2)
    else:
        if case == "close_zbl":
            zbl = [ZBL.of_elements([4, 74], inner=2.0, outer=3.0, fade=False)]
        elif case == "core_repulsion":
            cutoffs = CHEBYSHEV.inner, CHEBYSHEV.inner_width
            zbl = [CoreRepulsion({"W-Be": [30, 0.3, *cutoffs]}, CHEBYSHEV.cutoff)]
        descriptor = {"chebyshev": CHEBYSHEV, "core_repulsion": CHEBYSHEV, "table": TABLE}
        model = trained(descriptor.get(case, BESSEL), 2, zbl)
    export_potential([model], tmp_path, structure, "yace")
    ours, energy, forces, energies = lammps_step(tmp_path, model)
    assert ours.get_potential_energy() == pytest.approx(energy, rel=1e-6)
    own = ours.calc.get_property("energies", ours)
    np.testing.assert_allclose(own, energies, rtol=1e-6)
    scale = np.abs(forces).max()
    assert scale > 0.1
    np.testing.assert_allclose(ours.get_forces(), forces, rtol=0, atol=1e-6 * scale)


# --- refused


def test_models_that_pace_cannot_be(tmp_path):
    def refused(message, model):
        with pytest.raises(UnsupportedModelError, match=message):
            write_pace(model, tmp_path / "x.yace")

    refused("no place for", trained(BESSEL, 1, [ZBL.of_elements([4, 74], inner=2.0, outer=3.0)]))
    other = ClusterExpansion(["W", "Be"], 4.2, cutoff_fn="power", n_functions=9)
    refused("no radial functions 'bessel' with the cutoff function 'power'", trained(other))
    refused("other cutoffs", trained(CHEBYSHEV, 1, [CoreRepulsion({"W-Be": [1, 1, 2, 1]}, 4.5)]))
    model = trained(BESSEL)
    model.output_modules[0].fade = object()
    refused("fade=false", model)
    networks = trained(BESSEL, 2)
    networks.output_modules[0].activations = ("tanh",)
    refused("networks with hidden layers of \\[2\\]", networks)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("E0:", "E1:", "lacks 'E0'"),
        ("SBessel", "ChebLinear", "'ChebLinear' are not among ChebExpCos"),
        ("inner_cutoff_type: distance", "inner_cutoff_type: zbl", "nearest neighbour"),
        ("0.5], npoti", "2.0], npoti", "with exponents"),
        ("  [0, 1]: {", "  [0, 2]: {", "no bonds \\[0, 1\\]"),
        ("rcut: 4.2", "rcut: .nan", "not finite"),
        ("ms_combs: [0, 1, -1, ", "ms_combs: [0, 1, 1, ", "when all atoms turn"),
        ("[Be, W]", "[Be, Wo]", "'Wo' is no chemical element"),
        ("elements:", "elements", "line 2"),
    ],
)
def test_wrong_files(tmp_path, old, new, message):
    path = write_pace(trained(SMALL, 2), tmp_path / "x.yace")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PaceFormatError, match=f"x.yace.*{message}"):
        read_pace(path)
