"""A killed run goes on as if nothing had happened; each workaround fails without its remedy."""

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from processes import start
from schnetpack.task import AtomisticTask
from schnetpack.train import ExponentialMovingAverage, ReduceLROnPlateau
from schnetpack.train import ModelCheckpoint as StockCheckpoint

from schnetpack_softadapt.training.callbacks import HistoryWriter
from schnetpack_softadapt.training.checkpoints import (
    AveragedWeights,
    EarlyStopping,
    RunCheckpoint,
    Settled,
)
from schnetpack_softadapt.training.optimizers import KalmanFilter
from schnetpack_softadapt.training.rules import (
    Fixed,
    Likelihood,
    LinearRamp,
    SoftAdapt,
    TwoStage,
)
from schnetpack_softadapt.training.task import SoftAdaptTask

#: logged values that a resumed run must repeat; the time is its own
REPEATED = ("train_loss", "val_loss", "weight_energy", "rate_stress", "lr", "val_forces_rmse")


def same_history(a, b, tolerance):
    assert [row["epoch"] for row in a] == [row["epoch"] for row in b]
    for x, y in zip(a, b, strict=True):
        for key in REPEATED:
            assert x[key] == pytest.approx(y[key], rel=tolerance), (x["epoch"], key)


@pytest.fixture(scope="module")
def uninterrupted(database, tmp_path_factory):
    """Six epochs in one go; SchNetPack's data module takes its order from global random numbers."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_runs.run(folder, database, 6, data={"stock": True})
    return folder


def test_resumed_run_repeats_the_uninterrupted_one(database, tmp_path, uninterrupted):
    """Order of batches, raw and averaged weights, optimizer, plateau scheduler, SoftAdapt."""
    # `spktrain` draws a new seed at every start if it is given none
    for epochs, seed in ((2, 1), (3, 17), (6, 18)):
        toy_runs.run(tmp_path, database, epochs, seed=seed, data={"stock": True})
    whole = toy_runs.history(uninterrupted)
    assert len({row["lr"] for row in whole}) > 1, "the scheduler must act in this test"
    # the same operations in the same order on one machine: equal to the last bit
    same_history(toy_runs.history(tmp_path), whole, tolerance=0.0)
    last = [
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)
        for f in (tmp_path, uninterrupted)
    ]
    for key, value in last[0]["state_dict"].items():
        assert torch.equal(value, last[1]["state_dict"][key]), key
    assert last[0]["softadapt_state"]["rule"] == last[1]["softadapt_state"]["rule"]


class NoSeeding(SoftAdaptTask):
    def _seed_epoch(self, epoch):
        pass


class LatePlateau(SoftAdaptTask):
    """Steps plateau schedulers when Lightning does, after the checkpoint."""

    def step_schedulers(self, values):
        pass

    def lr_scheduler_step(self, scheduler, metric):
        AtomisticTask.lr_scheduler_step(self, scheduler, metric)


@pytest.mark.parametrize("broken", [NoSeeding, LatePlateau])
def test_without_the_remedy_it_does_not(database, tmp_path, uninterrupted, broken, monkeypatch):
    monkeypatch.setattr(toy_runs, "SoftAdaptTask", broken)
    whole = tmp_path / "whole"
    whole.mkdir()
    toy_runs.run(whole, database, 4, data={"stock": True})
    for epochs in (2, 4):
        toy_runs.run(tmp_path, database, epochs, data={"stock": True})
    with pytest.raises(AssertionError):
        same_history(toy_runs.history(tmp_path), toy_runs.history(whole), tolerance=1e-9)


def test_stock_averaging_loses_the_raw_weights(database, tmp_path):
    """Upstream; if this ever passes with the stock callback, ours may go."""

    def losses(callback, folder):
        rows = []
        for name, stops in (("whole", (4,)), ("parts", (2, 4))):
            path = folder / name
            path.mkdir(parents=True)
            for epochs in stops:
                toy_runs.run(path, database, epochs, callbacks=callbacks(path, callback()))
            rows.append(toy_runs.history(path))
        return rows

    def callbacks(path, average):
        return [
            RunCheckpoint(str(path / "checkpoints"), model_path=None),
            HistoryWriter(str(path / "history.csv")),
            average,
        ]

    ours = losses(lambda: AveragedWeights(0.9), tmp_path / "ours")
    same_history(*ours, tolerance=0.0)
    stock = losses(lambda: ExponentialMovingAverage(0.9), tmp_path / "stock")
    assert stock[0][3]["train_loss"] != pytest.approx(stock[1][3]["train_loss"], rel=1e-6)


def test_checkpoint_holds_no_foreign_class(uninterrupted):
    """torch >= 2.6 refuses pickled classes: every resume and trainer.test fails upstream."""
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(uninterrupted / "checkpoints" / name, weights_only=True)
        assert AtomisticTask.CHECKPOINT_HYPER_PARAMS_KEY not in checkpoint


def test_without_packed_hyperparameters_loading_fails(database, tmp_path, monkeypatch):
    monkeypatch.delattr("schnetpack_softadapt.training.resume.ResumableTask.on_save_checkpoint")
    toy_runs.run(tmp_path, database, 1)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)


def test_task_is_rebuilt_from_a_checkpoint_alone(uninterrupted):
    path = uninterrupted / "checkpoints" / "last.ckpt"
    task = SoftAdaptTask.load_from_checkpoint(path)
    state = torch.load(path, weights_only=True)["softadapt_state"]
    assert task.rule.weights == state["rule"]["weights"]
    assert (task.epochs_done, task.wall_s) == (6, state["wall_s"])
    assert bool(task.standardization.fitted)
    # averaged weights are what was validated and saved for inference
    model = torch.load(uninterrupted / "best_model", weights_only=False)
    best = SoftAdaptTask.load_from_checkpoint(uninterrupted / "checkpoints" / "best.ckpt")
    for a, b in zip(model.parameters(), best.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_last_checkpoint_is_that_of_the_last_epoch(database, tmp_path):
    """Also when no epoch is the best; upstream writes last.ckpt only beside a best one."""
    task = toy_runs.toy_task(lr=0.0)  # val_loss never falls below that of epoch 0
    toy_runs.run(tmp_path, database, 3, task=task)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    stock = tmp_path / "stock"
    callback = StockCheckpoint(
        model_path=str(tmp_path / "stock_model"),
        dirpath=str(stock),
        monitor="val_loss",
        save_last=True,
    )
    pl.seed_everything(1, verbose=False)
    trainer = toy_runs.toy_trainer(tmp_path, 3, callbacks=[callback])
    trainer.fit(toy_runs.toy_task(lr=0.0), datamodule=toy_runs.toy_data(database))
    # the day this fails, Lightning has mended it
    assert torch.load(stock / "last.ckpt", weights_only=True)["epoch"] == 0


def test_best_epoch_is_remembered(database, tmp_path):
    trainer, *_ = toy_runs.run(tmp_path, database, 3)
    score = trainer.checkpoint_callback.best_model_score
    lowest = min(row["val_loss"] for row in toy_runs.history(tmp_path))
    assert score == pytest.approx(lowest, rel=1e-6)  # Lightning logs in float32
    # nothing is trained any more: the command is repeated after it has finished
    trainer, task, datamodule = toy_runs.run(tmp_path, database, 3)
    assert trainer.checkpoint_callback.best_model_score == score
    trainer.test(task, datamodule=datamodule, ckpt_path="best", verbose=False)
    assert (tmp_path / "metrics.json").exists()


def test_a_moved_run_goes_on(database, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    toy_runs.run(first, database, 2)
    first.rename(second)
    trainer, *_ = toy_runs.run(second, database, 3)
    assert Path(trainer.checkpoint_callback.best_model_path).parent == second / "checkpoints"
    assert [row["epoch"] for row in toy_runs.history(second)] == [0, 1, 2]


def test_history_drops_what_the_checkpoint_does_not_know(database, tmp_path):
    toy_runs.run(tmp_path, database, 3)
    text = (tmp_path / "history.csv").read_text()
    rows = text.splitlines()
    # killed after the row of epoch 3 was written and while that of epoch 4 was
    (tmp_path / "history.csv").write_text(text + "3" + rows[-1][1:] + "\n4,0.12")
    toy_runs.run(tmp_path, database, 5)
    assert [row["epoch"] for row in toy_runs.history(tmp_path)] == [0, 1, 2, 3, 4]


def test_changed_learning_rate_is_honoured(database, tmp_path, caplog):
    """Upstream the optimizer state of the checkpoint wins without a word."""
    toy_runs.run(tmp_path, database, 1, task=toy_runs.toy_task(lr=1e-2))
    toy_runs.run(tmp_path, database, 2, task=toy_runs.toy_task(lr=1e-3))
    assert [row["lr"] for row in toy_runs.history(tmp_path)] == pytest.approx([1e-2, 1e-3])
    assert "task.optimizer_args.lr from 0.01 to 0.001" in caplog.text


def test_another_rule_starts_anew(database, tmp_path, caplog):
    toy_runs.run(tmp_path, database, 2)
    toy_runs.run(tmp_path, database, 3, task=toy_runs.toy_task(weighting=SoftAdapt(n=2)))
    _, task, _ = toy_runs.run(tmp_path, database, 4, task=toy_runs.toy_task(weighting=Fixed()))
    assert set(task.rule.weights.values()) == {1 / 3}
    assert "task.weighting.n from 1 to 2" in caplog.text
    assert "task.weighting.rule from" in caplog.text
    toy_runs.run(tmp_path, database, 5, task=toy_runs.toy_task(weighting=SoftAdapt()))
    assert "initial weights" in caplog.text


def resume(folder, database, tasks, seed=1, batch_size=2):
    """Train with each of the tasks up to its number of epochs; returns history and the last."""
    folder.mkdir(exist_ok=True)
    for epochs, task in tasks:
        callbacks = [
            RunCheckpoint(str(folder / "checkpoints"), model_path=None),
            HistoryWriter(str(folder / "history.csv")),
        ]
        data = {"n_train": 4, "n_val": 1, "batch_size": batch_size}
        toy_runs.run(folder, database, epochs, seed, data, task, callbacks=callbacks)
    return toy_runs.history(folder), task


def scheduled(cls, optimizer_cls=torch.optim.AdamW, monitor=None, warmup=0, optimizer=None, **args):
    return SoftAdaptTask(
        toy_runs.toy_model(),
        toy_runs.components(),
        weighting=LinearRamp(
            {"energy": 0.1, "forces": 1, "stress": 0.1}, {"energy": 1, "forces": 1, "stress": 1}
        ),
        optimizer_cls=optimizer_cls,
        optimizer_args={"lr": 1e-2, **(optimizer or {})},
        scheduler_cls=cls,
        scheduler_args=args,
        scheduler_monitor=monitor,
        warmup_steps=warmup,
    )


def test_a_finished_run_of_10_epochs_goes_on_to_20(database, tmp_path):
    """The learning rate of a run of 20 from epoch 10 on, not zero and back up."""
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    lr = {}
    for stops in ((10, 20), (20,)):
        tasks = [(epochs, scheduled(cosine, T_max=epochs)) for epochs in stops]
        rows, _ = resume(tmp_path / str(stops), database, tasks)
        assert [row["epoch"] for row in rows] == list(range(20))
        lr[stops] = [row["lr"] for row in rows]
    first = [0.005 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert lr[10, 20][:10] == pytest.approx(first, rel=1e-9)
    assert lr[10, 20][10:] == lr[20,][10:]  # the same operations: to the bit
    assert lr[20,][10] == pytest.approx(0.005, rel=1e-9)


@pytest.mark.parametrize(
    ("cls", "name", "warmup"),
    [
        (torch.optim.lr_scheduler.CosineAnnealingLR, "T_max", 3),  # an epoch and a half
        (torch.optim.lr_scheduler.LinearLR, "total_iters", 0),
        (torch.optim.lr_scheduler.StepLR, "step_size", 0),
        # not a closed form in torch, and starts from another value than the optimizer's
        (torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, "T_0", 0),
    ],
)
def test_extended_runs_follow_the_longer_schedule(database, tmp_path, cls, name, warmup):
    histories = []
    for stops in ((3, 6), (6,)):
        tasks = [(epochs, scheduled(cls, warmup=warmup, **{name: epochs})) for epochs in stops]
        histories.append(resume(tmp_path / str(stops), database, tasks)[0])
    for key in ("lr", "weight_energy"):  # the rule follows the learning rate
        extended, whole = ([row[key] for row in history[3:]] for history in histories)
        assert extended == pytest.approx(whole, rel=1e-12), key


def test_arguments_of_optimizer_and_plateau_scheduler_are_applied(database, tmp_path, caplog):
    plateau = {"factor": 0.5, "patience": 0, "threshold": 10.0}  # never good enough
    first = scheduled(ReduceLROnPlateau, monitor="val_loss", **plateau)
    changed = scheduled(
        ReduceLROnPlateau,
        monitor="val_loss",
        optimizer={"lr": 2e-2, "weight_decay": 0.3, "betas": (0.5, 0.6)},
        **{**plateau, "factor": 0.1},
    )
    rows, task = resume(tmp_path, database, [(3, first), (4, changed), (6, changed)])
    group = task.optimizers().param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.3, (0.5, 0.6))
    # a half each epoch; 1.25e-3 is doubled before epoch 3; then a tenth each epoch
    expected = [1e-2, 5e-3, 2.5e-3, 2.5e-3, 2.5e-4, 2.5e-5]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-9)
    assert "task.optimizer_args.weight_decay from None to 0.3" in caplog.text
    assert "task.scheduler_args.factor from 0.5 to 0.1" in caplog.text


def test_another_optimizer_and_scheduler_start_without_memory(database, tmp_path, caplog):
    schedules = torch.optim.lr_scheduler
    first = scheduled(schedules.ExponentialLR, gamma=0.5)
    second = scheduled(schedules.CosineAnnealingLR, KalmanFilter, optimizer={"lr": 0.5}, T_max=8)
    rows, task = resume(tmp_path, database, [(2, first), (4, second)])
    expected = [0.25 * (1 + math.cos(math.pi * k / 8)) for k in (2, 3)]
    assert [row["lr"] for row in rows[2:]] == pytest.approx(expected, rel=1e-9)
    assert task.optimizers().state_dict()["state"][0]["step"] == 4
    assert "task.optimizer_cls from torch.optim.adamw.AdamW to" in caplog.text


def test_changed_weights_count_from_the_first_epoch_on(database, tmp_path, caplog):
    def task(rule):
        return toy_runs.toy_task(weighting=rule)

    def weights(energy):
        return {"energy": energy, "forces": 1.0, "stress": 1.0}

    tasks = [
        (2, task(Fixed(weights(0.25)))),
        (3, task(Fixed(weights(0.5)))),
        (4, task(TwoStage(weights(3.0), weights(7.0), switch=1))),
        (5, task(TwoStage(weights(3.0), weights(7.0), switch=5))),
    ]
    rows, _ = resume(tmp_path, database, tasks)
    assert [row["weight_energy"] for row in rows] == [0.25, 0.25, 0.5, 7.0, 3.0]
    assert "task.weighting.initial.energy from 0.25 to 0.5" in caplog.text
    assert "any more" not in caplog.text
    tasks = [(e, task(SoftAdapt(initial=weights(w)))) for e, w in ((1, 0.1), (2, 0.9))]
    rows, _ = resume(tmp_path / "soft", database, tasks)
    assert [row["weight_energy"] for row in rows] == [0.1, 0.1]
    assert "task.weighting.initial is for the first epochs" in caplog.text


def test_only_what_was_changed_is_named(database, tmp_path, caplog):
    def task(**kwargs):
        return toy_runs.plateau_task(outputs=toy_runs.components(**kwargs))

    for epochs in (1, 2):
        resume(tmp_path, database, [(epochs, task())])
    assert "changed since" not in caplog.text
    assert "seed" not in caplog.text
    resume(tmp_path, database, [(3, task(loss="huber"))], seed=17)
    changed = next(r.getMessage() for r in caplog.records if "changed since" in r.getMessage())
    names = [f"task.outputs.{c}.loss from mse to huber" for c in ("energy", "forces", "stress")]
    assert changed == "changed since the checkpoint: " + ", ".join(names)
    assert "val_loss has another meaning" in caplog.text
    assert "seed 17 is not used" in caplog.text


def test_data_that_are_trained_otherwise_are_named(database, tmp_path, caplog):
    for epochs, size in ((1, 2), (2, 2), (3, 4)):
        caplog.clear()
        resume(tmp_path, database, [(epochs, toy_runs.plateau_task())], batch_size=size)
        assert ("changed since" in caplog.text) == (size == 4)
    assert "changed since the checkpoint: data.batch_size from 2 to 4\n" in caplog.text


def test_stopped_early_stays_stopped(database, tmp_path):
    patience = 2

    def callbacks():
        return [
            RunCheckpoint(str(tmp_path / "checkpoints"), model_path=None),
            EarlyStopping("val_loss", patience=patience, check_on_train_epoch_end=False),
            HistoryWriter(str(tmp_path / "history.csv")),
        ]

    for _ in range(2):
        toy_runs.run(tmp_path, database, 20, task=toy_runs.toy_task(lr=0.0), callbacks=callbacks())
        assert [row["epoch"] for row in toy_runs.history(tmp_path)] == [0, 1, 2]
    patience = 4  # and with more of it the run goes on
    toy_runs.run(tmp_path, database, 20, task=toy_runs.toy_task(lr=0.0), callbacks=callbacks())
    assert [row["epoch"] for row in toy_runs.history(tmp_path)] == [0, 1, 2, 3, 4]


def test_settled_stays_settled(database, tmp_path):
    for limit, min_epochs, last in ((1e-5, 3, 2), (1e-5, 3, 2), (1e-5, 5, 4)):
        callbacks = [
            RunCheckpoint(str(tmp_path / "checkpoints"), model_path=None),
            Settled(limit, limit),
            HistoryWriter(str(tmp_path / "history.csv")),
        ]
        task = toy_runs.toy_task(lr=0.0)
        toy_runs.run(tmp_path, database, 20, task=task, callbacks=callbacks, min_epochs=min_epochs)
        assert [row["epoch"] for row in toy_runs.history(tmp_path)][-1] == last


@pytest.mark.parametrize(
    ("train", "val", "stops"),
    [
        ([1.0, 1.00009, 1.00018], [2.0, 1.99999, 1.99998], [False, True, True]),  # up, too
        ([1.0, 0.9998, 0.9997], [2.0, 2.0, 2.0], [False, False, False]),
        ([1.0, 1.0, 1.0], [2.0, 1.9999, 1.9998], [False, False, False]),
        ([1.0, 1.0, 1.0], [2.0, None, 2.0], [False, False, True]),
    ],
)
def test_both_losses_must_have_settled(train, val, stops):
    components = [SimpleNamespace(component=name) for name in ("energy", "forces")]
    callback = Settled(train=1e-4, val=1e-5)
    for epoch, (loss, val_loss, stop) in enumerate(zip(train, val, stops, strict=True)):
        trainer = SimpleNamespace(should_stop=False, min_epochs=None)
        task = SimpleNamespace(active=components, current_epoch=epoch)
        record = {"train_energy_loss": loss - 0.25, "train_forces_loss": 0.25, "train_loss": 5.0}
        if val_loss is not None:
            record["val_loss"] = val_loss
        callback.on_epoch_record(trainer, task, record)
        assert trainer.should_stop == stop


def test_another_measure_of_the_best_epoch_starts_anew(database, tmp_path, caplog):
    for epochs, monitor in ((2, "val_loss"), (3, "wall_s")):
        checkpoints = RunCheckpoint(
            str(tmp_path / "checkpoints"), monitor, mode="max", model_path=None
        )
        toy_runs.run(tmp_path, database, epochs, callbacks=[checkpoints])
    # val_loss was larger than these seconds will be
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2
    assert "judged by val_loss (max), now by wall_s (max)" in caplog.text


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt", "best_model", "history.csv"])
def test_half_written_files_never_have_the_final_name(database, tmp_path, monkeypatch, name):
    """Stopped when all of a file is written but its name: the old one must be untouched."""

    def train(epochs):  # without a monitor each epoch is the best
        checkpoints = RunCheckpoint(
            str(tmp_path / "checkpoints"), monitor=None, model_path=str(tmp_path / "best_model")
        )
        callbacks = [checkpoints, HistoryWriter(str(tmp_path / "history.csv"))]
        toy_runs.run(tmp_path, database, epochs, callbacks=callbacks)

    train(1)
    path = next(tmp_path.rglob(name))
    before = path.read_bytes()
    replace = os.replace

    def killed(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - Lightning turns it into SystemExit
            train(2)
    assert path.read_bytes() == before
    train(2)
    assert [row["epoch"] for row in toy_runs.history(tmp_path)] == [0, 1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_kill_9_and_the_same_command_again(database, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    data = {"n_train": 11, "n_val": 5}
    process = start(toy_runs.run, killed, database, 1000, 1, data, folder=killed)
    last = killed / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() or len(toy_runs.history(killed)) < 4:
        assert process.is_alive(), "the run has ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    epochs = torch.load(last, weights_only=True)["epoch"] + 1 + 3
    for folder in (killed, whole):
        toy_runs.run(folder, database, epochs, data=data)
    same_history(toy_runs.history(killed), toy_runs.history(whole), tolerance=1e-6)


def test_another_rule_on_a_resume_has_its_prior(database, tmp_path):
    toy_runs.run(tmp_path, database, 2, task=toy_runs.toy_task(weighting=SoftAdapt()))
    task = toy_runs.toy_task(weighting=Likelihood(prior="labels"))
    toy_runs.run(tmp_path, database, 3, task=task)
    factors = task.rule.factors  # 3 N force components for each energy, cells of 4 and 8 atoms
    assert 12 <= factors["forces"] / factors["energy"] <= 24
    weights = toy_runs.history(tmp_path)[2]
    assert weights["weight_forces"] / weights["weight_energy"] == pytest.approx(
        factors["forces"] / factors["energy"], rel=1e-6
    )


def test_progress_is_that_of_epochs_or_time(database, tmp_path):
    task = toy_runs.toy_task(weighting=Fixed())
    toy_runs.run(tmp_path, database, 2, task=task, max_time="00:01:00:00")
    assert 0.0 < task.progress() <= 1.0
    timer = next(c for c in task.trainer.callbacks if isinstance(c, pl.callbacks.Timer))
    task.trainer.fit_loop.max_epochs = 1000
    timer._duration = 2 * timer.time_elapsed()
    assert task.progress() == pytest.approx(0.5, abs=0.05)
