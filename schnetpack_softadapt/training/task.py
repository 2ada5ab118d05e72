"""The learning task: components computed once, weighted by a rule, everything in the checkpoint."""

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Timer
from schnetpack import properties

from schnetpack_softadapt.data.statistics import TrainingTargets, training_targets
from schnetpack_softadapt.errors import in_one_line
from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.training.losses import LossComponent
from schnetpack_softadapt.training.means import (
    EpochMeans,
    EpochSums,
    batch_loss,
    error_sums,
    mark_repeated,
)
from schnetpack_softadapt.training.model_outputs import components_of, constrained
from schnetpack_softadapt.training.optimizers.residuals import BatchResiduals, least_squares_weight
from schnetpack_softadapt.training.resume import ResumableTask, plain, plain_copy
from schnetpack_softadapt.training.rules import Likelihood, Rule
from schnetpack_softadapt.training.settings import (
    check_monitor,
    check_optimizer,
    logged_names,
    update_config,
)
from schnetpack_softadapt.training.standardize import Standardization
from schnetpack_softadapt.training.units import record_units

__all__ = ["SoftAdaptTask"]

log = logging.getLogger(__name__)

#: of linear models, with weights that follow from them
_MOST_SOLUTIONS = 100
# what a rule that averages over epochs sees of each of them
_EPOCHS_OF_A_SOLUTION = 20


class SoftAdaptTask(ResumableTask):
    """SchNetPack's task with loss weights that follow a rule.

    The sum over components with the rule's weights is what is differentiated. `val_loss` is the sum
    of the standardised components without weights, so it means the same in all epochs. All values
    are logged once per epoch, as exact means over its structures and over all ranks, those of
    training at the parameters that each step starts from:

    - `train_loss` (weighted), `val_loss`, `test_loss`
    - `{subset}_{component}_loss`: unweighted, standardised if `standardize`
    - `{subset}_{property}_{rmse|mae}`: eV/atom, eV/Ang, eV/Ang^3
    - `weight_{component}`, `rate_{component}`: the weights used in the epoch, the rule's rates
    - `lr`, `wall_s`

    For settings that are changed on a resume see `ResumableTask`. A changed rule goes on from the
    weights and losses of the checkpoint if it remembers any; with other losses of the components
    `val_loss` has another meaning from there on.

    Args:
        outputs: components, see `losses`, or SchNetPack's own.
        weighting: rule that sets the weights; `Likelihood` if None.
        standardize: train on standardised components; False trains on raw squared errors.
        optimizer_cls: optimizer. One with a true attribute `uses_residuals` is stepped by hand, see
            `residual_vectors`; one with a method `choose` stands for that which it chooses by the
            number of parameters, see `optimizers.SecondOrder`.
        optimizer_args: its arguments; needs `lr`.
        kwargs: those of `schnetpack.task.AtomisticTask`.

    Raises:
        ValueError: outputs that are no `ModelOutput`, or two with one name; weights, arguments of
            optimizer or scheduler, or a `scheduler_monitor` that do not fit.
    """

    def __init__(
        self,
        model,
        outputs: list[LossComponent],
        weighting: Rule | None = None,
        standardize: bool = True,
        optimizer_cls: type = torch.optim.Adam,
        optimizer_args: dict[str, Any] | None = None,
        **kwargs,
    ):
        outputs = components_of(outputs, model)
        names = [c.component for c in outputs]
        if len(set(names)) < len(names):
            raise ValueError(f"components need different names, not {names}")
        weighting = Likelihood() if weighting is None else weighting
        # Hydra passes its own containers; in an optimizer's state torch.load refuses them
        optimizer_args = plain({"lr": 1e-3} if optimizer_args is None else optimizer_args)
        kwargs["scheduler_args"] = plain(kwargs.get("scheduler_args") or {})
        check_optimizer(
            optimizer_cls,
            optimizer_args,
            kwargs.get("scheduler_cls"),
            kwargs["scheduler_args"],
            kwargs.get("scheduler_monitor"),
            logged_names(outputs),
        )
        super().__init__(
            model=model,
            outputs=outputs,
            optimizer_cls=optimizer_cls,
            optimizer_args=optimizer_args,
            **kwargs,
        )
        self.rule = weighting
        self.standardize = standardize
        self.standardization = Standardization()
        self.active = list(outputs)
        self.automatic_optimization = not getattr(optimizer_cls, "uses_residuals", False)
        self._sums_over_epoch = getattr(optimizer_cls, "sums_over_epoch", False)
        #: epochs finished and seconds spent in them, over all starts of the run
        self.epochs_done, self.wall_s = 0, 0.0
        #: what the last epoch logged
        self.record: dict[str, float] = {}
        self._sums: Mapping[str, EpochSums] = defaultdict(EpochSums)  # by subset
        self._counted = False  # whether the sums have the batch of this step
        self._validation: dict[str, float] = {}
        self._chosen: dict[str, Any] = {}  # settings that the size of the model decides
        self._clock = time.monotonic()
        self._epoch_lr = float(optimizer_args["lr"])
        if self.warmup_steps and not self.automatic_optimization:
            raise ValueError(f"{optimizer_cls.__name__} knows no warm-up; use warmup_steps=0")
        trained = [c for c in outputs if self._is_there(c, [c.target_property])]
        optional = [c.component for c in trained if c.auto]
        self._ignored = weighting.check([c.component for c in trained], optional)

    # ---------------------------------------------------------------- before the first step

    @in_one_line
    def setup(self, stage: str | None = None) -> None:
        """Fit the model's transforms and the scales of the losses on the training set.

        Raises:
            ValueError: there is no data module, or no component can be computed.
        """
        datamodule = self.trainer.datamodule
        if datamodule is None:
            raise ValueError(
                "SoftAdaptTask fits scales to the training set and so needs a data module, not bare"
                " loaders: trainer.fit(task, datamodule=AtomsDataModule(...))"
            )
        for c in self.outputs:
            c.bind(datamodule.dataset)
        if stage == "fit":
            self._check_run(datamodule.dataset.load_properties)
        super().setup(stage)
        if stage == "fit" and hasattr(self.optimizer_cls, "choose"):
            self._choose_optimizer()
        if stage == "fit" or not bool(self.standardization.fitted):
            self._prepare(datamodule)

    def _check_run(self, available: Sequence[str]) -> None:
        """Refuse what cannot be trained before descriptors are computed."""
        trainer = self.trainer
        if not isinstance(trainer.max_epochs, int) or trainer.max_epochs == 0:
            raise ValueError(
                f"trainer.max_epochs={trainer.max_epochs!r} is no number of epochs (-1: no limit)"
            )
        endless = trainer.max_epochs == -1 and self.scheduler_kwargs.get("T_max") == -1
        if endless and not hasattr(self.optimizer_cls, "choose"):
            raise ValueError(
                "a learning rate that goes to zero needs a number of epochs, and only"
                " task/optimizer=softadapt_second_order chooses one: trainer.max_epochs=100"
            )
        sums = self.automatic_optimization or getattr(self.optimizer_cls, "sums_over_ranks", False)
        if trainer.world_size > 1 and not sums:
            raise ValueError(f"{self.optimizer_cls.__name__} runs on one rank; use devices=1")
        watchable = {*logged_names(self.outputs), "epoch", "step"}
        for callback in trainer.callbacks:
            if isinstance(getattr(callback, "monitor", None), str):
                check_monitor(f"{type(callback).__name__}.monitor", callback.monitor, watchable)
        for c in self.outputs:
            self._is_there(c, available)
            if c.kind is None and c.is_trained and not self.automatic_optimization:
                raise ValueError(
                    f"{self.optimizer_cls.__name__} trains energy, forces and stress by their"
                    f" residuals; the output {c.component} has a loss of its own ({c.loss}):"
                    " choose another optimizer"
                )
            if self._sums_over_epoch and c.loss != "mse":
                raise ValueError(
                    f"component {c.component} has loss {c.loss!r}: least squares have loss: mse in"
                    " all of task.outputs"
                )
        heads = [m for m in self.model.output_modules if isinstance(m, ElementalAtomwise)]
        if self._sums_over_epoch and (not heads or any(m.n_hidden for m in heads)):
            raise ValueError(
                f"{self.optimizer_cls.__name__} solves models that are linear in their parameters:"
                " ElementalAtomwise with n_hidden=[], as in experiment=linear_softadapt"
            )
        if self._ignored:
            log.warning(
                "the weights of %s have no effect: the loss components are %s",
                ", ".join(self._ignored),
                ", ".join(c.component for c in self.outputs),
            )

    def _choose_optimizer(self) -> None:
        """Go on with the optimizer that fits the size of the model, and its number of epochs."""
        n_parameters = sum(p.numel() for p in self.parameters() if p.requires_grad)
        data = self.trainer.datamodule
        steps = -(-len(data.train_idx) // (data.batch_size * self.trainer.world_size))
        choice = self.optimizer_cls.choose(n_parameters, steps, **self.optimizer_kwargs)
        self.optimizer_cls, self.optimizer_kwargs = choice.optimizer_cls, choice.optimizer_args
        if self.trainer.max_epochs == -1:
            self.trainer.fit_loop.max_epochs = choice.epochs
            if self.scheduler_kwargs.get("T_max") == -1:
                self.scheduler_kwargs = {**self.scheduler_kwargs, "T_max": choice.epochs}
        self._chosen = {
            "task.optimizer_cls": f"{self.optimizer_cls.__module__}.{self.optimizer_cls.__name__}",
            "task.optimizer_args": self.optimizer_kwargs,
            "trainer.max_epochs": self.trainer.max_epochs,
        }
        if self.trainer.is_global_zero:
            log.info("%s; %d epochs", choice.reason, self.trainer.max_epochs)

    def _is_there(
        self, c: LossComponent, available: Sequence[str], targets: TrainingTargets | None = None
    ) -> bool:
        """Whether a component is trained, as far as known: its labels, with targets their values.

        Raises:
            ValueError: one that was asked for by name is not there.
        """
        if not c.is_trained:
            return False
        missing = c.missing_in(available, self.model.model_outputs)
        if not missing and targets is not None and not c.labels(targets):
            missing = f"no training structure has a {c.target_property} that counts in it"
        if missing and not c.auto:
            raise ValueError(
                f"loss component {c.component}: {missing}. Correct the name, or leave the output"
                " out of task.outputs"
            )
        if missing and targets is not None:
            log.warning("loss component %s is left out: %s", c.component, missing)
        return not missing

    def _prepare(self, datamodule) -> None:
        """Fit scales to the training set and begin the rule."""
        record_units(self.model, datamodule.dataset, self.outputs)
        keys = {c.kind: c.target_property for c in reversed(self.outputs) if c.kind is not None}
        targets = training_targets(datamodule).named(**keys)
        available = datamodule.dataset.load_properties
        self.active = [c for c in self.outputs if self._is_there(c, available, targets)]
        if not self.active:
            raise ValueError("none of the task's outputs is in both the data and the model")
        self.standardization.fit(targets)
        for c in self.active:
            if c.kind is None:
                c.fit(targets)
        labels, of_whole = {c.component: c.labels(targets) for c in self.active}, Counter()
        for c in self.active:
            of_whole[c.whole] += labels[c.component]
        loss_weights = None
        if len({c.loss_weight for c in self.active}) > 1:
            loss_weights = {
                c.component: c.loss_weight * labels[c.component] / of_whole[c.whole]
                for c in self.active
            }
        self.rule.begin(list(labels), self.lr, labels, loss_weights)
        self.epochs_done, self.wall_s = 0, 0.0

    @in_one_line
    def configure_optimizers(self):
        """Optimizer and scheduler, as SchNetPack's task makes them."""
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Write the settings of this start into config.yaml."""
        super().on_fit_start()
        if self.trainer.is_global_zero:
            resumed = self.trainer.ckpt_path is not None
            update_config(Path("config.yaml"), resumed, self._chosen)

    # ---------------------------------------------------------------- steps

    @in_one_line
    def training_step(self, batch, batch_idx):
        """The weighted loss of a batch; with an optimizer of residuals, the whole step."""
        batch = mark_repeated(batch, batch_idx, self.trainer.train_dataloader)
        if self.automatic_optimization:
            terms = self._terms(self._predict(batch), batch, "train")
            ranks = self.trainer.world_size
            return batch_loss(self.active, self.rule.weights, terms, ranks, self.sum_over_ranks)
        self.optimizers().step(closure=lambda: self.residual_vectors(batch))
        if self._sums_over_epoch and self.trainer.is_last_batch:
            self._solve()
        return None

    def validation_step(self, batch, batch_idx):
        self._evaluate(mark_repeated(batch, batch_idx, self.trainer.val_dataloaders), "val")

    def test_step(self, batch, batch_idx):
        self._evaluate(mark_repeated(batch, batch_idx, self.trainer.test_dataloaders), "test")

    @in_one_line
    def _evaluate(self, batch, subset: str) -> None:
        with torch.set_grad_enabled(self.grad_enabled):
            self._terms(self._predict(batch), batch, subset)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """The first evaluation of a batch counts in the sums of the epoch.

        Line searches and optimizers such as LBFGS evaluate it again, at other parameters.
        """
        self._counted = False

    def residual_vectors(self, batch: Mapping[str, torch.Tensor]) -> BatchResiduals:
        """Residual vector of each component with its graph, for second-order optimizers.

        sqrt(alpha w / sum w) x with the weights in use: the sum of squares is the total loss (of
        Huber losses, has its gradient). An optimizer class with `uses_residuals = True` is called
        once per batch as `optimizer.step(closure)`; each call of the closure computes this anew at
        the current parameters. It may differentiate, move them and call it again.

        On several ranks these are the residuals of this rank's part of the batch, and the sum of
        squares over all ranks is the loss.

        For an optimizer with `sums_over_epoch` they are sqrt(w) x, and `counts` the sums of w.
        """
        pred = self._predict(batch)
        if not self._counted:
            with torch.no_grad():
                self._terms(pred, batch, "train")
        found = [c.residuals(pred, batch, self._scales) for c in self.active]
        counts = [
            float(x.numel()) if weight is None else weight.sum() * x.shape[1] for x, weight in found
        ]
        if self.trainer.world_size > 1 and not self._sums_over_epoch:
            counts = [torch.as_tensor(n, dtype=torch.float64, device=self.device) for n in counts]
            counts = self.sum_over_ranks(torch.stack(counts))
        vectors = {}
        for c, (x, weight), count in zip(self.active, found, counts, strict=True):
            if weight is not None:
                x = torch.where(weight > 0, x, 0.0)  # a stress that is not defined may be nan
            factor = 1.0
            if not self._sums_over_epoch:
                factor = self.rule.weights[c.component] / max(count, 1e-30)
            for w in (weight, least_squares_weight(c, x, c.deltas(batch))):
                factor = factor if w is None else factor * w
            vectors[c.component] = (x * factor**0.5).reshape(-1)
        of_batch = dict(zip(vectors, map(float, counts), strict=True))
        return BatchResiduals(self.active, vectors, pred, batch, self.model, of_batch)

    def _solve(self) -> None:
        """Solve for the whole epoch, and again with the weights that the rule gives for the noise
        at the solution, until they stand still. The losses of the epoch are those at the end.

        What a rule makes of the part of the run that is done is as at its end.
        """
        optimizer = self.optimizers(use_pl_optimizer=False)
        for n in range(_MOST_SOLUTIONS):
            n_solved, used = n + 1, dict(self.rule.weights)
            losses, noise = optimizer.solve(used)
            if not self.rule.has_memory:
                break
            for _ in range(_EPOCHS_OF_A_SOLUTION):
                new = self.rule.update(self.current_epoch, noise, None, 1.0)
            if all(math.isclose(new[k], w, rel_tol=1e-4, abs_tol=1e-9) for k, w in used.items()):
                break
        else:
            log.warning("the weights still change after %d solutions", n_solved)
        if self.trainer.is_global_zero:
            weights = ", ".join(f"{name} {w:.4g}" for name, w in used.items())
            log.info("solved %d times; weights: %s", n_solved, weights)
            n_labels = sum(f.n_rows for f in optimizer.factors.values())  # of all ranks by now
            if n_labels < optimizer.n_parameters:
                log.warning(
                    "%d coefficients are fitted to %d labels, which meets them all and says nothing"
                    " of others: take fewer functions, or more structures",
                    optimizer.n_parameters,
                    n_labels,
                )
        # at the start of the epoch the model knew nothing
        self._sums["train"] = EpochSums()
        counts = {name: f.count for name, f in optimizer.factors.items()}
        for name, loss in losses.items():
            share = counts[name] / self.trainer.world_size
            self._sums["train"].add({f"{name}/sum": loss * share, f"{name}/count": share})

    @property
    def _scales(self) -> Standardization | None:
        return self.standardization if self.standardize else None

    def _predict(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # a shallow copy: the model overwrites energy, forces, stress, cell, ... in its input,
        # and the batch still has to give the references
        return self.predict_without_postprocessing(dict(batch))

    def _terms(self, pred, batch, subset: str) -> list[tuple[torch.Tensor, Any]]:
        """(sum, count) of each component; all sums go to those of the epoch, detached."""
        terms, sums, errors = [], {}, {}
        theirs = constrained(self.outputs, pred, batch)
        for c in self.active:
            error, source = None, theirs
            if c.kind is not None:
                if c.name not in errors:
                    errors[c.name] = c.error(pred, batch), c.mask(batch)
                error, source = errors[c.name][0], (pred, batch)
            total, count = c.terms(*source, self._scales, error)
            terms.append((total, count))
            sums[f"{c.component}/sum"], sums[f"{c.component}/count"] = total, count
            if subset != "train":
                standardized = total
                if not self.standardize:
                    standardized, _ = c.terms(*source, self.standardization, error, raw_delta=True)
                sums[f"{c.component}/std"] = standardized
        if subset != "train" or not self._counted:
            self._update_metrics(*theirs, subset)
            self._sums[subset].add({**sums, **error_sums(errors)})
            self._counted = True
        return terms

    def _update_metrics(self, pred, batch, subset: str) -> None:
        """Metrics that came with SchNetPack's outputs, under their names and in their units."""
        n = len(batch[properties.n_atoms])
        for c in self.outputs:
            if names := c.metric_names(subset):
                c.model_output.update_metrics({c.name: pred[c.name].detach()}, batch, subset)
                metrics = c.model_output.metrics[subset].values()
                for name, metric in zip(names, metrics, strict=True):
                    self.log(name, metric, on_step=False, on_epoch=True, batch_size=n)

    # ---------------------------------------------------------------- epochs

    def on_train_start(self) -> None:
        """Start the clock; weights that follow from epoch and learning rate alone are set anew."""
        super().on_train_start()
        if not self.rule.has_memory and self.current_epoch > 0:
            losses = dict.fromkeys(self.rule.weights, 0.0)
            self.rule.update(self.current_epoch - 1, losses, self.current_lr())
        self._clock = time.monotonic()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._sums, self._validation = defaultdict(EpochSums), {}
        self._epoch_lr = self.current_lr()

    def on_validation_epoch_end(self) -> None:
        means = self._means("val")
        self._validation = {"val_loss": means.standardized, **means.values}
        if not self.trainer.sanity_checking:
            # for other progress bars than ours
            self.log("val_loss", means.standardized, prog_bar=True, logger=False, batch_size=1)
            self._log(self._validation)

    def on_test_epoch_end(self) -> None:
        means = self._means("test")
        record = {"test_loss": means.standardized, **means.values}
        self.log_dict(self._without_users_names(record), batch_size=1)

    @in_one_line
    def on_train_epoch_end(self) -> None:
        """Close the epoch: losses, schedulers, new weights, in this order, before checkpoints.

        Callbacks that have a method `on_epoch_record(trainer, task, record)` are told the values.

        Raises:
            ValueError: a loss is not finite.
        """
        used, means = dict(self.rule.weights), self._means("train")
        for c in self.active:
            if c.component not in means.losses:
                raise ValueError(
                    f"no training structure counts in the loss component {c.component}; remove it"
                    " from task.outputs"
                )
        loss = sum(used[name] * value for name, value in means.losses.items())
        record = {"train_loss": loss, **means.values}
        self.step_schedulers({**self.trainer.callback_metrics, **record, **self._validation})
        # refuses nan and inf
        self.rule.update(self.current_epoch, means.losses, self.current_lr(), self.progress())
        for name, value in self._validation.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} of epoch {self.current_epoch} is {value}: the model has diverged, or"
                    " the data hold broken structures"
                )
        now = time.monotonic()
        self.wall_s += now - self._clock
        self._clock = now
        self.epochs_done = self.current_epoch + 1
        record |= {f"weight_{name}": alpha for name, alpha in used.items()}
        record |= {f"rate_{name}": rate for name, rate in self.rule.rates.items()}
        record |= {"lr": self._epoch_lr, "wall_s": self.wall_s}
        self._log(record)
        self.record = {"epoch": self.current_epoch, **record, **self._validation}
        for callback in self.trainer.callbacks:
            if hasattr(callback, "on_epoch_record"):
                callback.on_epoch_record(self.trainer, self, self.record)

    def progress(self) -> float:
        """Part of the run that is done after this epoch, of its epochs or of its time, 0 to 1."""
        trainer, done = self.trainer, 0.0
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            done = (self.current_epoch + 1) / trainer.max_epochs
        for callback in trainer.callbacks:
            if isinstance(callback, Timer) and callback.time_remaining() is not None:
                elapsed, left = callback.time_elapsed(), max(callback.time_remaining(), 0.0)
                done = max(done, elapsed / (elapsed + left))
        return min(done, 1.0)

    def _means(self, subset: str) -> EpochMeans:
        """Means of an epoch over all ranks, whose sums are then forgotten."""
        reduce = self.sum_over_ranks if self.trainer.world_size > 1 else None
        sums = self._sums.pop(subset, EpochSums())
        return EpochMeans.of(
            subset, self.active, sums.reduce(EpochMeans.names(self.active), reduce)
        )

    def _log(self, record: dict[str, float]) -> None:
        """Hand values to callbacks and loggers."""
        record = self._without_users_names(record)
        # not self.log: it takes a millisecond for each value, of 30 in an epoch of 0.1 s
        tensors = {name: torch.tensor(value) for name, value in record.items()}
        self.trainer.callback_metrics.update(tensors)
        if self.trainer.is_global_zero:
            values = {"epoch": self.current_epoch, **record}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)
                logger.save()

    def _without_users_names(self, record: dict[str, float]) -> dict[str, float]:
        """For callbacks and loggers, what a metric of the user's is called is that metric."""
        subsets = ("train", "val", "test")
        users = {name for c in self.outputs for s in subsets for name in c.metric_names(s)}
        return {name: value for name, value in record.items() if name not in users}

    # ---------------------------------------------------------------- resume

    def run_state(self) -> dict[str, Any]:
        return {
            **super().run_state(),
            "rule": self.rule.state_dict(),
            "active": [c.component for c in self.active],
            "epochs": self.epochs_done,
            "wall_s": self.wall_s,
        }

    def settings(self) -> dict[str, Any]:
        """Those of the optimizer, the rule and the components."""
        rule = {k: v for k, v in vars(self.rule).items() if k not in self.rule.state_dict()}
        ours = {
            "standardize": self.standardize,
            "weighting": {"rule": type(self.rule), **rule},
            "outputs": {c.component: c.settings() for c in self.outputs},
        }
        return {**super().settings(), **plain_copy(ours)}

    def apply_changes(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Also say which changes come too late."""
        super().apply_changes(changes)
        if self.global_rank > 0:
            return
        late = any(name.startswith("weighting.initial") for name in changes)
        if late and "weighting.rule" not in changes and self.rule.has_memory:
            log.warning("task.weighting.initial is for the first epochs and has no effect any more")
        if any(name.startswith("outputs") for name in changes):
            log.warning(
                "val_loss has another meaning than before: the best epoch is one of both kinds"
            )

    def load_run_state(self, state: dict[str, Any], resume: bool) -> None:
        """Continue with the weights of the checkpoint; in tests keep those of the run."""
        super().load_run_state(state, resume)
        if not resume and self.epochs_done:
            return  # trainer.test has loaded the best epoch; the run knows better how long it took
        if not resume:
            self.active = [c for c in self.outputs if c.component in state["active"]]
        self.epochs_done, self.wall_s = state["epochs"], state["wall_s"]
        if resume and not self.rule.has_memory:
            return
        try:
            self.rule.load_state_dict(state["rule"])
        except ValueError as error:
            # `setup` has begun the rule, with the labels that its prior may want
            log.warning("%s; starting with the initial weights of this run", error)
