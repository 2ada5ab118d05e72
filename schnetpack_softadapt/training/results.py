"""The end of a run: errors of the best model in people's units, and its predictions.

Written are `metrics.json` and `predictions/{train,val,test}.npz`; a table is printed.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from pytorch_lightning.callbacks import Callback
from schnetpack import properties
from schnetpack.data import AtomsLoader

from .. import properties as keys

__all__ = ["QUANTITIES", "ResultsWriter", "format_table", "predict", "subset_metrics"]

log = logging.getLogger(__name__)

#: kind of property: ending of its keys in metrics.json, unit in the table, unit per ASE unit
QUANTITIES = {
    "energy": ("meV_per_atom", "meV/atom", 1e3),
    "forces": ("meV_per_Ang", "meV/Å", 1e3),
    "stress": ("MPa", "MPa", 1e3 / units.GPa),
}
SUBSETS = {"train": "training", "val": "validation", "test": "test"}
VOIGT = (0, 4, 8, 5, 2, 1)


class ResultsWriter(Callback):
    """At the end of the test, evaluates the tested model on all three subsets.

    Every structure counts once, also where several ranks share the test: the samplers of DDP pad
    subsets with repeated structures, so the first rank evaluates them whole.

    Args:
        dirpath: where the files go; the run directory.
        save_predictions: write the npz files.
    """

    def __init__(self, dirpath: str = ".", save_predictions: bool = True):
        self.dirpath = Path(dirpath).resolve()
        self.save_predictions = save_predictions
        self._table = ""

    def on_test_end(self, trainer, pl_module) -> None:
        """Evaluate and write the files."""
        if trainer.is_global_zero:
            self._evaluate(trainer, pl_module)
        trainer.strategy.barrier("ResultsWriter")

    def _evaluate(self, trainer, task) -> None:
        metrics: dict[str, Any] = {}
        names = trainer.datamodule.dataset.metadata.get("group_names") or []
        for subset in SUBSETS:
            arrays = predict(task, trainer.datamodule, subset)
            if not len(arrays["n_atoms"]):
                log.warning("no %s structures: no %s errors", SUBSETS[subset], SUBSETS[subset])
                metrics[subset] = {}
                continue
            metrics[subset] = subset_metrics(arrays)
            if self.save_predictions:
                if "group" in arrays and names:
                    arrays["group_names"] = np.array(names)
                _save_npz(self.dirpath / "predictions" / f"{subset}.npz", arrays)
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


def predict(task, datamodule, subset: str) -> dict[str, np.ndarray]:
    """Predictions and references of a subset, in the order of the database, ASE units, float64.

    Keys: energy, energy_ref (S,) eV as the loss sees them (without what a preprocessing transform
    has taken off), n_atoms (S,), numbers (N,), index (S,) in the database, forces and forces_ref
    (N, 3) eV/Ang, stress and stress_ref (S, 3, 3) eV/Ang^3, stress_mask (S,) bool, group (S,).
    What the task has no component for is absent.
    """
    components = {c.kind: c for c in reversed(task.active) if c.kind is not None}
    training = task.training
    task.eval()
    parts: list[dict[str, np.ndarray]] = []
    try:
        for batch in _loader(datamodule, subset):
            batch = {k: v.to(task.device) for k, v in batch.items()}
            with torch.set_grad_enabled(task.grad_enabled):
                pred = task.predict_without_postprocessing(dict(batch))
            parts += _split(pred, batch, components)
    finally:
        task.train(training)
    # a sampler may give a structure twice, and gives the training set in random order
    by_index = {int(part["index"][0]): part for part in parts}
    parts = [by_index[index] for index in sorted(by_index)]
    if not parts:
        return {"n_atoms": np.zeros(0, dtype=np.int64)}
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _loader(datamodule, subset: str) -> Iterable[dict[str, torch.Tensor]]:
    dataset = getattr(datamodule, f"{subset}_dataset")
    if dataset is None or not len(dataset):
        return ()
    if subset == "train" and datamodule.train_sampler_cls is not None:
        # such a sampler may leave structures out
        return AtomsLoader(dataset, batch_size=datamodule.val_batch_size)
    return getattr(datamodule, f"{subset}_dataloader")()


def _split(pred, batch, components) -> list[dict[str, np.ndarray]]:
    """The structures of a batch one by one, as float64 arrays."""
    n_atoms = batch[properties.n_atoms].cpu().numpy()
    stops = np.cumsum(n_atoms)[:-1]
    n = len(n_atoms)

    def numpy(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().double().cpu().numpy()

    columns: dict[str, list[np.ndarray]] = {
        "index": np.split(batch[properties.idx].reshape(-1).cpu().numpy(), n),
        "n_atoms": np.split(n_atoms, n),
        "numbers": np.split(batch[properties.Z].cpu().numpy(), stops),
    }
    shapes = {"energy": (-1,), "forces": (-1, 3), "stress": (-1, 3, 3)}
    for kind, c in components.items():
        for key, source in (
            (kind, pred[c.name]),
            (f"{kind}_ref", batch[c.target_property]),
        ):
            values = numpy(source).reshape(shapes[kind]) * c.to_ase
            columns[key] = np.split(values, stops if kind == "forces" else n)
        mask = c.mask(batch)
        if kind == "stress":
            known = np.ones(n, bool) if mask is None else numpy(mask).reshape(-1) > 0
            columns["stress_mask"] = np.split(known, n)
    if keys.group in batch:
        columns["group"] = np.split(batch[keys.group].reshape(-1).cpu().numpy(), n)
    return [{key: values[i] for key, values in columns.items()} for i in range(n)]


def subset_metrics(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """RMSE and MAE of the quantities in the arrays of `predict`, by the keys of metrics.json."""
    metrics = {}
    for kind, (suffix, _, factor) in QUANTITIES.items():
        if kind not in arrays:
            continue
        error = arrays[kind] - arrays[f"{kind}_ref"]
        if kind == "energy":
            error = error / arrays["n_atoms"]
        if kind == "stress":
            # six numbers, not nine: shear components would count twice
            error = error[arrays["stress_mask"]]
            error = (0.5 * (error + error.transpose(0, 2, 1))).reshape(-1, 9)[:, VOIGT]
        if error.size:
            metrics[f"{kind}_rmse_{suffix}"] = float(np.sqrt(np.mean(error**2))) * factor
            metrics[f"{kind}_mae_{suffix}"] = float(np.mean(np.abs(error))) * factor
    return metrics


def format_table(metrics: dict[str, Any]) -> str:
    """The errors of all subsets as text, one line per subset."""
    kinds = [
        kind
        for kind, (suffix, _, _) in QUANTITIES.items()
        if any(f"{kind}_rmse_{suffix}" in metrics.get(s, {}) for s in SUBSETS)
    ]
    header = ["RMSE (MAE)", *[f"{kind} [{QUANTITIES[kind][1]}]" for kind in kinds]]
    rows = [header]
    for subset, title in SUBSETS.items():
        values = metrics.get(subset) or {}
        row = [title]
        for kind in kinds:
            suffix = QUANTITIES[kind][0]
            rmse, mae = (values.get(f"{kind}_{m}_{suffix}") for m in ("rmse", "mae"))
            row.append("-" if rmse is None else f"{rmse:.4g} ({mae:.4g})")
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    end = f"best of {metrics['epochs']} epochs, {metrics['wall_s']:.0f} s of training"
    return "\n".join([rule, lines[0].rstrip(), rule, *(x.rstrip() for x in lines[1:]), rule, end])


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:  # a file object: savez would append .npz to the name
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
