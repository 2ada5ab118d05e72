"""Reads a run directory: everything a report needs, and what is missing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from schnetpack_softadapt.quantities import ENERGY, METRICS, SUBSETS, Quantity
from schnetpack_softadapt.reports.history import History, read_history
from schnetpack_softadapt.reports.predictions import Predictions

__all__ = ["Run", "Series", "read_config"]


@dataclass(frozen=True)
class Series:
    """Values over the epochs of a history, with the unit they are shown in."""

    values: np.ndarray  # (E,)
    unit: str


@dataclass
class Run:
    """One run directory. `notes` says in words what is missing or doubtful."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    history: History | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path | str) -> "Run":
        """Read `path`, a directory made by `spktrain`; a run that is not finished is read too.

        Raises:
            ValueError: `path` is no directory or holds nothing of a run; a file is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"{path} is not a directory; give the directory of a run")
        run = cls(path=path, config=read_config(path))
        run._read_metrics()
        run.history = read_history(path)
        for subset in SUBSETS:
            file = path / "predictions" / f"{subset}.npz"
            if file.is_file():
                run.predictions[subset] = Predictions.load(file)
        if not (run.config or run.metrics or run.history or run.predictions):
            raise ValueError(
                f"{path} has none of config.yaml, history.csv, metrics.json, predictions/ and "
                "logger files; give the directory that spktrain made for the run"
            )
        run._note_missing()
        run._note_disagreement()
        return run

    def _read_metrics(self) -> None:
        file = self.path / "metrics.json"
        if not file.is_file():
            return
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}); delete it to go on") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds a {type(content).__name__}, not an object")
        self.metrics = content

    def _note_missing(self) -> None:
        if self.history is None:
            self.notes.append(
                "No history.csv and no logger files: no epoch is finished, or none was logged. "
                "Learning curves and loss weights are left out."
            )
        elif self.history.source != "history.csv":
            self.notes.append(
                f"No history.csv; learning curves were read from the files of the "
                f"{self.history.source}."
                if self.history.source == "CSV logger"
                else "No history.csv; learning curves were read from TensorBoard's files."
            )
        if not self.finished:
            self.notes.append(self._progress())
        if not self.metrics:
            self.notes.append(
                "No metrics.json: the test phase has not finished, or the task is a stock one."
            )
        absent = [
            SUBSETS[subset]
            for subset in SUBSETS
            # Training writes an empty object for a subset without structures.
            if subset not in self.predictions and self.metrics.get(subset) != {}
        ]
        if absent:
            self.notes.append(
                f"No predictions for {' and '.join(absent)} structures (predictions/*.npz); "
                "`spk-softadapt report --predict` computes them from best_model."
            )
        for subset, predictions in self.predictions.items():
            for quantity in predictions.available():
                if not np.isfinite(predictions.compare(quantity).error).all():
                    self.notes.append(
                        f"Some {quantity.name} values of the {SUBSETS[subset]} structures are not "
                        "finite; their errors cannot be given."
                    )

    def _progress(self) -> str:
        done, planned = self.n_epochs, _get(self.config, "trainer.max_epochs")
        if done is None:
            return "The run is not finished: no epoch is logged."
        if done == planned:
            return f"All {planned} epochs are logged, but the test phase has not finished."
        # a stock run that is extended keeps the config.yaml of its first start
        of = f" of at most {planned}" if isinstance(planned, int) and planned > done else ""
        return f"The run goes on, or was stopped: {done}{of} epochs logged so far."

    def _note_disagreement(self) -> None:
        """Compare metrics.json with the predictions; both speak of the best model."""
        for subset, predictions in self.predictions.items():
            for quantity in predictions.available():
                stored = self.stored_metric(subset, quantity, "rmse")
                found = predictions.compare(quantity).rmse() * quantity.shown_factor
                # Predictions may be stored in single precision; 1 % is far above its rounding.
                if stored is not None and abs(stored - found) > 0.01 * max(abs(found), 1e-9):
                    self.notes.append(
                        f"metrics.json gives {stored:.4g} {quantity.shown_unit} as "
                        f"{SUBSETS[subset]} RMSE of {quantity.name}, the predictions give "
                        f"{found:.4g}; one of the two files is older than the model."
                    )

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def descriptor(self) -> str | None:
        """What describes the atoms, in one line; None where the model has no descriptor."""
        file = self.path / "descriptor.txt"
        return file.read_text(encoding="utf-8").split("\n")[0] if file.is_file() else None

    @property
    def finished(self) -> bool:
        """Whether training and test are through; best_model is there from the first epoch on."""
        return bool(self.metrics) or (self.path / "best_model.task").is_file()

    @property
    def own_task(self) -> bool:
        """Whether the run's task is of this package (energies logged per atom, in eV)."""
        return str(_get(self.config, "task._target_") or "").startswith("schnetpack_softadapt")

    @property
    def n_epochs(self) -> int | None:
        """Number of finished epochs."""
        if isinstance(self.metrics.get("epochs"), int):
            return self.metrics["epochs"]
        return None if self.history is None else int(self.history.epochs[-1]) + 1

    @property
    def wall_s(self) -> float | None:
        """Wall time of training in seconds."""
        stored = self.metrics.get("wall_s")
        if isinstance(stored, int | float):
            return float(stored)
        return None if self.history is None else self.history.wall_s

    @property
    def best_epoch(self) -> int | None:
        return None if self.history is None else self.history.best_epoch

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    def stored_metric(self, subset: str, quantity: Quantity, metric: str) -> float | None:
        """An error from metrics.json, in `quantity.shown_unit`."""
        value = (self.metrics.get(subset) or {}).get(quantity.metric_key(metric))
        return float(value) if isinstance(value, int | float) else None

    def logged_losses(self) -> dict[str, np.ndarray]:
        """Training and validation loss over epochs that may share an axis, each (E,).

        SoftAdaptTask's `train_loss` carries the weights of the epoch and its `val_loss` does not:
        in its place stands the sum of the standardised components, or nothing for raw ones.
        """
        if self.history is None:
            return {}
        losses = {subset: self.history.get(f"{subset}_loss") for subset in ("train", "val")}
        if self.own_task:
            losses["train"] = None
            components = self.history.prefixed("weight_")
            parts = [self.history.get(f"train_{name}_loss") for name in components]
            standardised = _get(self.config, "task.standardize") is not False
            if parts and standardised and all(part is not None for part in parts):
                losses["train"] = np.sum(parts, axis=0)
        return {subset: values for subset, values in losses.items() if values is not None}

    def logged_error(self, subset: str, quantity: Quantity, metric: str = "rmse") -> Series | None:
        """A logged error over epochs in `quantity.shown_unit`, or in the unit of a stock task.

        SchNetPack's own tasks and metrics log errors of total energies, in the units of the data:
        those are converted to meV where the unit is known, and are not divided by the number of
        atoms.
        """
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
        if self.history is None:
            return None
        values = self.history.get(f"{subset}_{quantity.metric_key(metric)}")
        if values is not None:
            return Series(values, quantity.shown_unit)
        key = self.output_key(quantity)
        values = self.history.get(f"{subset}_{key}_{metric}")
        if values is None:
            return None
        if self.own_task and not self._is_users_metric(key, metric):
            return Series(values * quantity.shown_factor, quantity.shown_unit)
        factor = self._ase_per_data_unit(quantity, key)
        if factor is None:
            return Series(values, "unit of the data")
        unit = "meV per structure" if quantity is ENERGY else quantity.shown_unit
        return Series(values * factor * quantity.shown_factor, unit)

    def output_key(self, quantity: Quantity) -> str:
        """Name of the quantity in data and model, for instance energy_U0."""
        for module in self._entries("model.output_modules"):
            if isinstance(known := self._value(module.get(quantity.module_key)), str):
                return known
        known = _get(self.config, f"globals.{quantity.name}_key")
        if isinstance(known, str):
            return known
        for output in self._entries("task.outputs"):
            name = self._value(output.get("name"))
            if isinstance(name, str) and name.startswith(quantity.name):
                return name
        return quantity.name

    def target_key(self, key: str) -> str:
        """Name in the data of what the model calls `key`."""
        for output in self._entries("task.outputs"):
            if self._value(output.get("name")) == key:
                return self._value(output.get("target_property")) or key
        return key

    def _is_users_metric(self, key: str, metric: str) -> bool:
        """Whether a logger got SchNetPack's metric of an output; history.csv always has ours."""
        return self.history.source != "history.csv" and any(
            self._value(output.get("name")) == key and metric in (output.get("metrics") or {})
            for output in self._entries("task.outputs")
        )

    def _entries(self, section: str) -> list[dict[str, Any]]:
        """The dictionaries in a list of the config."""
        return [entry for entry in _get(self.config, section) or [] if isinstance(entry, dict)]

    def _value(self, value: Any) -> Any:
        """A setting, followed where it is written as one interpolation, such as ${globals.lr}."""
        while isinstance(value, str) and value.startswith("${") and value.endswith("}"):
            value = _get(self.config, value[2:-1])
        return value

    def _ase_per_data_unit(self, quantity: Quantity, key: str) -> float | None:
        unit = (_get(self.config, "data.property_units") or {}).get(key)
        if unit is None:
            return None
        from schnetpack.units import convert_units

        return float(convert_units(unit, quantity.unit))


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run with interpolations as written; empty where there is none.

    Raises:
        ValueError: the file is not valid YAML.
    """
    file = path / "config.yaml"
    if not file.is_file():
        return {}
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # YAML and OmegaConf errors share no base class
        raise ValueError(f"{file} cannot be read ({error})") from error
    return content if isinstance(content, dict) else {}


def _get(config: dict[str, Any], dotted: str) -> Any:
    """Entry of a nested dictionary, None where a step is missing."""
    here: Any = config
    for step in dotted.split("."):
        if not isinstance(here, dict) or step not in here:
            return None
        here = here[step]
    return here
