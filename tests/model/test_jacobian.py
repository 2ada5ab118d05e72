"""Derivatives by the parameters against backward passes of the whole model, one for each row."""

import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from emt_data import data_module, labelled
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.model import (
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
    outer_sums,
)
from schnetpack_softadapt.model.jacobian import JacobianRows
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers.residuals import BatchResiduals

CUTOFF = 4.5
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def alloy(seed):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((1 + seed % 2, 1, 1))
    atoms.numbers[rng.permutation(len(atoms))[: seed % 3]] = 79  # some have no gold
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    if seed % 2:
        atoms.set_cell(atoms.cell.array[[1, 0, 2]])  # left-handed
    atoms.rattle(0.1, seed=seed)
    return labelled(atoms)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("jacobian") / "alloy.db"
    write_database(path, [alloy(k) for k in range(9)], provenance="EMT")
    return path


def potential_and_batch(database, stress=True, seed=0, **network):
    torch.manual_seed(seed)
    stored = {"store": True, "store_dtype": "float64"}
    datamodule = data_module(database, CUTOFF, 5, 3, 1, batch_size=5, **stored)
    model = DescriptorPotential(
        representation=ACSF(cutoff=CUTOFF, grid={"n_radial": 3, "n_angular_widths": 1}),
        output_modules=[ElementalAtomwise(**network), ForcesAndStress(True, stress)],
    )
    model.initialize_transforms(datamodule)
    model.double().train()
    for bias in model.output_modules[0].biases:  # zero at the start
        torch.nn.init.normal_(bias)
    model.output_modules[0].scale.fill_(0.7)
    batch = next(iter(datamodule.train_dataloader()))
    return model, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def short_way(model, batch, atoms):
    """Rows of all outputs by key, (places, columns, P), of the forces on some atoms."""
    n, outputs = len(batch[properties.n_atoms]), model.output_modules[1]
    wanted = [JacobianRows("energy", torch.arange(n), torch.ones(n, 1).double())]
    wanted.append(JacobianRows("forces", atoms, torch.ones(len(atoms), 3).double()))
    if outputs.calc_stress:
        wanted.append(JacobianRows("stress", torch.arange(n), torch.ones(n, 6).double()))
    rows = model.parameter_jacobian(batch, wanted).split([w.factor.numel() for w in wanted])
    return {w.key: r.view(*w.factor.shape, -1) for w, r in zip(wanted, rows, strict=True)}


def by_backward_passes(model, batch, atoms):
    """One pass for each row, the parameters in the order of the model."""
    pred = model(dict(batch))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def row(value):
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)
        ]
        return torch.cat([g.reshape(-1) for g in flat])

    n = len(batch[properties.n_atoms])
    out = {
        "energy": torch.stack([row(pred["energy"][k])[None] for k in range(n)]),
        "forces": torch.stack(
            [torch.stack([row(pred["forces"][j, c]) for c in range(3)]) for j in atoms.tolist()]
        ),
    }
    if "stress" in pred:
        out["stress"] = torch.stack(
            [torch.stack([row(pred["stress"][k][v]) for v in VOIGT]) for k in range(n)]
        )
    return out


@pytest.mark.parametrize(
    "network",
    [
        {"n_hidden": [4, 3], "activation": "tanh"},
        {"n_hidden": [5], "activation": "gaussian"},
        {"n_hidden": [3, 4, 2], "activation": "silu"},
        {"n_hidden": [3, 3], "activation": "identity"},
        {"n_hidden": [3], "activation": "finnis_sinclair"},
        {"n_hidden": [], "activation": "linear", "quadratic": False},
        {"n_hidden": [], "activation": "quadratic", "quadratic": True},
    ],
    ids=lambda n: f"{n['activation']}{len(n['n_hidden'])}",
)
def test_equals_backward_passes(database, network):
    name = network["activation"]
    if not network["n_hidden"]:
        network = network | {"activation": "tanh"}
    model, batch = potential_and_batch(database, **network)
    if name == "quadratic":  # their weights start from zero
        torch.nn.init.normal_(model.output_modules[0].weights[0])
    before = {key: value.clone() for key, value in batch.items()}
    atoms = torch.tensor([7, 0, 3, len(batch[properties.Z]) - 1])  # in any order
    expected = by_backward_passes(model, batch, atoms)
    result = short_way(model, batch, atoms)
    assert set(result) == set(expected)
    for key, value in expected.items():
        # float64 sums of a few hundred terms in another order, parameter by parameter
        assert result[key].shape == value.shape
        error, size = (result[key] - value).abs().amax((0, 1)), value.abs().amax((0, 1))
        assert (error <= 3e-13 * size).all(), key
    assert all(torch.equal(before[key], value) for key, value in batch.items())


def gathered(batch):
    """What loader workers and GPUs get: only the rows and blocks of the batch."""
    rows = batch.pop(keys.store_rows)
    first = batch[keys.store_block_first]
    blocks = torch.cat([torch.arange(first[r], first[r + 1]) for r in rows])
    n_blocks = first[rows + 1] - first[rows]
    out = {**batch, keys.store_dg_dstrain: batch[keys.store_dg_dstrain][rows]}
    out[keys.store_block_first] = torch.cat([torch.zeros(1, dtype=torch.long), n_blocks.cumsum(0)])
    for key in (keys.store_block_atom, keys.store_block_columns, keys.store_dg_dr):
        if key in batch:
            out[key] = batch[key][blocks]
    return out


def test_gathered_batch_threads_and_padded_tables(database, monkeypatch):
    """Sources and ways of the same sums: loader workers' batches, several threads, GPUs."""
    model, batch = potential_and_batch(database, n_hidden=[4, 3])
    atoms = torch.arange(len(batch[properties.Z]))
    whole, threads = short_way(model, batch, atoms), torch.get_num_threads()
    ways = [short_way(model, gathered(dict(batch)), atoms)]
    monkeypatch.setattr(outer_sums, "_PER_THREAD", 1)
    torch.set_num_threads(2)
    ways.append(short_way(model, batch, atoms))
    torch.set_num_threads(threads)
    padded = outer_sums._add_padded
    monkeypatch.setattr("schnetpack_softadapt.model.jacobian.add_outer_sums", padded)
    ways.append(short_way(model, batch, atoms))
    for way in ways:
        for key, value in way.items():
            torch.testing.assert_close(value, whole[key], rtol=1e-12, atol=1e-14)


def test_factors_and_chosen_rows(database):
    model, batch = potential_and_batch(database, n_hidden=[4, 3])
    n_atoms, generator = len(batch[properties.Z]), torch.Generator().manual_seed(0)
    whole = short_way(model, batch, torch.arange(n_atoms))
    for key, n, n_columns, columns in (
        ("energy", 5, 1, None),
        ("forces", n_atoms, 3, None),
        ("stress", 5, 6, None),
        ("stress", 5, 2, [0, 4]),
    ):
        places = torch.randperm(n, generator=generator)[:4].sort().values
        factor = torch.randn(4, n_columns, generator=generator, dtype=torch.float64)
        factor[1] = 0.0  # a structure without a label
        rows = model.parameter_jacobian(batch, [JacobianRows(key, places, factor, columns)])
        expected = whole[key][places][:, columns or slice(None)] * factor[:, :, None]
        torch.testing.assert_close(rows, expected.flatten(0, 1), rtol=1e-12, atol=1e-14)
        room = torch.full((30, rows.shape[1]), math.nan, dtype=torch.float64)
        for used in (room, room[:1].clone()):  # larger, and too small
            again = model.parameter_jacobian(
                batch, [JacobianRows(key, places, factor, columns)], used
            )
            assert torch.equal(again, rows)
            assert (again.data_ptr() == used.data_ptr()) == (used is room or len(rows) == 1)


def test_without_stress(database):
    model, batch = potential_and_batch(database, stress=False, n_hidden=[3])
    assert set(short_way(model, batch, torch.arange(2))) == {"energy", "forces"}
    stress = JacobianRows("stress", torch.arange(2), torch.ones(2, 6))
    assert model.parameter_jacobian(batch, [stress]) is None


def test_structure_without_volume_has_no_stress_rows(database):
    model, batch = potential_and_batch(database, n_hidden=[3])
    batch[properties.cell] = batch[properties.cell].reshape(-1, 3, 3).clone()
    batch[properties.cell][1] = 0.0
    batch[keys.stress_mask] = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    stress = short_way(model, batch, torch.arange(2))["stress"]
    assert [bool(rows.any()) for rows in stress[:3]] == [True, False, True]
    batch[keys.stress_mask] = torch.ones(5)
    with pytest.raises(ValueError, match="structure 1 of the batch is not defined"):
        short_way(model, batch, torch.arange(2))


def test_what_is_not_a_number_stays_so(database):
    """A derivative that is NaN must stop a fit, not weigh nothing in it."""
    model, batch = potential_and_batch(database, n_hidden=[3])
    rows = batch[keys.store_rows]
    for key, output in ((keys.store_dg_dstrain, "stress"), (keys.store_dg_dr, "forces")):
        spoiled = batch[key].clone()
        spoiled[rows[0] if output == "stress" else batch[keys.store_block_first][rows[0]]] = np.nan
        jacobian = short_way(model, {**batch, key: spoiled}, torch.arange(2))
        assert jacobian[output][0].isnan().any()
        assert jacobian["energy"].isfinite().all()


def test_a_training_step_on_a_device_waits_for_nothing(database):
    """On torch's meta device nothing can be read, and tensors of the CPU cannot join in."""
    model, batch = potential_and_batch(database, n_hidden=[3])
    model.to("meta")
    out = model({key: value.to("meta") for key, value in gathered(dict(batch)).items()})
    sum((out[key] ** 2).sum() for key in ("energy", "forces", "stress")).backward()
    assert {p.grad.device.type for p in model.parameters()} == {"meta"}


def test_new_tensors_are_on_the_device_of_the_batch(database):
    """A default device that is not that of the batch stands for the reverse, a batch on a GPU."""
    model, batch = potential_and_batch(database, n_hidden=[3])
    losses = [EnergyLoss(), ForcesLoss(), StressLoss()]
    groups = {"energy": None, "forces": None, "stress": torch.tensor([0, 3])}
    parameters = list(model.parameters())

    def jacobian():
        pred = model(dict(batch))
        vectors = {c.component: c.residuals(pred, batch)[0].reshape(-1) for c in losses}
        residuals = BatchResiduals(losses, vectors, pred, batch, model)
        return residuals.jacobian(groups, parameters)

    expected = jacobian()
    with torch.device("meta"):
        found = jacobian()
    assert torch.equal(found, expected)


def test_is_declined_where_it_does_not_apply(database):
    model, batch = potential_and_batch(database, n_hidden=[3])
    wanted = [JacobianRows("forces", torch.arange(2), torch.ones(2, 3))]
    pairs = {k: v for k, v in batch.items() if k != keys.descriptors}
    assert model.parameter_jacobian(pairs, wanted) is None
    model.extra = torch.nn.Linear(2, 2)
    assert model.parameter_jacobian(batch, wanted) is None
