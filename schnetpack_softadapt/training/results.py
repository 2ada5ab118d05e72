"""The end of a run: errors of the best model in people's units, and its predictions.

Written are `metrics.json`, `predictions/{train,val,test}.npz` and, before training,
`symmetry_functions.txt` and the settings of a resumed run; a table of errors is printed.
"""

import io
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback
from schnetpack import properties
from schnetpack.data import AtomsLoader
from tqdm import tqdm

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.quantities import BY_NAME, QUANTITIES, SUBSETS, full_to_voigt
from schnetpack_softadapt.training.units import unit_factor

__all__ = [
    "ResultsWriter",
    "format_table",
    "predict",
    "subset_metrics",
    "write_predictions",
]

log = logging.getLogger(__name__)


class ResultsWriter(Callback):
    """At the end of the test, evaluates the tested model on all three subsets.

    At the start of training, the symmetry functions of a model that has some are written down, and
    config.yaml of a resumed run gets its present settings.

    Every structure counts once, also where several ranks share the test: the samplers of DDP pad
    subsets with repeated structures, so the first rank evaluates them whole.

    Errors in metrics.json are in meV/atom, meV/Ang and MPa, see `subset_metrics`, and those of data
    in other units than eV and Ang also in these. `units` there names the units of such data and of
    the errors in history.csv.

    Args:
        dirpath: where the files go; the run directory.
        save_predictions: write the npz files.
    """

    def __init__(self, dirpath: str = ".", save_predictions: bool = True):
        self.dirpath = Path(dirpath).resolve()
        self.save_predictions = save_predictions
        self._table = ""

    def on_fit_start(self, trainer, pl_module) -> None:
        """Write the settings, and the table of symmetry functions, too long for the terminal."""
        if not trainer.is_global_zero:
            return
        if trainer.ckpt_path is not None:
            _update_config(self.dirpath / "config.yaml")
        layout = getattr(getattr(pl_module.model, "representation", None), "layout", None)
        if layout is not None:
            path = self.dirpath / "symmetry_functions.txt"
            _replace(path, f"{layout}\n".encode())
            log.info("table of all symmetry functions: %s", path)

    def on_test_end(self, trainer, pl_module) -> None:
        """Evaluate and write the files."""
        if trainer.is_global_zero:
            self._evaluate(trainer, pl_module)
        trainer.strategy.barrier("ResultsWriter")

    def _evaluate(self, trainer, task) -> None:
        metrics: dict[str, Any] = {}
        outputs = {c.kind: (c.name, c.target_property) for c in reversed(task.active) if c.kind}
        units = _data_units(trainer.datamodule.dataset, outputs)
        for subset in SUBSETS:
            arrays = predict(task.model, trainer.datamodule, subset, outputs, task.device)
            if not len(arrays["n_atoms"]):
                log.warning("no %s structures: no %s errors", SUBSETS[subset], SUBSETS[subset])
                metrics[subset] = {}
                continue
            errors = subset_metrics(arrays, units)
            metrics[subset] = {key: e for key, e in errors.items() if math.isfinite(e)}
            if lost := errors.keys() - metrics[subset].keys():
                log.warning("no %s of the %s set: not finite", sorted(lost), SUBSETS[subset])
            if self.save_predictions:
                write_predictions(self.dirpath, subset, arrays)
        metrics["units"] = {"history.csv": {kind: BY_NAME[kind].history_unit for kind in outputs}}
        if units:
            metrics["units"]["data"] = units
        metrics["epochs"] = task.epochs_done
        metrics["wall_s"] = round(task.wall_s, 3)
        text = json.dumps(metrics, indent=2) + "\n"
        _replace(self.dirpath / "metrics.json", text.encode())
        self._table = format_table(metrics)

    def teardown(self, trainer, pl_module, stage: str) -> None:
        """Print the table, after what Lightning prints of the test."""
        if self._table:
            print(self._table, flush=True)
            self._table = ""


def predict(
    model: torch.nn.Module,
    datamodule,
    subset: str,
    outputs: Mapping[str, tuple[str, str]],
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Predictions and references of a subset: the arrays of `predictions/<subset>.npz`.

    Predictions are those of the saved model, with all it adds after training (offsets); references
    are those of the database. In its order; eV, eV/Ang, eV/Ang^3, float64 (S structures, N atoms).

    Args:
        model: any SchNetPack model; its mode is restored.
        datamodule: after `setup`.
        subset: "train", "val" or "test".
        outputs: keys of prediction and reference, by "energy", "forces", "stress".
        device: where the model is.

    Returns:
        index (S,) in the database, n_atoms (S,), numbers (N,); energy and energy_ref (S,), forces
        and forces_ref (N, 3), stress and stress_ref (S, 3, 3), stress_mask (S,) bool; group (S,)
        and group_names. What the model or the data lack is absent.
    """
    dataset = getattr(datamodule, f"{subset}_dataset")
    if dataset is None or not len(dataset):
        return {"n_atoms": np.zeros(0, dtype=np.int64)}
    predicted = _predicted(model, _loader(datamodule, subset), outputs, device, SUBSETS[subset])
    # without transforms: RemoveOffsets, for one, changes the references that a batch carries
    samples = dataset.iter_properties(range(len(dataset)), load_structure=True)
    known = {int(sample[properties.idx]): sample for sample in samples}
    order = sorted(known)

    def join(parts, key: str) -> np.ndarray:
        return np.concatenate([np.asarray(parts[k][key]) for k in order])

    arrays = {
        "index": np.array(order),
        "n_atoms": join(known, properties.n_atoms),
        "numbers": join(known, properties.Z),
    }
    for kind, (key, target) in outputs.items():
        if key not in predicted[order[0]] or target not in known[order[0]]:
            continue
        factor = unit_factor(dataset.units[target], BY_NAME[kind].unit)
        for name, parts, source in ((kind, predicted, key), (f"{kind}_ref", known, target)):
            values = join(parts, source).reshape(-1, *BY_NAME[kind].shape)
            arrays[name] = values.astype(np.float64) * factor
    if "stress" in arrays:
        has_mask = keys.stress_mask in known[order[0]]
        mask = join(known, keys.stress_mask) if has_mask else np.ones(len(order))
        arrays["stress_mask"] = mask.reshape(-1) > 0
    metadata = dataset.metadata
    groups, names = metadata.get("groups_ids", {}).get(keys.group), metadata.get("group_names")
    if names and groups is not None:
        arrays["group"], arrays["group_names"] = np.asarray(groups)[order], np.array(names, str)
    return arrays


def _predicted(model, batches, outputs, device, title: str) -> dict[int, dict[str, np.ndarray]]:
    """Outputs of each structure by its index in the database.

    A loader may shuffle, and its sampler may give a structure twice.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    modes = model.training, model.do_postprocessing
    model.eval()
    model.do_postprocessing = True
    try:
        bar = tqdm(batches, f"predicting {title}", unit="batch", delay=2, leave=False, disable=None)
        for batch in bar:
            batch = {key: value.to(device) for key, value in batch.items()}
            index = batch[properties.idx].reshape(-1).tolist()
            stops = batch[properties.n_atoms].cumsum(0)[:-1].cpu().numpy()
            with torch.enable_grad():
                result = model(batch)
            columns = {}
            for kind, (key, _) in outputs.items():
                if key in result:
                    values = result[key].detach().cpu().numpy().reshape(-1, *BY_NAME[kind].shape)
                    columns[key] = np.split(values, stops if BY_NAME[kind].per_atom else len(index))
            for k, structure in enumerate(index):
                found[structure] = {key: values[k] for key, values in columns.items()}
    finally:
        model.train(modes[0])
        model.do_postprocessing = modes[1]
    return found


def _loader(datamodule, subset: str) -> Iterable[dict[str, torch.Tensor]]:
    if subset == "train" and datamodule.train_sampler_cls is not None:
        # such a sampler may leave structures out
        return AtomsLoader(datamodule.train_dataset, batch_size=datamodule.val_batch_size)
    return getattr(datamodule, f"{subset}_dataloader")()


def write_predictions(run_dir: Path, subset: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write `predictions/<subset>.npz` of a run, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = run_dir / "predictions" / f"{subset}.npz"
    _replace(path, buffer.getvalue())
    return path


def _data_units(dataset, outputs: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Units of a SchNetPack dataset that are not ASE's, by "energy", "forces", "stress"."""
    units = dict(dataset.units)
    units = {kind: units[target] for kind, (_, target) in outputs.items() if target in units}
    return {
        kind: unit
        for kind, unit in units.items()
        if not math.isclose(unit_factor(unit, BY_NAME[kind].unit), 1.0)
    }


def subset_metrics(
    arrays: dict[str, np.ndarray], data_units: Mapping[str, str] | None = None
) -> dict[str, float]:
    """RMSE and MAE of the quantities in the arrays of `predict`, by the keys of metrics.json.

    Args:
        arrays: of a subset.
        data_units: kinds and units in which errors are wanted too, as in `energy_rmse_data_unit`;
            energies in these are those of whole structures, as SchNetPack's metrics are.
    """
    metrics = {}
    for quantity in QUANTITIES:
        kind = quantity.name
        if kind not in arrays:
            continue
        error = arrays[kind] - arrays[f"{kind}_ref"]
        if kind == "stress":
            # six numbers, not nine: shear components would count twice
            error = full_to_voigt(error[arrays["stress_mask"]])
        if not error.size:
            continue
        shown = error / arrays["n_atoms"] if kind == "energy" else error
        errors = {quantity.suffix: shown * quantity.shown_factor}
        if data_units and kind in data_units:
            errors["data_unit"] = error * unit_factor(quantity.unit, data_units[kind])
        for ending, values in errors.items():
            metrics[f"{kind}_rmse_{ending}"] = float(np.sqrt(np.mean(values**2)))
            metrics[f"{kind}_mae_{ending}"] = float(np.mean(np.abs(values)))
    return metrics


def format_table(metrics: dict[str, Any]) -> str:
    """The errors of all subsets as text, one line per subset."""
    data_units = metrics.get("units", {}).get("data", {})
    columns = [(q.name, q.suffix, q.shown_unit) for q in QUANTITIES]
    columns += [(kind, "data_unit", unit) for kind, unit in data_units.items()]
    columns = [
        column
        for column in columns
        if any("{}_rmse_{}".format(*column) in metrics.get(s, {}) for s in SUBSETS)
    ]
    header = ["RMSE (MAE)", *[f"{kind} [{unit}]" for kind, _, unit in columns]]
    rows = [header]
    for subset, title in SUBSETS.items():
        values = metrics.get(subset) or {}
        row = [title]
        for kind, suffix, _ in columns:
            rmse, mae = (values.get(f"{kind}_{m}_{suffix}") for m in ("rmse", "mae"))
            row.append("-" if rmse is None else f"{rmse:.4g} ({mae:.4g})")
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    end = [f"best of {metrics['epochs']} epochs, {metrics['wall_s']:.0f} s of training"]
    if "energy" in data_units:
        end.append(f"energies in {data_units['energy']} are those of whole structures")
    if data_units:
        end.append(f"history.csv has {', '.join(q.history_unit for q in QUANTITIES)}")
    return "\n".join([rule, lines[0].rstrip(), rule, *(x.rstrip() for x in lines[1:]), rule, *end])


def _update_config(path: Path) -> None:
    """Write the settings of this start of `spktrain` into config.yaml; the seed is the run's first.

    Upstream writes config.yaml on the first start only, and on the others copies it to
    config.old.N.yaml: all that reads it would take an extended run for the shorter one.
    """
    if not path.is_file() or not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    config, first = compose(hydra.job.config_name, list(hydra.overrides.task)), OmegaConf.load(path)
    with open_dict(config):
        config.pop("seed", None)
        if "seed" in first:
            config.seed = first.seed
    _replace(path, OmegaConf.to_yaml(config).encode())


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
