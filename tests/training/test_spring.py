"""SPRING: against dense formulas, in runs of the task, and as what the recipe chooses."""

import logging
import math

import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from test_optimizers import Records, data, fit, kalman_task

from schnetpack_softadapt.training.optimizers import KalmanFilter, SecondOrder, Spring
from schnetpack_softadapt.training.optimizers.residuals import Residuals
from schnetpack_softadapt.training.rules import Fixed

PLAIN = {"trust": math.inf, "fraction": 1.0}


def network_problem(n_rows=7, seed=0):
    """A small network on random points: parameters, and a closure for a batch of them."""
    torch.manual_seed(seed)
    x, y = torch.randn(n_rows, 3).double(), torch.randn(n_rows).double()
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    net.double()
    return list(net.parameters()), lambda: Residuals({"y": net(x)[:, 0] - y})


def flat(parameters):
    return torch.cat([p.detach().reshape(-1) for p in parameters])


@pytest.mark.parametrize("n_rows", [7, 70])  # J J^T in one piece and in several
def test_first_step_is_gauss_newton_in_parameter_space(n_rows):
    """J^T (J J^T + lambda)^-1 r = (J^T J + lambda)^-1 J^T r."""
    parameters, closure = network_problem(n_rows)
    residuals, before = closure(), flat(parameters)
    j = residuals.jacobian({"y": None}, parameters)
    r = residuals["y"].detach()
    damping = 0.03 * j.square().sum(1).mean()
    normal = j.T @ j + damping * torch.eye(j.shape[1], dtype=j.dtype)
    expected = before - 0.7 * torch.linalg.solve(normal, j.T @ r)
    loss = Spring(parameters, lr=0.7, damping=0.03, **PLAIN).step(closure)
    assert float(loss) == pytest.approx(float(r.square().sum()), rel=1e-12)
    torch.testing.assert_close(flat(parameters), expected, rtol=0, atol=1e-10)


def test_momentum_minimises_what_the_paper_says():
    """phi = argmin |J phi - r|^2 + lambda |phi - mu phi'|^2, by a dense least-squares solution.

    The second form, which has no J^T r of its own, sees a sign of any of the three terms.
    """
    parameters, closure = network_problem()
    optimizer = Spring(parameters, lr=0.4, momentum=0.9, damping=0.2, **PLAIN)
    phi = torch.zeros(optimizer.n_parameters, dtype=torch.float64)
    for _ in range(4):
        residuals, before = closure(), flat(parameters)
        j = residuals.jacobian({"y": None}, parameters)
        root = (0.2 * j.square().sum(1).mean()).sqrt()
        rows = torch.cat([j, root * torch.eye(j.shape[1], dtype=j.dtype)])
        target = torch.cat([residuals["y"].detach(), root * 0.9 * phi])
        phi = torch.linalg.lstsq(rows, target[:, None]).solution[:, 0]
        optimizer.step(closure)
        torch.testing.assert_close(flat(parameters), before - 0.4 * phi, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        optimizer.state[parameters[0]]["phi"], phi, rtol=0, atol=1e-10
    )  # not of the length of the step that was taken


def test_converges_on_linear_least_squares():
    """Batches of 4 rows of a consistent problem with 12 parameters: Kaczmarz, with momentum."""
    torch.manual_seed(1)
    x, solution = torch.randn(10, 4, 12).double(), torch.randn(12).double()
    errors = {}
    for momentum in (0.0, 0.8):
        theta = torch.zeros(12, dtype=torch.float64, requires_grad=True)
        optimizer = Spring([theta], lr=0.2, momentum=momentum, damping=0.1, **PLAIN)
        for k in range(100):
            a = x[k % 10]
            optimizer.step(lambda a=a, theta=theta: Residuals({"y": a @ (theta - solution)}))
        errors[momentum] = float((theta.detach() - solution).norm())
    assert errors[0.8] < 1e-6  # 4e-8
    assert errors[0.8] < 1e-4 * errors[0.0]  # what the momentum is for


def test_trust_shortens_the_step():
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = Spring([theta], lr=1.0, damping=0.1, trust=0.25)
    optimizer.step(lambda: Residuals({"y": 2.0 * theta - 1.0}))
    # the residual 5 may change by sqrt(0.25) of itself, not by 1 / 1.1
    assert 2.0 * float(theta.detach()) - 1.0 == pytest.approx(2.5, rel=1e-9)


def test_rows_without_a_label_change_nothing():
    """A stress that is not defined is a row of zeros; the damping is a mean over the others."""
    results = []
    for zeros in (0, 3):
        parameters, closure = network_problem()

        def padded(closure=closure, zeros=zeros):
            y = closure()["y"]
            return Residuals({"y": torch.cat([y, 0.0 * y[:zeros]])})

        Spring(parameters, **PLAIN).step(padded)
        results.append(flat(parameters))
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_nothing_to_learn_is_no_obstacle():
    theta = torch.ones(3, requires_grad=True)
    Spring([theta]).step(lambda: Residuals({"y": 0.0 * theta + 1.0}))
    assert theta.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_what_it_cannot_do(bad):
    theta = torch.ones(2, requires_grad=True)
    optimizer = Spring([theta])
    with pytest.raises(ValueError, match="component energy are not finite"):
        optimizer.step(lambda: Residuals({"energy": theta * bad}))
    with pytest.raises(ValueError, match="derivatives"):  # r is finite, its slope is not
        optimizer.step(lambda: Residuals({"energy": (theta - 1.0).abs().sqrt()}))
    with pytest.raises(ValueError, match=r"needs Residuals with their Jacobian.*not a Tensor"):
        optimizer.step(lambda: theta.square().sum())
    assert theta.tolist() == [1.0, 1.0]
    for name, value in {"lr": 2.0, "momentum": 1.0, "fraction": 0.0, "damping": 0.0}.items():
        with pytest.raises(ValueError, match=name):
            Spring([theta], **{name: value})
    with pytest.raises(ValueError, match="nothing to train"):
        Spring([torch.ones(2)])


# ---------------------------------------------------------------- in the task


def test_trains_faster_than_adam(database, tmp_path):
    losses = {}
    for cls, lr in ((Spring, 0.5), (torch.optim.AdamW, 1e-2)):
        task = kalman_task(cls, epochs=12, optimizer={"lr": lr}, weighting=Fixed())
        (tmp_path / cls.__name__).mkdir()
        records = Records()
        fit(task, data(database, tmp_path), tmp_path / cls.__name__, 12, [records])
        losses[cls] = records.rows[-1]["train_loss"]
    assert losses[Spring] < 0.5 * losses[torch.optim.AdamW]


def test_resumes_to_the_bit(database, tmp_path):
    results = {}
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            last = folder / "checkpoints" / "last.ckpt"
            task = kalman_task(Spring, optimizer={"fraction": 0.5, "min_groups": 2})
            pl.seed_everything(3, verbose=False)
            toy_runs.toy_trainer(folder, stop).fit(
                task, data(database, tmp_path), ckpt_path=str(last) if last.exists() else None
            )
        results[name] = task
    a, b = (task.state_dict() for task in results.values())
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    a, b = (task.optimizers().state_dict()["state"][0] for task in results.values())
    assert torch.equal(a["phi"], b["phi"])
    assert a["phi"].abs().max() > 0
    assert a["step"] == b["step"] == 12


# ---------------------------------------------------------------- the choice


def test_choice_by_the_number_of_parameters():
    small, large = [torch.ones(10, requires_grad=True)], [torch.ones(11, requires_grad=True)]
    settings = {"lr": 0.3, "kalman_up_to": 10, "kalman": {"memory": 0.9}, "spring": {"momentum": 0}}
    kalman, spring = SecondOrder(small, **settings), SecondOrder(large, **settings)
    assert type(kalman) is KalmanFilter
    assert type(spring) is Spring
    assert kalman.defaults["lr"] == spring.defaults["lr"] == 0.3
    assert (kalman.defaults["memory"], spring.defaults["momentum"]) == (0.9, 0)


@pytest.mark.parametrize(
    ("kalman_up_to", "given", "cls", "epochs"),
    [(10_000, -1, KalmanFilter, 2), (10, -1, Spring, 3), (10, 1, Spring, 1)],
)
def test_task_trains_with_the_choice(database, tmp_path, caplog, kalman_up_to, given, cls, epochs):
    """As many epochs as the optimizer takes, or as given; the learning rate goes with them."""
    caplog.set_level(logging.INFO)
    arguments = {"kalman_up_to": kalman_up_to, "kalman_epochs": 2, "spring_epochs": 3}
    records = Records()
    task = kalman_task(SecondOrder, epochs=given, optimizer=arguments)
    fit(task, data(database, tmp_path, n_train=4), tmp_path, given, [records])
    assert type(task.optimizers().optimizer) is cls
    lr = [0.25 * (1 + math.cos(math.pi * k / epochs)) for k in range(epochs)]
    assert [row["lr"] for row in records.rows] == pytest.approx(lr)
    n = sum(p.numel() for p in task.model.parameters())
    name = "SPRING" if cls is Spring else "Kalman filter"
    assert f"{name}: {n} parameters" in caplog.text
    assert f"; {epochs} epochs" in caplog.text


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs"), [(26, 100), (200, 100), (250, 80), (877, 23), (10**5, 5)]
)
def test_large_sets_take_fewer_epochs(steps_per_epoch, epochs):
    assert SecondOrder.choose(5730, steps_per_epoch).epochs == epochs


def test_the_choice_knows_the_steps_of_an_epoch(database, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    arguments = {"kalman_up_to": 10, "spring_epochs": 30, "most_steps": 14}
    task = kalman_task(SecondOrder, epochs=-1, optimizer=arguments)
    fit(task, data(database, tmp_path, n_train=8), tmp_path, -1)
    assert task.current_epoch == 7
    assert "; 7 epochs" in caplog.text


def test_only_the_choice_knows_a_number_of_epochs(database, tmp_path):
    task = kalman_task(Spring, epochs=-1)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs=100"):
        fit(task, data(database, tmp_path), tmp_path, -1)
