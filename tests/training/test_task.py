"""The task on a small potential: what it trains on, logs and refuses."""

import math
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from ase import units
from schnetpack import properties
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import SchNet

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.rules import (
    Fixed,
    Likelihood,
    LinearRamp,
    ReLoBRaLo,
    Rule,
    SoftAdapt,
    TwoStage,
    Uncertainty,
)
from schnetpack_softadapt.training.task import SoftAdaptTask


def fit(task, database, tmp_path, epochs=2, data=None, callbacks=(), **trainer):
    pl.seed_everything(0, verbose=False)
    datamodule = toy_runs.toy_data(database, **(data or {}))
    trainer = toy_runs.toy_trainer(tmp_path, epochs, callbacks=list(callbacks), **trainer)
    trainer.fit(task, datamodule=datamodule)
    return trainer, datamodule


class Records(pl.Callback):
    """Keeps what every epoch logs."""

    def __init__(self):
        self.rows = []

    def on_epoch_record(self, trainer, task, record):
        self.rows.append(record)


def test_logged_means_are_those_of_the_epoch(database, tmp_path):
    """Against a plain loop over the same frozen model, with batches of unequal size."""
    records = Records()
    task = toy_runs.toy_task(lr=0.0, standardize=False)
    _, datamodule = fit(task, database, tmp_path, 1, callbacks=[records])  # batches of 4, 4, 2
    energy, forces, stress = [], [], []
    model = task.model
    for sample in datamodule.train_dataloader().dataset:
        batch = {**sample, properties.idx_m: torch.zeros(len(sample["_atomic_numbers"])).long()}
        pred = model(dict(batch))
        n = len(sample["_atomic_numbers"])
        energy.append(float(pred["energy"].detach().double() - batch["energy"]) / n)
        forces.append((pred["forces"] - batch["forces"]).detach().double().reshape(-1))
        if batch["stress_mask"] > 0:
            error = (pred["stress"] - batch["stress"]).detach().double().reshape(9)
            stress.append(error[[0, 4, 8, 5, 2, 1]])
    forces, stress = torch.cat(forces), torch.cat(stress)
    row = records.rows[0]
    # stress of a float32 network is symmetric to its rounding only
    assert row["train_energy_loss"] == pytest.approx(np.mean(np.square(energy)), rel=1e-5)
    assert row["train_forces_loss"] == pytest.approx(float(forces.square().mean()), rel=1e-5)
    assert row["train_stress_loss"] == pytest.approx(float(stress.square().mean()), rel=1e-4)
    assert row["train_energy_mae"] == pytest.approx(np.mean(np.abs(energy)), rel=1e-5)
    assert row["train_forces_rmse"] == pytest.approx(float(forces.square().mean() ** 0.5), rel=1e-5)
    assert row["train_stress_mae"] == pytest.approx(float(stress.abs().mean()), rel=1e-4)
    parts = sum(row[f"train_{c}_loss"] / 3 for c in ("energy", "forces", "stress"))
    assert row["train_loss"] == pytest.approx(parts, rel=1e-12)


def test_weights_follow_the_rule_from_logged_losses(database, tmp_path):
    records = Records()
    task = toy_runs.toy_task(weighting=SoftAdapt(beta=2.0))
    fit(task, database, tmp_path, 4, callbacks=[records])
    rule = SoftAdapt(beta=2.0)
    names = ["energy", "forces", "stress"]
    weights = rule.begin(names)
    for row in records.rows:
        assert {n: row[f"weight_{n}"] for n in names} == weights
        weights = rule.update(row["epoch"], {n: row[f"train_{n}_loss"] for n in names})
        assert {n: row[f"rate_{n}"] for n in names} == rule.rates
    assert task.rule.weights == weights


class Shrinking(Rule):
    """Weights that fall by ten each epoch."""

    def _next(self, epoch, losses, lr, progress):
        return {k: w / 10 for k, w in self.weights.items()}


@pytest.mark.parametrize("standardize", [True, False])
def test_val_loss_means_the_same_in_all_epochs(database, tmp_path, standardize):
    """Upstream, with a frozen model and shrinking weights, val_loss falls and the last is best."""
    records = Records()
    task = toy_runs.toy_task(lr=0.0, weighting=Shrinking(), standardize=standardize)
    fit(task, database, tmp_path, 3, callbacks=[records])
    val = [row["val_loss"] for row in records.rows]
    assert val[0] == val[1] == val[2]
    train = [row["train_loss"] for row in records.rows]
    assert train[2] == pytest.approx(train[0] / 100, rel=1e-6)
    if standardize:
        parts = sum(records.rows[0][f"val_{c}_loss"] for c in ("energy", "forces", "stress"))
        assert val[0] == pytest.approx(parts, rel=1e-12)


def test_val_loss_is_standardised_whatever_is_trained(database, tmp_path):
    values = []
    for standardize in (True, False):
        records = Records()
        task = toy_runs.toy_task(lr=0.0, standardize=standardize)
        fit(task, database, tmp_path, 1, callbacks=[records])
        values.append(records.rows[0]["val_loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_val_loss_of_raw_huber_losses_does_not_depend_on_units(database, tmp_path):
    """The same delta in other units, and deltas that are those of a standardised run."""
    rows = []
    for energy, forces, stress in (
        ({"delta": 0.02}, {"delta": 0.5}, {"delta": 0.01}),
        (
            {"unit": "meV", "delta": 20.0},
            {"unit": "kcal/mol/Ang", "delta": 0.5 * units.mol / units.kcal},
            {"unit": "GPa", "delta": 0.01 / units.GPa},
        ),
    ):
        records = Records()
        outputs = [
            kind(loss="huber", **arguments)
            for kind, arguments in (
                (EnergyLoss, energy),
                (ForcesLoss, forces),
                (StressLoss, stress),
            )
        ]
        task = toy_runs.toy_task(outputs=outputs, lr=0.0, standardize=False)
        fit(task, database, tmp_path, 1, callbacks=[records])
        rows.append(records.rows[0])
    assert rows[0]["train_energy_loss"] != pytest.approx(rows[1]["train_energy_loss"], rel=0.5)
    assert rows[0]["val_loss"] == pytest.approx(rows[1]["val_loss"], rel=1e-6)
    # H(s x; s delta) = s^2 H(x; delta): by hand, with residuals on both sides of delta
    records, forces_loss = Records(), ForcesLoss(loss="huber", delta=0.5)
    task = toy_runs.toy_task(outputs=[forces_loss], lr=0.0, standardize=False)
    _, datamodule = fit(task, database, tmp_path, 1, callbacks=[records])
    total, count, outside = 0.0, 0, 0
    for batch in datamodule.val_dataloader():
        error = forces_loss.error(task._predict(batch), batch).detach().double().abs()
        scale = forces_loss.scale(batch, task.standardization)
        huber = torch.where(error < 0.5, 0.5 * error**2, 0.5 * (error - 0.25))
        total += float((scale**2 * huber).sum())
        count, outside = count + error.numel(), outside + int((error > 0.5).sum())
    assert 0 < outside < count
    assert records.rows[0]["val_loss"] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("unit", [None, "meV"])
@pytest.mark.parametrize("standardize", [True, False])
def test_units_change_the_weights_of_raw_losses_only(database, tmp_path, unit, standardize):
    task = toy_runs.toy_task(
        outputs=[EnergyLoss(unit=unit), ForcesLoss(), StressLoss()], standardize=standardize
    )
    fit(task, database, tmp_path, 2)
    reference = toy_runs.toy_task(standardize=standardize)
    fit(reference, database, tmp_path, 2)
    same = task.rule.weights == reference.rule.weights
    assert same == (standardize or unit is None)


@pytest.mark.parametrize(
    ("forces", "stress", "names"),
    [
        (False, False, ["energy"]),
        (True, False, ["energy", "forces"]),
        (True, True, ["energy", "forces", "stress"]),
    ],
)
def test_components_that_the_data_lack_are_left_out(tmp_path, forces, stress, names, caplog):
    structures = toy_runs.emt_structures(8)
    path = toy_runs.write_database(tmp_path / "part.db", structures, stress=stress, forces=forces)
    records = Records()
    outputs = toy_runs.components(auto=True)
    task = toy_runs.toy_task(toy_runs.toy_model(forces=forces, stress=stress), outputs)
    fit(task, path, tmp_path, 3, data={"n_train": 4, "n_val": 2}, callbacks=[records])
    assert list(task.rule.weights) == names
    assert sum(task.rule.weights.values()) == pytest.approx(1.0, abs=1e-7)
    assert [key for key in records.rows[0] if key.startswith("weight_")] == [
        f"weight_{n}" for n in names
    ]
    assert ("left out" in caplog.text) == (len(names) < 3)
    assert records.rows[2]["val_loss"] < records.rows[0]["val_loss"]


def test_data_without_a_single_stress(tmp_path, caplog):
    structures = toy_runs.emt_structures(8)
    path = toy_runs.write_database(tmp_path / "none.db", structures, masked=range(8))
    task = toy_runs.toy_task(outputs=toy_runs.components(auto=True))
    fit(task, path, tmp_path, 1, data={"n_train": 4, "n_val": 2})
    assert list(task.rule.weights) == ["energy", "forces"]
    assert "no training structure has a stress that counts" in caplog.text


def test_a_component_that_was_asked_for_is_there_or_an_error(database, tmp_path):
    misspelt = [EnergyLoss(), ForcesLoss("force"), StressLoss()]
    with pytest.raises(
        ValueError, match=r"force: the model does not predict force.*forces, stress"
    ):
        fit(toy_runs.toy_task(outputs=misspelt), database, tmp_path, 1)
    misspelt[1] = ForcesLoss(target_property="force")
    with pytest.raises(ValueError, match="forces: the data have no force"):
        fit(toy_runs.toy_task(outputs=misspelt), database, tmp_path, 1)
    structures = toy_runs.emt_structures(8)
    path = toy_runs.write_database(tmp_path / "none.db", structures, masked=range(8))
    data = {"n_train": 4, "n_val": 2, "split_file": str(tmp_path / "none.npz")}
    with pytest.raises(ValueError, match="no training structure has a stress that counts"):
        fit(toy_runs.toy_task(), path, tmp_path, 1, data=data)


def test_split_components_have_weights_of_their_own(database, tmp_path):
    outputs = [
        EnergyLoss(),
        ForcesLoss(component="forces_Cu", elements=["Cu"]),
        ForcesLoss(component="forces_Au", elements=["Au"]),
        StressLoss(component="stress_small", groups=["small"]),
        StressLoss(component="stress_large", groups=["large"]),
    ]
    records = Records()
    for stock in (False, True):
        task = toy_runs.toy_task(outputs=outputs)
        fit(task, database, tmp_path, 2, data={"stock": stock}, callbacks=[records])
        assert list(task.rule.weights) == [c.component for c in outputs]
    row = records.rows[0]
    assert row["train_forces_rmse"] > 0  # one value for the property, not one per component
    assert row["train_stress_small_loss"] != row["train_stress_large_loss"]


def test_pieces_have_weights_of_their_own_and_leave_the_rest(database, tmp_path):
    """val_loss and the errors are those of the whole, also where groups differ in size."""
    rows = []
    for split in (False, True):
        outputs = toy_runs.components()
        if split:
            outputs = [
                EnergyLoss(split="groups", groups=["small", "large"]),
                ForcesLoss(split="elements", elements=["Cu", "Au"]),
                StressLoss(split="normal_shear"),
            ]
        records = Records()
        rule = Likelihood(end=1.0, ceiling=1e9, prior="labels")
        task = toy_runs.toy_task(outputs=outputs, lr=0.0, weighting=rule)
        fit(task, database, tmp_path, 1, callbacks=[records])
        rows.append(records.rows[0])
    whole, pieces = rows
    names = ["energy_small", "energy_large", "forces_Cu", "forces_Au"]
    names += ["stress_normal", "stress_shear"]
    assert list(task.rule.weights) == names
    assert len({pieces[f"weight_{name}"] for name in names[2:4]}) == 2
    assert pieces["weight_stress_normal"] == pytest.approx(pieces["weight_stress_shear"])
    weights = task.rule.weights  # N_k / l_k after the first epoch
    assert weights["stress_normal"] / weights["stress_shear"] == pytest.approx(
        pieces["train_stress_shear_loss"] / pieces["train_stress_normal_loss"], rel=1e-9
    )
    # float32 residuals, summed in another order
    for key in ("val_loss", "val_energy_rmse", "val_forces_mae", "train_stress_rmse"):
        assert pieces[key] == pytest.approx(whole[key], rel=1e-6), key
    assert whole["val_stress_loss"] == pytest.approx(
        (pieces["val_stress_normal_loss"] + pieces["val_stress_shear_loss"]) / 2, rel=1e-6
    )


def test_loss_weight_of_an_output_is_shared_by_its_pieces(database, tmp_path):
    """0.2 l_stress is 0.1 l_normal + 0.1 l_shear; weights that are all the same stay none."""
    outputs = [EnergyLoss(), ForcesLoss(), StressLoss(loss_weight=0.2, split="normal_shear")]
    task = toy_runs.toy_task(outputs=outputs, weighting=Fixed("auto"))
    fit(task, database, tmp_path, 1)
    expected = {"energy": 1.0, "forces": 1.0, "stress_normal": 0.1, "stress_shear": 0.1}
    assert task.rule.factors == pytest.approx(expected, rel=1e-12)
    outputs = [EnergyLoss(), ForcesLoss(), StressLoss(split="normal_shear")]
    task = toy_runs.toy_task(outputs=outputs, weighting=Fixed("auto"))
    fit(task, database, tmp_path, 1)
    assert task.rule.factors["energy"] < 0.1 < task.rule.factors["stress_shear"]  # labels


def test_a_piece_without_labels_is_an_error(database, tmp_path):
    outputs = [EnergyLoss(), ForcesLoss(split="elements", elements=["Cu", "Ag"])]
    with pytest.raises(ValueError, match="forces_Ag: no training structure has"):
        fit(toy_runs.toy_task(outputs=outputs), database, tmp_path, 1)


RULES = {
    "fixed": Fixed,
    "softadapt": SoftAdapt,
    "likelihood": Likelihood,
    "relobralo": ReLoBRaLo,
    "uncertainty": Uncertainty,
    "linear_ramp": lambda: LinearRamp(dict.fromkeys(PIECES, 0.1), dict.fromkeys(PIECES, 1.0)),
    "two_stage": lambda: TwoStage(dict.fromkeys(PIECES, 0.1), dict.fromkeys(PIECES, 1.0), 1),
}
PIECES = ["energy", "forces", "stress_normal", "stress_shear"]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_weighs_normal_and_shear_stress(database, tmp_path, name):
    records = Records()
    outputs = [EnergyLoss(), ForcesLoss(), StressLoss(split="normal_shear")]
    task = toy_runs.toy_task(outputs=outputs, weighting=RULES[name]())
    fit(task, database, tmp_path, 3, callbacks=[records])
    assert list(task.rule.weights) == PIECES
    assert records.rows[-1]["val_loss"] < records.rows[0]["val_loss"]


def test_weights_of_structures_come_from_the_database(tmp_path):
    structures = toy_runs.emt_structures(8)
    # all weight on the first four: the others must not matter
    path = toy_runs.write_database(tmp_path / "w.db", structures, weights=[1, 1, 1, 1, 0, 0, 0, 0])
    np.savez("split.npz", train_idx=range(8), val_idx=[0], test_idx=[1])
    losses = []
    for subset in (range(8), range(4)):
        np.savez("split.npz", train_idx=list(subset), val_idx=[0], test_idx=[1])
        records = Records()
        task = toy_runs.toy_task(lr=0.0, standardize=False)
        data = {"n_train": None, "n_val": None, "n_test": None, "split_file": "split.npz"}
        fit(task, path, tmp_path, 1, data={**data, "stock": True}, callbacks=[records])
        losses.append([records.rows[0][f"train_{c}_loss"] for c in ("energy", "forces", "stress")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Exploding(torch.nn.Module):
    """Adds nan to the forces from the second epoch on."""

    def __init__(self):
        super().__init__()
        self.model_outputs = []
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        if self.calls > 3 and self.training:
            inputs["forces"] = inputs["forces"] * math.nan
        return inputs


def test_non_finite_loss_names_component_and_epoch(database, tmp_path):
    model = toy_runs.toy_model()
    model.output_modules.append(Exploding())
    # weight zero keeps the nan out of the network, where it would reach the other losses
    fixed = Fixed({"energy": 1.0, "forces": 0.0, "stress": 0.0})
    task = toy_runs.toy_task(model, weighting=fixed)
    with pytest.raises(ValueError, match="forces loss of epoch 1 is nan"):
        fit(task, database, tmp_path, 3)


@pytest.mark.parametrize("stock_data", [True, False])
def test_stock_schnet(database, tmp_path, stock_data):
    torch.manual_seed(0)
    cutoff = toy_runs.CUTOFF
    toy = toy_runs.toy_model()
    model = NeuralNetworkPotential(
        SchNet(8, 1, GaussianRBF(8, cutoff), CosineCutoff(cutoff)),
        input_modules=list(toy.input_modules),
        output_modules=[
            type(toy.output_modules[0])(n_in=8, output_key="energy"),
            toy.output_modules[1],
        ],
    )
    records = Records()
    task = toy_runs.toy_task(model, lr=5e-3)
    fit(task, database, tmp_path, 4, data={"stock": stock_data}, callbacks=[records])
    assert records.rows[-1]["val_loss"] < records.rows[0]["val_loss"]


class GaussNewton(torch.optim.Optimizer):
    """The smallest optimizer of residuals: a damped Gauss-Newton step."""

    uses_residuals = True

    def __init__(self, params, lr=1.0, damping=1e-8):
        super().__init__(params, {"lr": lr, "damping": damping})

    def step(self, closure):
        parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        with torch.enable_grad():
            x = torch.cat([v.double() for v in closure().values()])
        rows = []
        for value in x:
            grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(grads, parameters, strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
            )
        jacobian = torch.stack(rows).double()
        damping = self.param_groups[0]["damping"] * torch.eye(jacobian.shape[1])
        step = torch.linalg.solve(jacobian.T @ jacobian + damping, jacobian.T @ x.detach())
        first = 0
        with torch.no_grad():
            for p in parameters:
                p -= step[first : first + p.numel()].reshape(p.shape).to(p.dtype)
                first += p.numel()


def test_optimizers_of_residuals(database, tmp_path):
    model = toy_runs.toy_model()
    model.output_modules[0].requires_grad_(False)
    model.output_modules[0].outnet[-1].requires_grad_(True)  # 9 parameters: linear least squares
    task = SoftAdaptTask(
        model,
        toy_runs.components(),
        weighting=Fixed(),
        optimizer_cls=GaussNewton,
        optimizer_args={"lr": 1.0},
    )
    assert not task.automatic_optimization
    records = Records()
    data = {"n_train": 3, "batch_size": 3}
    trainer, _ = fit(task, database, tmp_path, 3, data=data, callbacks=[records])
    adam = Records()
    reference = toy_runs.toy_task(toy_runs.toy_model(), weighting=Fixed(), lr=1e-3)
    fit(reference, database, tmp_path, 3, data=data, callbacks=[adam])
    assert trainer.global_step == 3
    assert records.rows[0]["train_loss"] == pytest.approx(adam.rows[0]["train_loss"], rel=1e-6)
    # the residuals are linear in these parameters: one step is the solution
    assert records.rows[1]["train_loss"] < 0.5 * records.rows[0]["train_loss"]
    assert records.rows[2]["train_loss"] == pytest.approx(records.rows[1]["train_loss"], rel=1e-3)


class Twice(GaussNewton):
    """Looks at another point first, as a line search does."""

    def step(self, closure):
        loss = closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p += 1.0
        closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p -= 1.0
        return loss


class TwiceByAutograd(Twice):
    uses_residuals = False


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, Twice, TwiceByAutograd])
def test_a_batch_counts_once_however_often_it_is_evaluated(database, tmp_path, optimizer):
    """One batch, so that the epoch's means are those of the parameters that it starts from."""
    rows = []
    data = {"n_train": 4, "batch_size": 4}
    for cls in (optimizer, torch.optim.SGD):
        records = Records()
        task = SoftAdaptTask(
            toy_runs.toy_model(),
            toy_runs.components(),
            optimizer_cls=cls,
            optimizer_args={"lr": 1e-3},
        )
        fit(task, database, tmp_path, 1, data=data, callbacks=[records])
        rows.append(records.rows[0])
    for key in rows[1]:
        if key.startswith("train_"):
            # the same operations on the same numbers, up to the rounding of p + 1 - 1
            assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-6), key


def test_residual_vectors_square_to_the_loss(database, tmp_path):
    task = toy_runs.toy_task(weighting=Fixed({"energy": 0.2, "forces": 0.7, "stress": 0.1}))
    _, datamodule = fit(task, database, tmp_path, 1)
    batch = next(iter(datamodule.train_dataloader()))
    task.train()
    loss = task.training_step(dict(batch), 0)
    total = sum(v.double().square().sum() for v in task.residual_vectors(batch).values())
    assert float(total.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert batch["energy"].grad_fn is None  # the batch still holds the references


@pytest.mark.parametrize("weighs", [False, True])
def test_residual_vectors_have_the_gradient_of_huber_losses(database, tmp_path, weighs):
    """With residuals on both sides of delta."""
    components = toy_runs.components(loss="huber", delta=0.5)
    task = toy_runs.toy_task(outputs=components, weighting=Fixed(), lr=1e-5)
    _, datamodule = fit(task, database, tmp_path, 1)
    batch = next(iter(datamodule.train_dataloader()))
    if weighs:
        n = len(batch[properties.n_atoms])
        batch[keys.structure_weight] = torch.linspace(0.1, 10.0, n, dtype=torch.float64)
    task.train()
    parameters = list(task.parameters())
    expected = torch.autograd.grad(task.training_step(dict(batch), 0), parameters)
    vectors = task.residual_vectors(batch)
    total = sum(v.double().square().sum() for v in vectors.values())
    gradient = torch.autograd.grad(total, parameters)
    for a, b in zip(gradient, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    error = components[1].residuals(task._predict(batch), batch, task.standardization)[0]
    assert 0 < int((error.abs() > 0.5).sum()) < error.numel()


def test_batches_keep_their_references(database, tmp_path):
    """The model writes its results over the references, upstream in the batch itself."""
    task = toy_runs.toy_task()
    _, datamodule = fit(task, database, tmp_path, 1)
    batch = next(iter(datamodule.train_dataloader()))
    before = {k: v.clone() for k, v in batch.items()}
    task.train()
    task.training_step(batch, 0)
    for key in ("energy", "forces", "stress", properties.cell, properties.R):
        assert torch.equal(batch[key].detach(), before[key])


def test_hydra_containers_do_not_reach_the_optimizer(database):
    from omegaconf import OmegaConf

    args = OmegaConf.create({"lr": 1e-3, "betas": [0.8, 0.9]})
    task = SoftAdaptTask(toy_runs.toy_model(), toy_runs.components(), optimizer_args=args)
    optimizer = task.configure_optimizers()
    assert not OmegaConf.is_config(optimizer.param_groups[0]["betas"])


def test_bad_outputs():
    with pytest.raises(ValueError, match="EnergyLoss"):
        SoftAdaptTask(toy_runs.toy_model(), [torch.nn.MSELoss()])
    with pytest.raises(ValueError, match="different names"):
        SoftAdaptTask(toy_runs.toy_model(), [ForcesLoss(), ForcesLoss(elements=["Cu"])])


def test_energies_in_other_units_are_logged_in_ev(database, tmp_path):
    rows = []
    for factor, unit in ((1.0, "eV"), (units.mol / units.kcal, "kcal/mol")):
        records = Records()
        model = toy_runs.toy_model()
        with torch.no_grad():  # the same model in the other unit
            for p in model.output_modules[0].outnet[-1].parameters():
                p *= factor
        task = toy_runs.toy_task(model, lr=0.0)
        units_of = {"energy": unit, "forces": f"{unit}/Ang", "stress": f"{unit}/Ang/Ang/Ang"}
        data = {"property_units": units_of, "split_file": "split.npz"}
        fit(task, database, tmp_path, 1, data=data, callbacks=[records])
        rows.append(records.rows[0])
    for key in ("val_energy_rmse", "val_forces_mae", "train_stress_rmse", "val_loss"):
        assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-4), key
    shutil.rmtree(tmp_path, ignore_errors=True)
