"""Reads a run directory: everything a report needs, and what is missing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from schnetpack_softadapt.quantities import ENERGY, METRICS, SUBSETS, Quantity
from schnetpack_softadapt.reports.errors import error_rows
from schnetpack_softadapt.reports.history import History, read_history
from schnetpack_softadapt.reports.predictions import Predictions

__all__ = ["Logged", "Run", "read_runs"]


class Logged(NamedTuple):
    """Values over the epochs of a history, with the unit they are shown in."""

    values: np.ndarray  # (E,)
    unit: str


def read_runs(run_dirs: Sequence[Path | str]) -> list["Run"]:
    """Read run directories, each once; runs of one name are named with their parent directory.

    Raises:
        ValueError: no directory was given, or one is not a run (see `Run.read`).
    """
    if not run_dirs:
        raise ValueError("no run directory given")
    runs = [Run.read(path) for path in dict.fromkeys(Path(p).resolve() for p in run_dirs)]
    for name_of in (lambda path: f"{path.parent.name}/{path.name}", str):
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                run.name = name_of(run.path)
    return runs


@dataclass
class Run:
    """One run directory. `notes` says what is missing or doubtful."""

    path: Path
    name: str
    config: DictConfig
    metrics: dict[str, Any]
    history: History | None
    predictions: dict[str, Predictions]

    def __post_init__(self):
        epochs, history = self.metrics.get("epochs"), self.history
        #: whether training and test are through; best_model is there from the first epoch on
        self.finished = bool(self.metrics) or (self.path / "best_model.task").is_file()
        #: whether the run's task is of this package (energies logged per atom, in eV)
        self.own_task = str(self.setting("task._target_")).startswith("schnetpack_softadapt")
        self.seed: int | None = self.setting("seed")
        #: number of finished epochs
        self.n_epochs: int | None = epochs or (history and int(history.epochs[-1]) + 1)
        #: wall time of training in seconds
        self.wall_s: float | None = self.metrics.get("wall_s", history and history.wall_s)
        self.best_epoch: int | None = history and history.best_epoch
        self.notes = list(self._notes())

    @classmethod
    def read(cls, path: Path | str) -> "Run":
        """Read `path`, a directory made by `spktrain`; a run that is not finished is read too.

        Raises:
            ValueError: `path` is no directory or holds nothing of a run; a file is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"{path} is not a directory; give the directory of a run")
        files = {subset: path / "predictions" / f"{subset}.npz" for subset in SUBSETS}
        run = cls(
            path=path,
            name=path.resolve().name,
            config=_read_config(path / "config.yaml"),
            metrics=_read_metrics(path / "metrics.json"),
            history=read_history(path),
            predictions={s: Predictions.load(file) for s, file in files.items() if file.is_file()},
        )
        if not (run.config or run.metrics or run.history or run.predictions):
            raise ValueError(
                f"{path} has none of config.yaml, history.csv, metrics.json, predictions/ and "
                "logger files; give the directory that spktrain made for the run"
            )
        return run

    def _notes(self) -> Iterator[str]:
        if self.history is None:
            yield (
                "No history.csv and no logger files: no epoch is finished, or none was logged. "
                "Learning curves and loss weights are left out."
            )
        elif self.history.source != "history.csv":
            yield (
                "No history.csv; learning curves were read from the files of "
                f"{self.history.source}."
            )
        if not self.finished:
            yield self._progress()
        if not self.metrics:
            yield "No metrics.json: the test phase has not finished, or the task is a stock one."
        # training writes an empty object for a subset without structures
        known = {*self.predictions, *(s for s in SUBSETS if self.metrics.get(s) == {})}
        if absent := [title for subset, title in SUBSETS.items() if subset not in known]:
            yield (
                f"No predictions for {' and '.join(absent)} structures (predictions/*.npz); "
                "`spk-softadapt report --predict` computes them from best_model."
            )
        for subset, predictions in self.predictions.items():
            for quantity, values in predictions.values.items():
                if not np.isfinite(values["error"]).all():
                    yield (
                        f"Some {quantity} values of the {SUBSETS[subset]} structures are not "
                        "finite; their errors cannot be given."
                    )

    def _progress(self) -> str:
        done, planned = self.n_epochs, self.setting("trainer.max_epochs")
        if done is None:
            return "The run is not finished: no epoch is logged."
        if done == planned:
            return f"All {planned} epochs are logged, but the test phase has not finished."
        # a stock run that is extended keeps the config.yaml of its first start
        of = f" of at most {planned}" if isinstance(planned, int) and planned > done else ""
        return f"The run goes on, or was stopped: {done}{of} epochs logged so far."

    @cached_property
    def errors(self) -> pd.DataFrame:
        """All errors, see `errors.COLUMNS`, subset by subset.

        From the predictions; for a subset without, from metrics.json or the best epoch's log.
        """
        return error_rows(self.predictions, self._known_errors)

    @property
    def descriptor(self) -> str | None:
        """What describes the atoms, in one line; None where the model has no descriptor."""
        file = self.path / "descriptor.txt"
        return file.read_text(encoding="utf-8").split("\n")[0] if file.is_file() else None

    def _known_errors(self, subset: str, quantity: Quantity) -> dict[str, Any] | None:
        """RMSE and MAE that files without single values tell, in `quantity.shown_unit`."""
        written = self.metrics.get(subset) or {}
        errors = {m: written[key] for m in METRICS if (key := quantity.metric_key(m)) in written}
        if errors:
            return {**errors, "source": "metrics.json"}
        for metric in METRICS:
            logged = self.logged_error(subset, quantity, metric)
            if logged and logged.unit == quantity.shown_unit and self.best_epoch is not None:
                errors[metric] = logged.values[self.history.epochs == self.best_epoch][0]
        return {**errors, "source": "history"} if errors else None

    def logged_losses(self) -> dict[str, np.ndarray]:
        """Training and validation loss over epochs that may share an axis, each (E,).

        SoftAdaptTask's `train_loss` carries the weights of the epoch and its `val_loss` does not:
        in its place stands the sum of the standardised components, or nothing for raw ones.
        """
        if self.history is None:
            return {}
        losses = {subset: self.history.get(f"{subset}_loss") for subset in ("train", "val")}
        if self.own_task:
            names = self.history.prefixed("weight_")
            components = [self.history.get(f"train_{name}_loss") for name in names]
            standardised = self.setting("task.standardize") is not False
            # pieces of a component that is split do not add up to it
            is_whole = not any(self._settings("task.outputs", "split")[0])
            is_known = components and standardised and all(c is not None for c in components)
            is_known = is_known and is_whole
            losses["train"] = np.sum(components, axis=0) if is_known else None
        return {subset: values for subset, values in losses.items() if values is not None}

    def logged_error(self, subset: str, quantity: Quantity, metric: str = "rmse") -> Logged | None:
        """A logged error over epochs in `quantity.shown_unit`, or in the unit of a stock task.

        SchNetPack's own tasks and metrics log errors of total energies, in the units of the data:
        those are converted to meV where the unit is known, and are not divided by the number of
        atoms.
        """
        key = self.model_key(quantity)
        values = self.history and self.history.get(f"{subset}_{key}_{metric}")
        if values is None:
            return None
        if self.own_task and not self._is_users_metric(key, metric):
            return Logged(values * quantity.shown_factor, quantity.shown_unit)
        unit = (self.setting("data.property_units") or {}).get(key)
        if unit is None:
            return Logged(values, "unit of the data")
        from schnetpack.units import convert_units

        factor = float(convert_units(unit, quantity.unit)) * quantity.shown_factor
        shown_unit = "meV per structure" if quantity is ENERGY else quantity.shown_unit
        return Logged(values * factor, shown_unit)

    def _is_users_metric(self, key: str, metric: str) -> bool:
        """Whether a logger got SchNetPack's metric of an output; history.csv always has ours."""
        names, metrics = self._settings("task.outputs", "name", "metrics")
        asked = [
            metric in (of or {}) for name, of in zip(names, metrics, strict=True) if name == key
        ]
        return self.history.source != "history.csv" and any(asked)

    def model_key(self, quantity: Quantity) -> str:
        """Name of the quantity in data and model, for instance energy_U0."""
        [keys] = self._settings("model.output_modules", quantity.module_key)
        [names] = self._settings("task.outputs", "name")
        keys.append(self.setting(f"globals.{quantity.name}_key"))
        keys += [name for name in names if str(name).startswith(quantity.name)]
        return next((key for key in keys if isinstance(key, str)), quantity.name)

    def data_key(self, key: str) -> str:
        """Name in the data of what the model calls `key`."""
        names, targets = self._settings("task.outputs", "name", "target_property")
        return dict(reversed([*zip(names, targets, strict=True)])).get(key) or key

    def setting(self, dotted: str) -> Any:
        """Entry of config.yaml, None where there is none or where it needs Hydra."""
        return OmegaConf.select(self.config, dotted, throw_on_resolution_failure=False)

    def _settings(self, section: str, *names: str) -> list[list[Any]]:
        """Entries of the dictionaries in a list of the config, a list for each name."""
        found = [e for e in self.setting(section) or [] if isinstance(e, DictConfig)]
        select = partial(OmegaConf.select, throw_on_resolution_failure=False)
        return [[select(entry, name) for entry in found] for name in names]


def _read_metrics(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); delete it to go on") from error


def _read_config(file: Path) -> DictConfig:
    try:
        return OmegaConf.create(OmegaConf.load(file) if file.is_file() else {})
    except Exception as error:  # YAML and OmegaConf errors share no base class
        raise ValueError(f"{file} cannot be read ({error})") from error
