"""A task that goes on after a kill as if nothing had happened, and can be extended.

Works around what SchNetPack and Lightning do to checkpoints; each is named where it is met.
"""

import io
import json
import logging
import os
import random
import warnings
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from schnetpack.task import AtomisticTask

from schnetpack_softadapt.errors import in_one_line
from schnetpack_softadapt.files import replacing

__all__ = ["ResumableTask", "plain", "plain_copy"]

log = logging.getLogger(__name__)

#: keys of a checkpoint
STATE_KEY = "softadapt_state"
HPARAMS_KEY = "softadapt_hyper_parameters"


class ResumableTask(AtomisticTask):
    """`AtomisticTask` whose checkpoints load everywhere and hold all that a resumed run needs.

    A run is extended by resuming it with a larger `trainer.max_epochs`, also after it has finished.
    It then follows the schedule of the longer run from where it stands: the learning rate of every
    further epoch is that of a run which had the larger number from its start. Other settings that
    are changed on a resume are named in a warning, and count from there on:

    - Scheduler and learning rate: as if the run had been started with them. Schedulers that wait
      for a plateau keep what they have made of the learning rate and count anew.
    - Arguments of the optimizer: as given; another optimizer starts without memory.
    - The seed stays that of the first start.

    Subclasses add to `run_state` and `load_run_state`, of plain values and tensors only, and to
    `settings`.
    """

    #: seed of the run; that of its first start, also after a resume
    run_seed: int | None = None
    #: settings that differ from those of the checkpoint: before and now
    _changes: dict[str, tuple[Any, Any]] | None = None
    #: epoch that a process starts with, until it has started
    _first_epoch: int | None = None
    #: the pickled hyperparameters
    _hparams_bytes: torch.Tensor | None = None

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._hparams_bytes = None

    # ---------------------------------------------------------------- checkpoints

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights, optimizer and schedulers."""
        return {"seed": self.run_seed, "settings": self.settings()}

    def load_run_state(self, state: dict[str, Any], resume: bool) -> None:
        """Take over the state; `resume` is false when a checkpoint is only tested or opened."""
        if resume:
            self.run_seed = state["seed"]

    def settings(self) -> dict[str, Any]:
        """What may be changed on a resume, in plain values, by the names of the configs."""
        data = getattr(self._trainer, "datamodule", None)
        return plain_copy(
            {
                "data": {name: getattr(data, name, None) for name in ("batch_size", "weights")},
                "optimizer_cls": self.optimizer_cls,
                "optimizer_args": self.optimizer_kwargs,
                "scheduler_cls": self.scheduler_cls,
                "scheduler_args": self.scheduler_kwargs,
                "scheduler_monitor": self.schedule_monitor,
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the run; hide the hyperparameters in a tensor of bytes."""
        checkpoint[STATE_KEY] = self.run_state()
        # upstream puts the model object into the hyperparameters, and then torch >= 2.6 refuses to
        # load the checkpoint ("Weights only load failed") on every resume and in trainer.test
        hparams = checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY)
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_NAME, None)
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_TYPE, None)
        if self._hparams_bytes is None:
            # once per run: weights and weighting are in the checkpoint beside, and win
            buffer = io.BytesIO()
            torch.save(dict(hparams), buffer)
            self._hparams_bytes = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        checkpoint[HPARAMS_KEY] = self._hparams_bytes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE_KEY)
        if state is None:
            return
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if fitting:
            self._first_epoch = checkpoint["epoch"] + 1
            now = self.settings()
            self._changes = _changes(state["settings"], now)
            # upstream gives the old state to the new class, whatever it is
            if "optimizer_cls" in self._changes:
                checkpoint["optimizer_states"] = []
            if "scheduler_cls" in self._changes:
                checkpoint["lr_schedulers"] = []
        self.load_run_state(state, resume=fitting)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, map_location=None, strict=None, **kwargs):
        """Build the task from a checkpoint alone; arguments as Lightning's.

        The hyperparameters are unpickled: open only checkpoints that you trust, as with
        `best_model`, which is a pickle too.
        """
        device = map_location or "cpu"
        checkpoint = torch.load(checkpoint_path, map_location=device, weights_only=True)
        data = io.BytesIO(checkpoint[HPARAMS_KEY].cpu().numpy().tobytes())
        kwargs = {**torch.load(data, map_location=device, weights_only=False), **kwargs}
        return super().load_from_checkpoint(
            checkpoint_path, map_location=map_location, strict=strict, **kwargs
        )

    @in_one_line
    def load_state_dict(self, state_dict, *args, **kwargs):
        """Take over the parameters of a checkpoint.

        Raises:
            ValueError: they are of another model.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:  # a line for each tensor that does not fit
            raise ValueError(
                f"the checkpoint is of another model ({str(error).splitlines()[-1].strip()}); a run"
                " goes on with the model it was started with: name the new one run.id=..."
            ) from error

    def save_model(self, path: str, do_postprocessing: bool | None = None) -> None:
        """Write the model for inference; a kill leaves the old file or the new one, never half."""
        if self.global_rank == 0:
            with replacing(path) as temporary:
                super().save_model(str(temporary), do_postprocessing)

    # ---------------------------------------------------------------- random numbers

    @in_one_line
    def on_fit_start(self) -> None:
        """Fix the seed of the run, unless a checkpoint has brought it."""
        given = os.environ.get("PL_GLOBAL_SEED")
        if self.run_seed is None:
            self.run_seed = torch.initial_seed() % 2**48
        elif given not in (None, str(self.run_seed)) and self.global_rank == 0:
            log.warning("seed %s is not used: the run keeps its first, %d", given, self.run_seed)
        if self.trainer.world_size > 1:
            self._check_ranks_agree()
            self.run_seed = self.trainer.strategy.broadcast(self.run_seed)
        # the loader of the first epoch of a process, also of a resumed one, draws before the epoch
        self._first_epoch = self._first_epoch or 0
        self._seed_epoch(self._first_epoch)

    def on_train_epoch_start(self) -> None:
        """Seed from run and epoch: the order of batches must not depend on interruptions."""
        if self.current_epoch != self._first_epoch:
            self._seed_epoch(self.current_epoch)
        self._first_epoch = None

    def _seed_epoch(self, epoch: int) -> None:
        # upstream restores no random state, and its loader draws the order from the global one
        seed = self.run_seed + 1_000_003 * (epoch + 1)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms of others use the global state

    def _check_ranks_agree(self) -> None:
        # upstream draws a seed in every process when the config has none; samplers of ranks with
        # different seeds would train some structures twice and others never
        strategy = self.trainer.strategy
        seed = os.environ.get("PL_GLOBAL_SEED")
        agrees = strategy.broadcast(seed) == seed
        if not strategy.reduce_boolean_decision(agrees, all=True):
            raise ValueError(
                "the ranks have different random seeds and would draw different batches; give one"
                " seed for all on the command line, +seed=1"
            )

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a vector over all ranks, on each of them."""
        if self.trainer.world_size == 1:
            return values
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")

    # ---------------------------------------------------------------- learning rates

    def on_train_start(self) -> None:
        """Apply settings that were changed on the command line of a resumed run."""
        changes, self._changes = self._changes, None
        if changes:
            self.apply_changes(changes)

    def apply_changes(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Put optimizer and scheduler where the changed settings want them.

        Args:
            changes: by name, the setting of the checkpoint and that of this run.
        """
        if self.global_rank == 0:
            names = [name if name.startswith("data.") else f"task.{name}" for name in changes]
            pairs = zip(names, changes.values(), strict=True)
            said = [f"{name} from {old} to {new}" for name, (old, new) in pairs]
            log.warning("changed since the checkpoint: %s", ", ".join(said))
        # upstream, the optimizer state of the checkpoint silently wins over the new values
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            for name in changes:
                kind, _, key = name.partition(".")
                if kind == "optimizer_args" and key != "lr" and key in group:
                    group[key] = optimizer.defaults[key]
        follows = ("optimizer_cls", "optimizer_args.lr", "scheduler_")
        if any(name.startswith(follows) for name in changes):
            self._renew_schedule(changes)

    def _renew_schedule(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Replay a new scheduler up to here: exact also for those that have no closed form."""
        configs = self.trainer.lr_scheduler_configs
        groups = self.trainer.optimizers[0].param_groups
        keep = bool(configs) and configs[0].reduce_on_plateau
        keep = keep and not {"optimizer_cls", "scheduler_cls"} & set(changes)
        old, _ = changes.get("optimizer_args.lr", (self.lr, self.lr))
        for group in groups:
            group["lr"] = group["lr"] * self.lr / old if keep and old else self.lr
            group.pop("initial_lr", None)
        if not configs:
            return
        config = configs[0]
        done = getattr(config.scheduler, "last_epoch", 0)
        done = done or self.trainer.current_epoch // config.frequency  # there was no scheduler
        config.scheduler = self.scheduler_cls(self.trainer.optimizers[0], **self.scheduler_kwargs)
        if config.reduce_on_plateau:
            return
        n_steps = self.trainer.global_step / max(done, 1)  # of the optimizer to one of the schedule
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scheduler wants to see the optimizer's steps
            for k in range(done):
                if k * n_steps < self.warmup_steps:
                    for group in groups:
                        group["lr"] = self.lr * min(1.0, (k + 1) * n_steps / self.warmup_steps)
                config.scheduler.step()

    def current_lr(self) -> float | None:
        """Learning rate of the next step; None for an optimizer that has none."""
        optimizers = self.trainer.optimizers
        return optimizers[0].param_groups[0].get("lr") if optimizers else None

    def lr_scheduler_step(self, scheduler, metric) -> None:
        """Step a scheduler, but for those that `step_schedulers` steps."""
        if not any(
            c.scheduler is scheduler and _waits(c) for c in self.trainer.lr_scheduler_configs
        ):
            super().lr_scheduler_step(scheduler, metric)

    def step_schedulers(self, values: dict[str, Any]) -> None:
        """Step at the end of an epoch the schedulers that upstream steps too late or never.

        Those that wait for a plateau it steps after the checkpoint of the epoch is written: a
        resumed run would miss one step and go on with another learning rate. Where a task steps its
        optimizer itself it steps none.

        Args:
            values: of the epoch that ends, by logged name.

        Raises:
            ValueError: the monitored value was not logged.
        """
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != "epoch" or (self.current_epoch + 1) % config.frequency:
                continue
            if _waits(config):
                value = values.get(config.monitor)
                if value is None:
                    raise ValueError(
                        f"scheduler_monitor {config.monitor!r} was not logged (those of val need"
                        f" validation structures); there are {', '.join(sorted(values))}"
                    )
                super().lr_scheduler_step(config.scheduler, value)
            elif not self.automatic_optimization:
                super().lr_scheduler_step(config.scheduler, None)


def _waits(config) -> bool:
    """Whether a scheduler waits for a plateau of a value of epochs."""
    return config.reduce_on_plateau and config.interval == "epoch"


def plain(value: Any) -> Any:
    """Hydra's containers as dict and list; an optimizer's state must hold nothing else."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def plain_copy(settings: Any) -> Any:
    """Settings as plain values; classes and functions by name, other objects by their class."""

    def name(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"

    return json.loads(json.dumps(plain(settings), default=name))


def _changes(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two trees of dicts, by dotted names."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {name: (old, new)}
    out = {}
    for key in {**old, **new}:
        out |= _changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return out
