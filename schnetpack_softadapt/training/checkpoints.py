"""Checkpoints at the end of every epoch, averaged weights, early stopping; all survive kill -9."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.callbacks import EarlyStopping as LightningEarlyStopping

from schnetpack_softadapt.files import link_or_copy, replacing

__all__ = ["AveragedWeights", "EarlyStopping", "RunCheckpoint", "Settled"]

log = logging.getLogger(__name__)


class RunCheckpoint(Checkpoint):
    """Writes `last.ckpt` every epoch, and `best.ckpt` and the model for inference at each best one.

    In place of Lightning's ModelCheckpoint, whose `save_last` writes `last.ckpt` only when a best
    epoch is written too, so that a resumed run repeats epochs. Here an epoch is serialised once;
    the best one is a hard link to the same file. All files are written under a temporary name and
    renamed: a kill leaves the old or the new one. First the model, then the best and the last
    checkpoint: what `last.ckpt` says of the best is never ahead of the files.

    Args:
        dirpath: folder; `spktrain` resumes from `checkpoints/last.ckpt`.
        monitor: logged value that decides which epoch is best; without it the last one is.
        mode: "min" or "max".
        model_path: where the best model goes, ready for inference; nowhere if None.

    Attributes:
        best_model_path: checkpoint of the best epoch, read by `trainer.test(ckpt_path="best")`.
        best_model_score: its monitored value.
    """

    def __init__(
        self,
        dirpath: str = "checkpoints",
        monitor: str | None = "val_loss",
        mode: str = "min",
        model_path: str | None = "best_model",
    ):
        if mode not in ("min", "max"):
            raise ValueError(f"mode is min or max, not {mode!r}")
        self.dirpath = Path(dirpath).resolve()
        self.monitor, self.mode, self.model_path = monitor, mode, model_path
        self.best_model_path = ""
        self.best_model_score: float | None = None
        self._validated = False  # since the last checkpoint

    def on_validation_end(self, trainer, pl_module) -> None:
        """A validation within an epoch can be the best; one at its end waits for the epoch's."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        self._validated = True
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            if self._is_best(trainer):
                self._write(trainer, pl_module, best=True, last=False)
            self._validated = False

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if not trainer.fast_dev_run:
            self._write(trainer, pl_module, best=self._is_best(trainer), last=True)
            self._validated = False

    def _is_best(self, trainer) -> bool:
        if self.monitor is None:
            return True
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            # without validation structures the last epoch is all there is
            return not self._validated and self.best_model_score is None
        if not self._validated and self.monitor.startswith("val"):
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        old = self.best_model_score
        if old is not None and not sign * float(value) < sign * old:
            return False
        self.best_model_score = float(value)
        return True

    def _write(self, trainer, pl_module, best: bool, last: bool) -> None:
        best_path = self.dirpath / "best.ckpt"
        if best:
            self.best_model_path = str(best_path)
        temporary = self.dirpath / "writing.tmp"
        # on all ranks, written by the first
        trainer.save_checkpoint(temporary, weights_only=False)
        if best and self.model_path is not None:
            pl_module.save_model(self.model_path, do_postprocessing=True)
        if trainer.is_global_zero:
            if best and last:
                with replacing(best_path) as link:
                    link_or_copy(temporary, link)
            os.replace(temporary, self.dirpath / "last.ckpt" if last else best_path)
        trainer.strategy.barrier("RunCheckpoint")

    def state_dict(self) -> dict[str, Any]:
        names = ("best_model_path", "best_model_score", "monitor", "mode")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best epoch, wherever the folder of the run is now."""
        self.best_model_score = state_dict["best_model_score"]
        judged, judges = (state_dict["monitor"], state_dict["mode"]), (self.monitor, self.mode)
        if judged != judges:
            log.warning(
                "the best epoch was judged by %s (%s), now by %s (%s): the next one counts as best",
                *judged,
                *judges,
            )
            self.best_model_score = None
        name = Path(state_dict["best_model_path"]).name
        self.best_model_path = str(self.dirpath / name) if name else ""


class AveragedWeights(Callback):
    """Exponential moving average of the weights, used for validation, checkpoints and the model.

    Replaces `schnetpack.train.ExponentialMovingAverage`, which on a resume stores the averaged
    weights over the raw ones that it has just loaded, so that training goes on from the average.
    The decay of the first steps is (1 + n) / (10 + n) after n steps, if that is smaller.

    Args:
        decay: of the average, per optimizer step.
    """

    def __init__(self, decay: float = 0.995):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay lies in [0, 1), not {decay}")
        self.decay = decay
        self.n_updates = 0
        self._average: list[torch.Tensor] | None = None
        self._raw: list[torch.Tensor] | None = None  # while the average is in the model

    def on_fit_start(self, trainer, pl_module) -> None:
        """Start from the weights of the model, or from those of the checkpoint.

        What a checkpoint calls weights of the model is the average, if it was taken after a
        validation: the raw weights are kept here and go back when the next epoch starts.
        """
        parameters = _parameters(pl_module)
        if self._average is None:
            self._average = _copies(parameters)
        if [p.shape for p in parameters] != [a.shape for a in self._average]:
            raise ValueError("the averaged weights of the checkpoint are of another model")
        self._average = [a.to(p) for a, p in zip(self._average, parameters, strict=True)]
        if self._raw is not None:
            self._raw = [r.to(p) for r, p in zip(self._raw, parameters, strict=True)]

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self._swap_out(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs) -> None:
        """Take the weights after a step into the average."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        # one call for all of them: a loop costs more than the step of a small network
        torch._foreach_lerp_(self._average, _parameters(pl_module), 1.0 - decay)

    @torch.no_grad()
    def on_validation_start(self, trainer, pl_module) -> None:
        """Put the average into the model."""
        if self._average is None or self._raw is not None or trainer.state.fn != "fit":
            return
        parameters = _parameters(pl_module)
        self._raw = _copies(parameters)
        torch._foreach_copy_(parameters, self._average)

    def on_validation_end(self, trainer, pl_module) -> None:
        """Within an epoch, go on with the raw weights at once; at its end after the checkpoint."""
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.state.fn == "fit" and (trainer.sanity_checking or not ends_epoch):
            self._swap_out(pl_module)

    @torch.no_grad()
    def _swap_out(self, pl_module) -> None:
        if self._raw is not None:
            torch._foreach_copy_(_parameters(pl_module), self._raw)
            self._raw = None

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "average": self._average, "raw": self._raw}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the average; weights move to their device when training starts."""
        self.n_updates = state_dict["n_updates"]
        self._average, self._raw = state_dict["average"], state_dict["raw"]


class EarlyStopping(LightningEarlyStopping):
    """Early stopping that also holds for a run that is resumed after it has stopped.

    Upstream forgets on a resume that it had stopped, and trains one more epoch each time the
    command is repeated. A run that was stopped goes on when it is resumed with more patience.
    """

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; upstream takes the patience of the checkpoint, too."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class Settled(Callback):
    """Ends a run when training and validation losses have stopped to change from epoch to epoch.

    The losses are the sums of the components without weights, which move by themselves. A run that
    has ended so stays ended when it is resumed, unless the limits are smaller now.
    `trainer.min_epochs` and `trainer.max_epochs` bound the number of epochs. Without a validation
    set it never ends a run.

    Args:
        train, val: relative changes, both of which must be smaller.
    """

    def __init__(self, train: float = 5e-5, val: float = 1e-5):
        if not (train > 0.0 and val > 0.0):
            raise ValueError(f"changes of the losses must be positive, got {train} and {val}")
        self.limits = (train, val)
        self._losses: tuple[float, ...] = ()
        self._changes = (math.inf, math.inf)

    def on_train_start(self, trainer, pl_module) -> None:
        self._stop(trainer, trainer.current_epoch)

    def on_epoch_record(self, trainer, task, record: dict[str, float]) -> None:
        """Compare with the last epoch that had a validation; called by the task."""
        if "val_loss" not in record:
            return
        train = sum(record[f"train_{c.component}_loss"] for c in task.active)
        losses = (train, record["val_loss"])
        if self._losses:
            pairs = zip(losses, self._losses, strict=True)
            self._changes = tuple(abs(new - old) / max(old, 1e-300) for new, old in pairs)
        self._losses = losses
        self._stop(trainer, task.current_epoch + 1)

    def _stop(self, trainer, n_epochs: int) -> None:
        settled = all(x < limit for x, limit in zip(self._changes, self.limits, strict=True))
        # Lightning would remember a wish to stop before the smallest number of epochs
        if settled and n_epochs >= (trainer.min_epochs or 0):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses, "changes": self._changes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses, self._changes = state_dict["losses"], state_dict["changes"]


def _parameters(pl_module) -> list[torch.Tensor]:
    return [p for p in pl_module.model.parameters() if p.requires_grad]


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]
