"""Least squares: solvers against all rows at once, and linear models in runs of the task."""

import numpy as np
import pytest
import torch
import toy_runs

from schnetpack_softadapt.api import load
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.model.shift import ElementShift
from schnetpack_softadapt.training.checkpoints import RunCheckpoint
from schnetpack_softadapt.training.optimizers import LeastSquares
from schnetpack_softadapt.training.optimizers.residuals import Residuals
from schnetpack_softadapt.training.refit import refit
from schnetpack_softadapt.training.rules import Fixed, Likelihood

WEIGHTS = {"energy": 0.7, "forces": 0.2}


def problem(n_batches=30, n_parameters=6, seed=0):
    """Rows (batch, row, P) and targets of two components of 2 and 5 rows a batch."""
    rng = np.random.default_rng(seed)
    shapes = {"energy": (n_batches, 2), "forces": (n_batches, 5)}
    return {
        name: (torch.tensor(rng.normal(size=(*s, n_parameters))), torch.tensor(rng.normal(size=s)))
        for name, s in shapes.items()
    }


def fitted(rows, weights=WEIGHTS, start=(0.0,) * 6, **settings):
    """Solution (P,), losses at it, and the optimizer; the parameters in two tensors."""
    start = torch.tensor(start, dtype=torch.float64)
    theta = [start[:2, None].clone().requires_grad_(), start[2:].clone().requires_grad_()]

    def now():
        return torch.cat([p.reshape(-1) for p in theta])

    optimizer = LeastSquares(theta, **settings)
    for k in range(len(next(iter(rows.values()))[0])):
        optimizer.step(
            lambda k=k: Residuals({n: a[k] @ now() - b[k] for n, (a, b) in rows.items()})
        )
    losses = optimizer.solve(weights).losses
    return now().detach().numpy(), losses, optimizer


def weighted(rows, weights=WEIGHTS):
    """All rows A (M, P) and b (M,), such that |A theta - b|^2 is the loss."""
    found = [
        ((w / b.numel()) ** 0.5 * a.reshape(-1, a.shape[2]), (w / b.numel()) ** 0.5 * b.reshape(-1))
        for (a, b), w in ((rows[name], w) for name, w in weights.items())
    ]
    return (torch.cat(x).numpy() for x in zip(*found, strict=True))


@pytest.mark.parametrize("settings", [{"l2": 0.0}, {"solver": "svd"}], ids=["ridge", "svd"])
def test_is_the_solution_of_all_rows(settings):
    rows = problem()
    found, losses, optimizer = fitted(rows, **settings)
    a, b = weighted(rows)
    np.testing.assert_allclose(found, np.linalg.lstsq(a, b)[0], rtol=0, atol=1e-12)
    for name, (x, y) in rows.items():
        expected = np.square(x.numpy() @ found - y.numpy()).mean()
        assert losses[name] == pytest.approx(expected, rel=1e-12)
    other = {"energy": 0.0, "forces": 3.0}  # no further pass
    optimizer.solve(other)
    a, b = weighted(rows, other)
    again = torch.cat([p.detach().reshape(-1) for p in optimizer.param_groups[0]["params"]])
    np.testing.assert_allclose(again.numpy(), np.linalg.lstsq(a, b)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("l2", [1e-12, 0.1, 1e6])
def test_penalties_are_on_the_way_from_the_start(l2):
    """Of normal equations with columns of length 1; without a penalty the start does not count."""
    rows, start = problem(), np.array([3.0, -2.0, 1.0, 0.5, -4.0, 2.0])
    found, losses, optimizer = fitted(rows, start=start, l2=l2)
    a, b = weighted(rows)
    length = np.linalg.norm(a, axis=0)
    unit = a / length
    way = np.linalg.solve(unit.T @ unit + l2 * np.eye(6), unit.T @ (b - a @ start)) / length
    np.testing.assert_allclose(found, start + way, rtol=0, atol=1e-10)
    assert (np.abs(way).max() < 1e-4) == (l2 == 1e6)
    # once more, and from a checkpoint
    shapes = (2, 1), (4,)
    again = LeastSquares([torch.zeros(x).double().requires_grad_() for x in shapes])
    again.load_state_dict(optimizer.state_dict())
    assert again.solve(WEIGHTS).losses == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("l2", [1e-12, 0.1])
def test_noise_is_that_of_labels_left_out(l2):
    """By the dense matrix of the fit; six parameters and eight energies."""
    rows = problem(n_batches=4)
    _, losses, optimizer = fitted(rows, l2=l2)
    a, _ = weighted(rows)
    a = a / np.linalg.norm(a, axis=0)
    hat = np.einsum("mi,ij,mj->m", a, np.linalg.inv(a.T @ a + l2 * np.eye(6)), a)
    expected = {
        "energy": losses["energy"] / (1 - hat[:8].mean()) ** 2,
        "forces": losses["forces"] / (1 - hat[8:].mean()) ** 2,
    }
    assert optimizer.solve(WEIGHTS).noise == pytest.approx(expected, rel=1e-6)


def test_few_energies_do_not_take_all_of_the_weight():
    """Four energies and six parameters, which can meet them exactly: noise of zero."""
    rows = problem(n_batches=40)
    energies, errors = rows["energy"]
    rows["energy"] = torch.zeros_like(energies), torch.zeros_like(errors)
    rows["energy"][0][:2], rows["energy"][1][:2] = energies[:2], errors[:2]
    _, _, optimizer = fitted(rows)
    weights = WEIGHTS
    for _ in range(100):
        solution = optimizer.solve(weights)
        weights = {name: 1.0 / noise for name, noise in solution.noise.items()}
    # the mean of squared errors of energies that are left out one by one
    a, b = weighted(rows, weights)
    hat = np.einsum("mi,ij,mj->m", a, np.linalg.inv(a.T @ a), a)
    left_out = (b - a @ np.linalg.lstsq(a, b, rcond=None)[0]) / (1 - hat)
    found = solution.noise["energy"] * weights["energy"]
    assert found == pytest.approx(np.square(left_out[:80]).sum(), rel=0.3)


def test_nothing_is_known_of_noise_with_fewer_labels_than_parameters():
    _, _, optimizer = fitted({"energy": problem(n_batches=2)["energy"]}, {"energy": 1.0})
    assert optimizer.solve({"energy": 1.0}).noise == {"energy": 1.0}


def test_forces_that_vanish_by_symmetry_say_nothing():
    rows = problem()
    others = fitted({"energy": rows["energy"]}, {"energy": 1.0})[2].solve({"energy": 1.0})
    rows["forces"] = tuple(torch.zeros_like(x) for x in rows["forces"])
    solution = fitted(rows)[2].solve(WEIGHTS)
    assert solution.noise["forces"] == 1.0
    assert solution.losses["energy"] == pytest.approx(others.losses["energy"], rel=1e-6)


def test_the_condition_is_not_squared():
    """Columns that differ by 1e-9 of their length: normal equations have nothing left of it."""
    rows = problem()
    truth = np.array([1.0, -2.0, 3.0, 0.5, -1.0, 2.0])
    for name, (a, _) in rows.items():
        a[..., 1] = a[..., 0] + 1e-9 * a[..., 1]
        rows[name] = a, a @ torch.tensor(truth)
    found, _, _ = fitted(rows, l2=0.0)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5)
    found, _, _ = fitted(rows, solver="svd", cut=1e-6)  # the shortest of those that do as well
    expected = np.array([-0.5, -0.5, 3.0, 0.5, -1.0, 2.0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_penalties_are_those_of_all_rows():
    rows = problem()
    a, b = weighted(rows)
    length = np.linalg.norm(a, axis=0)
    a = a / length
    normal = a.T @ a + 0.03 * np.eye(6)
    found, _, _ = fitted(rows, l2=0.03)
    np.testing.assert_allclose(found * length, np.linalg.solve(normal, a.T @ b), atol=1e-12)
    for settings in ({"solver": "lasso", "l1": 0.3}, {"solver": "elastic_net", "l1": 0.3}):
        l2 = 0.4 if settings["solver"] == "elastic_net" else 0.0
        z = fitted(rows, l2=l2, **settings)[0] * length
        # conditions of the minimum: R. Tibshirani, J. R. Stat. Soc. B 58, 267 (1996)
        slope, bound = a.T @ (b - a @ z) - l2 * z, 0.3 * np.abs(a.T @ b).max()
        assert 0 < np.count_nonzero(z) < 6
        np.testing.assert_allclose(slope[z != 0], bound * np.sign(z[z != 0]), atol=1e-6 * bound)
        assert np.all(np.abs(slope[z == 0]) <= bound)
    assert not fitted(rows, solver="lasso", l1=1.0)[0].any()


def test_ard_keeps_what_the_labels_depend_on():
    rows = problem(n_batches=60)
    truth = np.array([2.0, 0, 0, -1.0, 0, 0])
    rng = np.random.default_rng(3)
    for name, (a, b) in rows.items():
        noise = 0.05 * torch.tensor(rng.normal(size=b.shape))
        rows[name] = a, a @ torch.tensor(truth) + noise
    weights = {"energy": 2.0, "forces": 5.0}  # all rows alike
    found, losses, _ = fitted(rows, weights, solver="ard")
    assert np.abs(found - truth).max() < 0.01
    plain, _, _ = fitted(rows, weights)
    # those that are left out are zero, or nearly so
    assert np.abs(found[truth == 0]).sum() < 0.3 * np.abs(plain[truth == 0]).sum()
    assert losses["forces"] == pytest.approx(0.05**2, rel=0.2)


def test_refuses_what_it_cannot_do():
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="svd, ridge, lasso"):
        LeastSquares([theta], solver="qr")
    optimizer = LeastSquares([theta])
    with pytest.raises(ValueError, match="no residual counts"):
        optimizer.solve({"energy": 1.0})
    with pytest.raises(ValueError, match="energy are not finite"):
        optimizer.step(lambda: Residuals({"energy": theta * float("nan")}))


# ---------------------------------------------------------------- in the task


def linear_run(folder, database, weighting=None, quadratic=False, data=None, **kwargs):
    task = toy_runs.toy_task(
        toy_runs.acsf_model(n_hidden=[], dtype="float64", quadratic=quadratic),
        optimizer_cls=LeastSquares,
        lr=1.0,
        weighting=weighting or Likelihood(),
        **kwargs,
    )
    callbacks = [RunCheckpoint(str(folder / "checkpoints"), model_path=str(folder / "best_model"))]
    store = {"store": True, "store_dtype": "float64", "store_dir": str(folder.parent / "store")}
    data = store | (data or {})
    trainer, task, datamodule = toy_runs.run(
        folder, database, 1, 1, data, task, callbacks=callbacks
    )
    return trainer, task, datamodule


def coefficients(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
def test_finds_the_model_that_made_the_labels(tmp_path, quadratic):
    """Labels are those of a linear model: errors of float32 labels are all that is left."""
    structures = toy_runs.emt_structures(30, sizes=((1, 1, 1), (2, 1, 1)))
    database = toy_runs.write_database(tmp_path / "emt.db", structures)
    equal = Fixed(dict.fromkeys(("energy", "forces", "stress"), 1.0))
    linear_run(tmp_path / "first", database, equal, quadratic)
    source = load(tmp_path / "first")
    with torch.no_grad():
        for p in source.parameters():
            if p.requires_grad:
                p[:] = 0.3 * torch.randn(p.shape, generator=torch.manual_seed(1)).to(p)
    for atoms in structures:
        atoms.calc = SoftAdaptCalculator(source)
    database = toy_runs.write_database(tmp_path / "own.db", structures)
    _, task, _ = linear_run(tmp_path / "second", database, equal, quadratic)
    for name in ("energy", "forces", "stress"):
        assert task.record[f"train_{name}_loss"] < 1e-10


def test_weights_stand_still_at_the_likelihood_of_the_solution(database, tmp_path):
    """alpha_k in proportion to N_k^r / l_k of the noise that it gives, r = 1/2."""
    _, task, datamodule = linear_run(tmp_path / "run", database)
    record = task.record
    losses = {k: record[f"train_{k}_loss"] for k in ("energy", "forces", "stress")}
    used = {k: record[f"weight_{k}"] for k in losses}
    targets = training_targets(datamodule).named("energy", "forces", "stress")
    labels = {c.component: c.labels(targets) for c in task.active}
    noise = task.trainer.optimizers[0].solve(used).noise
    expected = {k: labels[k] ** 0.5 / noise[k] for k in losses}
    for name, weight in used.items():
        share = expected[name] / sum(expected.values())
        assert weight / sum(used.values()) == pytest.approx(share, rel=1e-3)
    # and the losses are those of the model on the training set, not of the start of the epoch
    task.trainer.validate(task, dataloaders=datamodule.train_dataloader(), verbose=False)
    for name, loss in losses.items():
        assert float(task.trainer.callback_metrics[f"val_{name}_loss"]) == pytest.approx(
            loss,
            rel=1e-3,  # labels and positions are float32
        )


@pytest.mark.parametrize("n_train", [1, 11])
def test_fewer_labels_than_coefficients_are_named(database, tmp_path, caplog, n_train):
    data = {"n_train": n_train, "n_val": 1}
    _, task, _ = linear_run(tmp_path / "run", database, quadratic=True, data=data)
    optimizer = task.trainer.optimizers[0]
    n_labels = sum(f.n_rows for f in optimizer.factors.values())
    text = f"{optimizer.n_parameters} coefficients are fitted to {n_labels} labels"
    assert (text in caplog.text) == (n_train == 1)


def test_refit_is_a_run_with_these_weights(database, tmp_path):
    linear_run(tmp_path / "likelihood", database)
    weights = {"energy": 0.2, "forces": 0.5, "stress": 0.3}
    _, second, _ = linear_run(tmp_path / "fixed", database, Fixed(weights))
    model = load(tmp_path / "likelihood")
    assert not torch.allclose(coefficients(model), coefficients(second.model), rtol=1e-3)
    checkpoint = tmp_path / "likelihood" / "checkpoints" / "last.ckpt"
    losses = refit(model, checkpoint, weights)
    torch.testing.assert_close(coefficients(model), coefficients(second.model), rtol=1e-9, atol=0)
    assert losses["stress"] == pytest.approx(second.record["train_stress_loss"], rel=1e-9)
    with pytest.raises(ValueError, match="components of the run are energy, forces, stress"):
        refit(model, checkpoint, {"virial": 1.0})
    shift = next(m for m in model.modules() if isinstance(m, ElementShift))
    assert shift.shift[29] != 0  # energies of the elements were taken out before


def test_structures_that_weigh_nothing_are_as_if_left_out(tmp_path):
    structures = toy_runs.emt_structures(30)
    for atoms in structures:  # of one element, and one component: no scales that could differ
        atoms.numbers[:] = 29
    database = toy_runs.write_database(tmp_path / "emt.db", structures)
    out = range(0, 30, 2)  # the group "small"
    alone, found = Fixed({"energy": 0.0, "forces": 1.0, "stress": 0.0}), []
    for settings in ({"weights": {"small": 0.0}}, {"exclude": list(out)}):
        folder = tmp_path / str(len(found))
        linear_run(folder, database, alone, data=settings)
        calculator = SoftAdaptCalculator(load(folder))
        found.append(np.concatenate([calculator.get_forces(atoms) for atoms in structures]))
    assert np.abs(found[1]).max() > 0.1
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_networks_are_refused(database, tmp_path):
    task = toy_runs.toy_task(toy_runs.acsf_model(), optimizer_cls=LeastSquares, lr=1.0)
    with pytest.raises(ValueError, match="n_hidden=\\[\\]"):
        toy_runs.run(tmp_path, database, 1, task=task)
