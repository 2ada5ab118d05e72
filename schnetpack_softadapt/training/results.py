"""The end of a run: errors of the best model, and its predictions.

Written are `metrics.json`, `predictions/{train,val,test}.npz` and, before training,
`descriptor.txt`; a table of errors is printed.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import BY_NAME, QUANTITIES, SUBSETS
from schnetpack_softadapt.training.predictions import (
    error_table,
    predict_subset,
    prediction_errors,
    write_predictions,
)
from schnetpack_softadapt.training.units import unit_factor

__all__ = ["ResultsWriter", "format_table"]

log = logging.getLogger(__name__)


class ResultsWriter(Callback):
    """At the end of the test, evaluates the tested model on all three subsets.

    At the start of training, the descriptor of a model that has one is written down.

    Every structure counts once, also where several ranks share the test: the samplers of DDP pad
    subsets with repeated structures, so the first rank evaluates them whole.

    Errors in metrics.json are in meV/atom, meV/Ang and MPa, see `prediction_errors`, and those of
    data in other units than eV and Ang also in these. `units` there names the units of such data
    and of the errors in history.csv.

    Args:
        dirpath: where the files go; the run directory.
        save_predictions: write the npz files.
    """

    def __init__(self, dirpath: str = ".", save_predictions: bool = True):
        self.dirpath = Path(dirpath).resolve()
        self.save_predictions = save_predictions
        self._table = ""

    def on_fit_start(self, trainer, pl_module) -> None:
        """Write the table of descriptors, too long for the terminal."""
        if not trainer.is_global_zero:
            return
        representation = getattr(pl_module.model, "representation", None)
        descriptor = getattr(representation, "descriptor", None)
        if descriptor is not None:
            path = self.dirpath / "descriptor.txt"
            write_file(path, f"{descriptor}\n")
            log.info("table of all descriptors: %s", path)

    def on_test_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            self._evaluate(trainer, pl_module)
        trainer.strategy.barrier("ResultsWriter")

    def _evaluate(self, trainer, task) -> None:
        metrics: dict[str, Any] = {}
        names = {c.kind: (c.name, c.target_property) for c in reversed(task.active) if c.kind}
        data_units = _data_units(trainer.datamodule.dataset, names)
        for subset, title in SUBSETS.items():
            arrays = predict_subset(task.model, trainer.datamodule, subset, names, task.device)
            metrics[subset] = {}
            if not len(arrays["n_atoms"]):
                log.warning("no %s structures: no %s errors", title, title)
                continue
            errors = prediction_errors(arrays, data_units)
            metrics[subset] = {key: e for key, e in errors.items() if math.isfinite(e)}
            if lost := errors.keys() - metrics[subset].keys():
                log.warning("no %s of the %s set: not finite", sorted(lost), title)
            if self.save_predictions:
                write_predictions(self.dirpath / "predictions" / f"{subset}.npz", arrays)
        metrics["units"] = {"history.csv": {kind: BY_NAME[kind].history_unit for kind in names}}
        if data_units:
            metrics["units"]["data"] = data_units
        metrics["epochs"] = task.epochs_done
        metrics["wall_s"] = round(task.wall_s, 3)
        write_file(self.dirpath / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        self._table = format_table(metrics)

    def teardown(self, trainer, pl_module, stage: str) -> None:
        """Print the table, after what Lightning prints of the test."""
        if self._table:
            print(self._table, flush=True)
            self._table = ""


def _data_units(dataset, names: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Units of a SchNetPack dataset that are not ASE's, by "energy", "forces", "stress"."""
    stated = dict(dataset.units)
    units = {kind: stated[target] for kind, (_, target) in names.items() if target in stated}
    return {
        kind: unit
        for kind, unit in units.items()
        if not math.isclose(unit_factor(unit, BY_NAME[kind].unit), 1.0)
    }


def format_table(metrics: dict[str, Any]) -> str:
    """The errors of all subsets as text, one line per subset."""
    data_units = metrics.get("units", {}).get("data", {})
    errors = {title: metrics.get(subset) or {} for subset, title in SUBSETS.items()}
    lines = [error_table(errors, data_units)]
    lines.append(f"best of {metrics['epochs']} epochs, {metrics['wall_s']:.0f} s of training")
    if "energy" in data_units:
        lines.append(f"energies in {data_units['energy']} are those of whole structures")
    if data_units:
        lines.append(f"history.csv has {', '.join(q.history_unit for q in QUANTITIES)}")
    return "\n".join(lines)
