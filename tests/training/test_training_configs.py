"""Configs of task, weighting, callbacks and trainer: complete, and what they say is what runs."""

import inspect
import math

import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from schnetpack.utils import str2class

from schnetpack_softadapt.training import rules
from schnetpack_softadapt.training.checkpoints import RunCheckpoint
from schnetpack_softadapt.training.task import SoftAdaptTask

RULES = {
    "fixed": rules.Fixed,
    "likelihood": rules.Likelihood,
    "softadapt": rules.SoftAdapt,
    "linear_ramp": rules.LinearRamp,
    "two_stage": rules.TwoStage,
    "relobralo": rules.ReLoBRaLo,
    "uncertainty": rules.Uncertainty,
}


def config_of(*overrides):
    import schnetpack.cli  # noqa: F401 - registers its resolvers

    ours = [
        "task=softadapt_task",
        "trainer=acsf_trainer",
        "callbacks=[acsf_callbacks]",
        "logger=acsf_quiet",
        "++globals.lr=1e-3",
    ]
    with initialize_config_module("schnetpack.configs", version_base="1.2"):
        return compose("train", overrides=[*ours, *overrides])


def task_of(config):
    """As `spktrain` makes it."""
    scheduler = config.task.scheduler_cls
    return instantiate(
        config.task,
        model=toy_runs.toy_model(),
        optimizer_cls=str2class(config.task.optimizer_cls),
        scheduler_cls=str2class(scheduler) if scheduler else None,
    )


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_a_choice(name):
    task = task_of(config_of(f"task/weighting={name}"))
    assert type(task) is SoftAdaptTask
    assert type(task.rule) is RULES[name]
    weights = task.rule.begin([c.component for c in task.outputs], lr=task.lr)
    assert list(weights) == ["energy", "forces", "stress"]
    assert task.standardize


@pytest.mark.parametrize(
    "scheduler", ["softadapt_cosine", "acsf_plateau", "acsf_exponential", "reduce_on_plateau"]
)
def test_a_run_as_configured(database, tmp_path, scheduler):
    config = config_of(
        f"task/scheduler={scheduler}", "trainer.max_epochs=2", "trainer.accelerator=cpu"
    )
    task = task_of(config)
    callbacks = [instantiate(c) for c in config.callbacks.values()]
    logger = [instantiate(c) for c in config.logger.values()]
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=logger, _convert_="partial")
    pl.seed_everything(0, verbose=False)
    trainer.fit(task, datamodule=toy_runs.toy_data(database))
    # spktrain resumes from here
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert isinstance(trainer.checkpoint_callback, RunCheckpoint)
    assert (tmp_path / "best_model").exists()
    assert (tmp_path / "history.csv").exists()


def test_the_cosine_of_an_extended_run_is_that_of_the_longer_one(database, tmp_path):
    for epochs in (2, 4):
        config = config_of(
            "task/scheduler=softadapt_cosine",
            f"trainer.max_epochs={epochs}",
            "trainer.accelerator=cpu",
        )
        callbacks = [instantiate(c) for c in config.callbacks.values()]
        trainer = instantiate(config.trainer, callbacks=callbacks, logger=[], _convert_="partial")
        pl.seed_everything(0, verbose=False)
        last = tmp_path / "checkpoints" / "last.ckpt"
        trainer.fit(
            task_of(config),
            datamodule=toy_runs.toy_data(database),
            ckpt_path=str(last) if last.exists() else None,
        )
    lr = [row["lr"] for row in toy_runs.history(tmp_path)]
    expected = [0.5e-3 * (1 + math.cos(math.pi * k / n)) for k, n in enumerate((2, 2, 4, 4))]
    assert lr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["softadapt_kalman", "softadapt_spring", "softadapt_second_order"])
def test_optimizers_are_configured_as_they_are(name):
    """The values in the file are those of the class, which has all of them documented."""
    config = config_of(f"task/optimizer={name}")
    cls = str2class(config.task.optimizer_cls)
    known = inspect.signature(getattr(cls, "choose", cls)).parameters
    for argument, value in config.task.optimizer_args.items():
        assert known[argument].default == value, argument


def test_raw_losses_are_a_choice():
    task = task_of(config_of("task.standardize=false"))
    assert not task.standardize
    stress = task.outputs[2]
    assert stress.unit_factor == pytest.approx(160.21766208, rel=1e-6)  # GPa


def test_ddp_names_its_strategy():
    config = config_of("trainer=acsf_ddp")
    assert config.trainer.strategy == "ddp"
    assert config.trainer.devices == 2


def test_networks_on_bispectrum_components_halve_the_rate_on_a_plateau():
    """As the paper trains them; another schedule takes the place of this one as a whole."""
    config = config_of("experiment=snap_network_b", "globals.size=3")
    assert config.model.output_modules[0].n_hidden == "B3"
    assert config.model.output_modules[0].activation == "softplus"
    assert [config.data[f"num_{part}"] for part in ("train", "val", "test")] == [0.7, 0.1, 0.2]
    assert config.trainer.max_epochs == config.callbacks.early_stopping.patience == 800
    task = task_of(config)
    assert task.schedule_monitor == "val_loss"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    scheduler = task.scheduler_cls(optimizer, **task.scheduler_kwargs)
    rates = []
    for loss in [1.0, 0.5, *[0.5 * (1 - 5e-5)] * 60, 0.4]:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    # the better loss of the second step counts for 50 steps; 5e-5 of it are nothing
    assert rates == pytest.approx([1e-3] * 52 + [5e-4] * 11)
    task_of(config_of("experiment=snap_network_a", "task/scheduler=softadapt_cosine"))
