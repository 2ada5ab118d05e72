"""The Kalman filter: against its equations, a plain Gauss-Newton loop, and in runs of the task."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from schnetpack.transform import CastTo32, MatScipyNeighborList

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers import KalmanFilter
from schnetpack_softadapt.training.optimizers.residuals import Residuals
from schnetpack_softadapt.training.rules import Fixed, SoftAdapt
from schnetpack_softadapt.training.task import SoftAdaptTask


def linear_problem(n_batches=6, n_rows=4, n_parameters=5, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(n_batches, n_rows, n_parameters)))
    y = torch.tensor(rng.normal(size=(n_batches, n_rows)))
    return x, y


def run_on(x, y, theta, **kwargs):
    """Steps over batches of a linear model; the parameters in two tensors of different shape."""
    parameters = [theta[:2].clone().reshape(2, 1), theta[2:].clone()]
    for p in parameters:
        p.requires_grad_()
    optimizer = KalmanFilter(parameters, **kwargs)

    def theta_now():
        return torch.cat([p.reshape(-1) for p in parameters])

    for a, b in zip(x, y, strict=True):
        optimizer.step(lambda a=a, b=b: Residuals({"y": a @ theta_now() - b}))
    return theta_now().detach()


EXACT = {"lr": 1.0, "damping": 0.0, "trust": math.inf, "fraction": 1.0, "kalman_gain": True}


@pytest.mark.parametrize("memory", [1.0, 0.9])
def test_is_recursive_least_squares_on_a_linear_model(memory):
    """Against the covariance form with its gain, one residual at a time."""
    x, y = linear_problem()
    theta = torch.ones(5, dtype=torch.float64)
    delta = 0.1
    p, expected = torch.eye(5, dtype=torch.float64) / delta, theta.clone()
    for a, b in zip(x, y, strict=True):
        p = p / memory  # the batch is one step in time
        for row, target in zip(a, b, strict=True):
            gain = p @ row / (1.0 + row @ p @ row)
            expected = expected + gain * (target - row @ expected)
            p = p - torch.outer(gain, row @ p)
    result = run_on(x, y, theta, memory=memory, initial_information=delta, **EXACT)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-11)
    if memory == 1.0:  # and that is regularised least squares of all rows
        rows, targets = x.reshape(-1, 5), y.reshape(-1)
        normal = rows.T @ rows + delta * torch.eye(5)
        solution = torch.linalg.solve(normal, rows.T @ targets + delta * theta)
        torch.testing.assert_close(result, solution, rtol=1e-9, atol=1e-11)


def test_damped_step_by_hand():
    """One residual, one parameter: A = j^2, step = lr j r / (j^2 (1 + damping r^2))."""
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = KalmanFilter([theta], lr=0.5, damping=0.01, trust=math.inf)
    loss = optimizer.step(lambda: Residuals({"y": 2.0 * theta - 1.0}))  # r = 5, j = 2
    assert float(loss) == 25.0
    expected = 3.0 - 0.5 * 10.0 / (4.0 * (1.0 + 0.01 * 25.0))
    assert float(theta.detach()) == pytest.approx(expected, rel=1e-12)


def test_factor_is_renewed_every_refresh_steps():
    x, y = linear_problem(n_batches=5)
    theta = torch.ones(5, dtype=torch.float64)
    settings = {"lr": 0.5, "memory": 0.9, "damping": 0.0, "trust": math.inf, "fraction": 1.0}
    result = run_on(x, y, theta, refresh=3, initial_information=0.1, **settings)
    a, n = 0.1 * torch.eye(5, dtype=torch.float64), 0.0
    old = a
    for step, (rows, target) in enumerate(zip(x, y, strict=True)):
        a, n = 0.9 * a + rows.T @ rows, 0.9 * n + 1.0
        old = a / n if step % 3 == 0 else old
        matrix = old if step % 3 == 0 else old + rows.T @ rows / n
        theta = theta - 0.5 * torch.linalg.solve(matrix, rows.T @ (rows @ theta - target))
    torch.testing.assert_close(result, theta, rtol=1e-9, atol=1e-11)


def test_average_curvature_is_that_of_the_memory():
    """Slopes 2 and then 4 with memory 0.5: (0.5 * 4 + 16) / (0.5 + 1) is the mean of squares."""
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = KalmanFilter([theta], lr=0.5, memory=0.5, damping=0.0, trust=math.inf)
    optimizer.step(lambda: Residuals({"y": 2.0 * theta}))
    assert float(theta.detach()) == pytest.approx(1.5, rel=1e-9)
    optimizer.step(lambda: Residuals({"y": 4.0 * theta}))
    expected = 1.5 - 0.5 * 4.0 * 6.0 / (18.0 / 1.5)
    assert float(theta.detach()) == pytest.approx(expected, rel=1e-9)


def test_trust_shortens_the_step():
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = KalmanFilter([theta], lr=1.0, damping=0.0, trust=0.25)
    optimizer.step(lambda: Residuals({"y": 2.0 * theta - 1.0}))
    # the residual 5 may change by sqrt(0.25) of itself
    assert 2.0 * float(theta.detach()) - 1.0 == pytest.approx(2.5, rel=1e-9)


def test_sampled_rows_stand_for_all():
    """The expected gradient is that of all rows, whatever the groups."""
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(60, 3)))
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = KalmanFilter([theta], fraction=0.1, min_groups=2)

    class Linear(Residuals):
        def jacobian(self, groups, parameters, scale, room):  # twenty groups of three rows
            return x.view(20, 3, 3)[groups["f"]].reshape(-1, 3) * scale["f"]

    residuals = Linear({"f": x @ theta + 1.0}, {"f": 3})
    torch.manual_seed(0)
    gradients = []
    for _ in range(2000):
        j, r = optimizer._linearize(residuals, optimizer.param_groups[0])
        assert j.shape == (6, 3)
        gradients.append((j.T @ r).detach())
    gradients = torch.stack(gradients)
    expected = x.sum(dim=0)
    error = gradients.std(dim=0) / math.sqrt(len(gradients))
    assert ((gradients.mean(dim=0) - expected).abs() < 4 * error).all()


def test_groups_of_rows_stay_together():
    theta = torch.arange(12.0, requires_grad=True)
    residuals = Residuals({"f": theta * 1.0}, {"f": 3})
    rows = residuals.jacobian({"f": torch.tensor([1, 3])}, [theta])
    assert torch.equal(rows, torch.eye(12)[[3, 4, 5, 9, 10, 11]])
    assert residuals.entries("f", torch.tensor([1, 3])).tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_what_is_not_finite(bad):
    theta = torch.ones(2, requires_grad=True)
    optimizer = KalmanFilter([theta])
    with pytest.raises(ValueError, match="component energy are not finite"):
        optimizer.step(lambda: Residuals({"energy": theta * bad}))
    assert theta.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="derivatives"):  # r is finite, its slope is not
        optimizer.step(lambda: Residuals({"energy": (theta - 1.0).abs().sqrt()}))
    assert theta.tolist() == [1.0, 1.0]


def test_singular_matrix_is_no_obstacle():
    """Parameters that nothing depends on stay where they are."""
    theta = torch.ones(3, requires_grad=True)
    optimizer = KalmanFilter([theta], lr=1.0, damping=0.0, trust=math.inf)
    for _ in range(5):
        optimizer.step(lambda: Residuals({"y": theta[:1] * 2.0}))
    assert theta.detach().numpy() == pytest.approx([0.0, 1.0, 1.0], abs=1e-5)
    optimizer = KalmanFilter([theta])
    before = theta.detach().clone()
    optimizer.step(lambda: Residuals({"y": 0.0 * theta}))  # everything solved
    assert torch.equal(theta.detach(), before)


def test_bad_arguments():
    theta = torch.ones(3, requires_grad=True)
    for name, value in {"lr": 2.0, "memory": 0.0, "fraction": 0.0, "damping": -1.0}.items():
        with pytest.raises(ValueError, match=name):
            KalmanFilter([theta], **{name: value})
    with pytest.raises(ValueError, match="n_hidden"):
        KalmanFilter([theta], max_parameters=2)
    with pytest.raises(ValueError, match="one group"):
        KalmanFilter([{"params": [theta]}, {"params": [torch.ones(1, requires_grad=True)]}])


# ---------------------------------------------------------------- in the task


def data(database, tmp_path, n_train=10, store=True, **kwargs):
    return SoftAdaptDataModule(
        str(database),
        batch_size=4,
        num_train=n_train,
        num_val=4,
        num_test=2,
        num_workers=0,
        splitting="random",
        split_file=str(tmp_path / "split.npz"),
        transforms=[MatScipyNeighborList(cutoff=toy_runs.CUTOFF), CastTo32()],
        store=store,
        **kwargs,
    )


def kalman_task(optimizer_cls=KalmanFilter, epochs=4, components=None, optimizer=None, **kwargs):
    if components is None:
        components = [
            EnergyLoss(),
            ForcesLoss(component="gold", elements=["Au"]),
            ForcesLoss(component="copper", elements=["Cu"]),
            StressLoss(),
        ]
    kwargs.setdefault("weighting", SoftAdapt(beta=1.0))
    return SoftAdaptTask(
        toy_runs.acsf_model(),
        components,
        optimizer_cls=optimizer_cls,
        optimizer_args={"lr": 0.5, **(optimizer or {})},
        scheduler_cls=torch.optim.lr_scheduler.CosineAnnealingLR,
        scheduler_args={"T_max": epochs},
        **kwargs,
    )


class Records(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_start(self, trainer, task):
        self.start = [p.detach().clone() for p in task.model.parameters()]

    def on_epoch_record(self, trainer, task, record):
        self.rows.append(record)


def fit(task, datamodule, folder, epochs, callbacks=(), ckpt=None):
    pl.seed_everything(3, verbose=False)
    trainer = toy_runs.toy_trainer(folder, epochs, callbacks=list(callbacks))
    trainer.fit(task, datamodule=datamodule, ckpt_path=ckpt)
    return trainer


def test_short_way_equals_backward_passes(database, tmp_path):
    """With the weights of a rule, a masked stress and several components of one property."""
    weights = {"energy": 0.2, "gold": 0.3, "copper": 0.4, "stress": 0.1}
    components = [
        EnergyLoss(),
        ForcesLoss(component="gold", elements=["Au"]),
        ForcesLoss(component="copper", elements=["Cu"]),
        StressLoss(),
        StressLoss(component="sheared", split="normal_shear"),
        StressLoss(component="corner", voigt=["xz"]),
    ]
    weights |= {"sheared_normal": 0.3, "sheared_shear": 0.7, "corner": 0.5}
    task = kalman_task(weighting=Fixed(weights), optimizer={"lr": 0.0}, components=components)
    datamodule = data(database, tmp_path, n_train=12)
    fit(task, datamodule, tmp_path, 1)
    task.model.train()
    parameters = list(task.model.parameters())
    for batch in datamodule.train_dataloader():
        residuals = task.residual_vectors(batch)
        n_atoms = len(batch["_atomic_numbers"])
        groups = {
            "energy": None,
            "gold": torch.tensor([0, 3, n_atoms - 1]),
            "copper": torch.tensor([1, 3]),
            "stress": torch.tensor([0, 1]),
            "sheared_normal": None,
            "sheared_shear": torch.tensor([1, 2]),
            "corner": torch.tensor([0, 3]),
        }
        scale = {"gold": 2.0, "corner": 0.5}
        sizes = [len(residuals.entries(name, chosen)) for name, chosen in groups.items()]
        short = residuals.jacobian(groups, parameters, scale).split(sizes)
        slow = Residuals.jacobian(residuals, groups, parameters, scale).split(sizes)
        for name, a, b in zip(groups, short, slow, strict=True):
            # float32 network and store, parameter by parameter
            error, size = (a - b).abs().amax(0), b.abs().amax(0)
            assert (error <= 5e-6 * size).all(), name


def test_trains_faster_than_adam(database, tmp_path):
    records = {}
    for cls, lr in ((KalmanFilter, 0.5), (torch.optim.AdamW, 1e-2)):
        task = kalman_task(cls, epochs=12, optimizer={"lr": lr}, weighting=Fixed())
        (tmp_path / cls.__name__).mkdir()
        records[cls] = Records()
        fit(task, data(database, tmp_path), tmp_path / cls.__name__, 12, [records[cls]])
    kalman, adam = ([row["train_loss"] for row in r.rows] for r in records.values())
    one, other = (r.start for r in records.values())
    assert all(map(torch.equal, one, other))
    assert kalman[-1] < 0.4 * adam[-1]
    lr = [row["lr"] for row in records[KalmanFilter].rows]
    expected = [0.25 * (1 + math.cos(math.pi * k / 12)) for k in range(12)]
    assert lr == pytest.approx(expected)  # the scheduler is stepped


def test_weights_of_components_count(database, tmp_path):
    """A component with the weight zero is not fitted, one with all the weight is."""
    last = {}
    for name in ("energy", "forces"):
        records = Records()
        weights = {k: 1.0 if k == name else 0.0 for k in ("energy", "forces", "stress")}
        task = kalman_task(
            epochs=8,
            weighting=Fixed(weights),
            components=[EnergyLoss(), ForcesLoss(), StressLoss()],
        )
        fit(task, data(database, tmp_path), tmp_path, 8, [records])
        last[name] = records.rows[-1]
    assert last["energy"]["train_energy_loss"] < 0.1 * last["forces"]["train_energy_loss"]
    assert last["forces"]["train_forces_loss"] < 0.1 * last["energy"]["train_forces_loss"]


def test_without_a_store_by_backward_passes(database, tmp_path):
    losses = []
    for store in (True, False):
        records = Records()
        task = kalman_task(epochs=2, optimizer={"fraction": 1.0})
        fit(task, data(database, tmp_path, n_train=4, store=store), tmp_path, 2, [records])
        losses.append([row["train_loss"] for row in records.rows])
    assert losses[0] == pytest.approx(losses[1], rel=5e-6)  # float32 on two routes


def test_resumes_to_the_bit(database, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = {}
    for folder, stops in ((whole, (4,)), (parts, (2, 4))):
        folder.mkdir()
        for stop in stops:
            last = folder / "checkpoints" / "last.ckpt"
            # a factor would outlive the two epochs of three steps
            task = kalman_task(optimizer={"fraction": 0.5, "min_groups": 2, "refresh": 4})
            pl.seed_everything(3, verbose=False)
            trainer = toy_runs.toy_trainer(folder, stop)
            trainer.fit(
                task, data(database, tmp_path), ckpt_path=str(last) if last.exists() else None
            )
        results[folder] = task
    a, b = (results[f].state_dict() for f in (whole, parts))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    states = [results[f].optimizers().state_dict()["state"][0] for f in (whole, parts)]
    assert torch.equal(states[0]["information"], states[1]["information"])
    assert states[0]["step"] == states[1]["step"] == 12
    rows = [toy_runs.history(f) for f in (whole, parts)]
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if k != "wall_s"} == {
            k: v for k, v in other.items() if k != "wall_s"
        }


def test_refuses_losses_that_are_no_squares(database, tmp_path):
    task = kalman_task(components=[EnergyLoss(loss="mae"), ForcesLoss()])
    with pytest.raises(ValueError, match="loss: mse or huber"):
        fit(task, data(database, tmp_path), tmp_path, 1)
    with pytest.raises(ValueError, match="warmup_steps=0"):
        kalman_task(warmup_steps=3)
