"""The text potential and the object that LAMMPS calls, without LAMMPS."""

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from deploy_models import make_layout, make_model, mo, mote2
from schnetpack import properties

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange import lammps_mliap
from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.deploy.exchange.text import read_text
from schnetpack_softadapt.deploy.loading import load_potential
from schnetpack_softadapt.model import (
    SNAP,
    ZBL,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.fade import Fade


class Data(SimpleNamespace):
    """What ML-IAP passes: owned atoms, then ghosts; arrays that have no entries do not exist."""

    def update_pair_forces(self, gradient):
        assert gradient.flags.c_contiguous
        for i, j, g in zip(self.pair_i, self.jatoms, gradient, strict=True):
            self.f[i] += g
            self.f[j] -= g


def as_lammps(atoms, cutoff, elements, listed) -> Data:
    """A structure with ghosts for all neighbours, and only some atoms in the pair style's list."""
    i, j, r_ij = neighbor_list("ijD", atoms, cutoff)
    keep = np.isin(i, listed)
    i, j, r_ij = i[keep], j[keep], r_ij[keep]
    ghosts = len(atoms) + np.arange(len(j))
    elems = np.searchsorted(elements, atoms.numbers)
    return Data(
        nlistatoms=len(listed),
        npairs=len(j),
        iatoms=np.array(listed, dtype=np.int32),
        ielems=elems[listed].astype(np.int32),
        numneighs=np.array([(i == k).sum() for k in listed], dtype=np.int32),
        pair_i=i.astype(np.int32),
        jatoms=ghosts.astype(np.int32) if len(j) else None,
        jelems=elems[j].astype(np.int32) if len(j) else None,
        rij=r_ij if len(j) else None,
        f=np.zeros((len(atoms) + len(j), 3)),
        owner=j,
    )


def forces_of(data, n):
    forces = data.f[:n].copy()
    np.add.at(forces, data.owner, data.f[n:])
    return forces


@pytest.fixture
def committee(tmp_path):
    models = [make_model(), make_model(seed=1, activation="finnis_sinclair")]
    export_potential(models, tmp_path, mote2())
    return models, lammps_mliap.load(str(tmp_path / "potential.json"))


def test_two_ranks_with_ghosts(committee):
    """Each has a part of the atoms; forces on ghosts go back to their owners."""
    models, potential = committee
    atoms = mote2(0.1)
    atoms.calc = SoftAdaptCalculator(models)
    n, total = len(atoms), 0.0
    forces, energies = np.zeros((n, 3)), np.zeros(n)
    for listed in ([0, 2, 5, 7], [k for k in range(n) if k not in (0, 2, 5, 7)]):
        data = as_lammps(atoms, 2 * potential.rcutfac, potential.potential.elements, listed)
        potential.compute_forces(data)
        forces += forces_of(data, n)
        energies[listed] = data.eatoms
        total += data.energy
    assert total == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
    assert potential.n_extrapolations == atoms.calc.extrapolation.n_last > 0


def test_zbl_below_networks_that_fade_out(tmp_path):
    """Beside a member without: each has its own."""
    elements = np.unique(mote2().numbers).tolist()
    models = [make_model(seed=k) for k in range(2)]
    models[1].postprocessors.append(ZBL.of_elements(elements, inner=2.0, outer=3.1))
    networks = next(m for m in models[1].output_modules if isinstance(m, ElementalAtomwise))
    networks.fade = Fade(elements, np.full((2, 2), 2.6), np.full((2, 2), 1.4), ceiling=0.7)
    atoms = mote2(0.1)
    atoms.positions[1] += 0.4 * (atoms.positions[0] - atoms.positions[1])
    assert 1.4 < atoms.get_distance(0, 1) < 2.6
    export_potential(models, tmp_path, atoms)
    potential = lammps_mliap.load(str(tmp_path / "potential.json"))
    data = as_lammps(atoms, 2 * potential.rcutfac, elements, range(len(atoms)))
    potential.compute_forces(data)
    for calculator in (SoftAdaptCalculator(models), SoftAdaptCalculator(tmp_path)):
        atoms.calc = calculator
        assert data.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        forces = forces_of(data, len(atoms))
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-9)
    atoms.calc = SoftAdaptCalculator(models[0])
    assert abs(data.energy - atoms.get_potential_energy()) > 1.0


def test_pairs_beyond_the_cutoff_change_nothing(committee):
    _, potential = committee
    atoms, elements = mote2(0.1), potential.potential.elements
    results = []
    for cutoff in (2 * potential.rcutfac, 2 * potential.rcutfac + 1.5):
        data = as_lammps(atoms, cutoff, elements, range(len(atoms)))
        potential.compute_forces(data)
        results.append((data.npairs, data.energy, forces_of(data, len(atoms))))
    assert results[1][0] > results[0][0]
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-11)
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=0, atol=1e-11)


def test_ranks_without_atoms_and_atoms_without_neighbours(committee):
    models, potential = committee
    data = Data(nlistatoms=0, npairs=0, energy=7.0)
    potential.compute_forces(data)
    assert data.energy == 0.0
    atoms = mote2(0.0)[[0, 1]]
    atoms.positions[1] += 50.0
    atoms.pbc = False
    data = as_lammps(atoms, 4.5, potential.potential.elements, [0, 1])
    assert data.npairs == 0
    potential.compute_forces(data)
    atoms.calc = SoftAdaptCalculator(models)
    assert data.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)


def test_reading_gives_the_same_model(tmp_path):
    """All digits; also of functions, activations and cutoffs that n2p2 does not know."""
    model = make_model(activation="silu", scaling="sigma")
    _, reason = export_potential([model], tmp_path, mote2())
    assert "n2p2 has no activation 'silu'" in reason
    assert not (tmp_path / "input.nn").exists()
    again = load_potential(tmp_path)
    for name, value in model.state_dict().items():
        if not name.endswith("n_atoms"):
            assert torch.equal(again.state_dict()[name], value), name
    assert again.representation.scaling.mode == "sigma"
    assert len(read_text(tmp_path)) == 1


def test_networks_on_bispectrum_components(tmp_path):
    """Of type B with softplus, whose widths are not in the file but as shapes."""
    elements = np.unique(mote2().numbers).tolist()
    networks = ElementalAtomwise(n_hidden="B2", activation="softplus", fit_shifts=False)
    model = DescriptorPotential(
        representation=SNAP(4.5, elements, scaling="sigma", parameters={"twojmax": 2}),
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
    ).double()
    for bias in networks.biases:
        torch.nn.init.normal_(bias)
    model.representation.scaling.shift.uniform_(0, 10)
    model.representation.scaling.factor.uniform_(0.05, 0.1)
    model.metadata = {"units": {"energy": "eV", "length": "Ang"}}
    assert [w.shape[2] for w in networks.weights] == [10, 5, 1]
    atoms = mote2(0.1)
    _, reason = export_potential([model.eval()], tmp_path, atoms)
    assert "n2p2" in reason
    potential = lammps_mliap.load(str(tmp_path / "potential.json"))
    data = as_lammps(atoms, 4.5, elements, range(len(atoms)))
    potential.compute_forces(data)
    # by autograd, by compiled networks, and read from the file
    module = by_autograd(model, atoms)
    for energy, forces in [module, *(by_calculator(m, atoms) for m in (model, tmp_path))]:
        assert data.energy == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(forces_of(data, len(atoms)), forces, rtol=0, atol=1e-10)


def by_calculator(model, atoms):
    atoms.calc = SoftAdaptCalculator(model)
    return atoms.get_potential_energy(), atoms.get_forces()


def by_autograd(model, atoms):
    i, j, offsets = neighbor_list("ijS", atoms, 4.5)
    inputs = {
        properties.Z: torch.tensor(atoms.numbers),
        properties.R: torch.tensor(atoms.positions),
        properties.cell: torch.tensor(atoms.cell.array)[None],
        properties.pbc: torch.tensor(atoms.pbc)[None],
        properties.n_atoms: torch.tensor([len(atoms)]),
        properties.idx_m: torch.zeros(len(atoms), dtype=torch.long),
        properties.idx_i: torch.tensor(i),
        properties.idx_j: torch.tensor(j),
        properties.offsets: torch.tensor(offsets @ atoms.cell.array),
    }
    out = model(inputs)
    return out["energy"].item(), out["forces"].detach().numpy()


def test_what_lammps_loads_is_text_and_needs_no_torch(tmp_path):
    export_potential([make_model()], tmp_path, mote2())
    assert (tmp_path / "potential.mliap").read_text().splitlines()[2] == "(Vpotential.json"
    code = (
        "import pickle, sys, numpy as np\n"
        "potential = pickle.load(open('potential.mliap', 'rb'))\n"
        "rows = np.array([0, 0, 1])\n"
        "r = np.array([[2.0, 0, 0], [-2.0, 0, 0]])\n"
        "print(potential.potential(r, np.array([0, 1]), np.array([1, 0]), rows, 2).energies)\n"
        "print([m for m in ('torch', 'schnetpack', 'pytorch_lightning') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no potential\.json .* write the path into"):
        pickle.loads((tmp_path / "potential.mliap").read_bytes())


def test_damaged_files(tmp_path):
    export_potential([make_model()], tmp_path, mote2())
    path = tmp_path / "potential.json"
    good = path.read_text()
    for old, new, message in (
        ('"version": 1', '"version": 2', "has version 2 of the format"),
        ('"format": "schnet', '"format": "', "is no potential of this package"),
        ('"tanh"', '"tan"', "unknown activations"),
        ('"biases": [[', '"biases": [[0.0, ', "damaged"),
    ):
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            load_potential(tmp_path)
    model = make_model()
    with torch.no_grad():
        model.output_modules[0].weights[0][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="numbers that are not finite"):
        export_potential([model], tmp_path / "nan", format="lammps")


def test_units(tmp_path):
    """A potential is in eV whatever the model's unit."""
    model = make_model()
    model.metadata = {"units": {"energy": "kcal/mol", "length": "Ang"}}
    atoms = mote2(0.1)
    atoms.calc = SoftAdaptCalculator(model)
    export_potential([model], tmp_path, atoms, "lammps")
    again = SoftAdaptCalculator(tmp_path)
    assert again.get_potential_energy(atoms) == pytest.approx(atoms.get_potential_energy(), 1e-12)
    model.metadata = {"units": {"energy": "eV", "length": "Bohr"}}
    with pytest.raises(ValueError, match="length is Bohr"):
        export_potential([model], tmp_path, atoms, "lammps")


def test_command(tmp_path, capsys):
    """One model or a committee, each format; a folder has nothing of an earlier export."""
    for k in range(2):
        torch.save(make_model(seed=k), tmp_path / f"m{k}")
    mote2().write(tmp_path / "start.xyz")
    one, two = str(tmp_path / "m0"), str(tmp_path / "m1")
    rest = ["--out", str(tmp_path / "out"), "--structure", str(tmp_path / "start.xyz")]
    assert main(["export", one, *rest]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"potential.json", "potential.mliap", "input.nn", "in.lammps", "README.md"}
    text = (tmp_path / "out/in.lammps").read_text()
    assert "\npair_style      mliap unified potential.mliap" in text
    assert "\n#pair_style      hdnnp 4.51 dir" in text
    assert main(["export", one, two, *rest]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", one, two, *rest, "--overwrite"]) == 0
    assert "hold one model, not a committee" in capsys.readouterr().err
    assert not (tmp_path / "out/input.nn").exists()
    assert len(json.loads((tmp_path / "out/potential.json").read_text())["members"]) == 2
    assert len(SoftAdaptCalculator(tmp_path / "out").models) == 2
    assert main(["export", one, two, *rest, "--overwrite", "--format", "n2p2"]) == 2
    assert main(["export", one, *rest, "--overwrite", "--format", "n2p2"]) == 0
    assert not (tmp_path / "out/potential.json").exists()
    assert "\npair_style      hdnnp" in (tmp_path / "out/in.lammps").read_text()


def test_committees_of_different_descriptors(tmp_path):
    atoms = mote2(0.1)
    models = [make_model(), make_model(seed=1, layout=make_layout("tanh3"))]
    export_potential(models, tmp_path, atoms)
    potential = lammps_mliap.load(str(tmp_path / "potential.json"))
    data = as_lammps(atoms, 4.5, potential.potential.elements, range(len(atoms)))
    potential.compute_forces(data)
    atoms.calc = SoftAdaptCalculator(models)
    assert data.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(forces_of(data, len(atoms)), atoms.get_forces(), atol=1e-10)
    with pytest.raises(ValueError, match="is a committee of 2 models"):
        load_potential(tmp_path)
    from schnetpack_softadapt.descriptors.acsf.layout import Layout

    other = make_model(layout=Layout({"Mo": make_layout().functions[42][6:]}))
    with pytest.raises(ValueError, match="made for the same elements"):
        export_potential([models[0], other], tmp_path / "b", mo())
