"""Predictions beside references: the arrays of `predictions/<subset>.npz`, and their errors.

Whatever evaluates a model ends here: the end of a run (`results`), the report of a run without
predictions (`reports.predict`) and `spk-softadapt predict` (`deploy.predict`).
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from schnetpack import properties
from schnetpack.data import AtomsLoader
from tqdm import tqdm

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import (
    BY_NAME,
    METRICS,
    QUANTITIES,
    STRESS,
    SUBSETS,
    full_to_voigt,
)
from schnetpack_softadapt.training.text_table import text_table
from schnetpack_softadapt.training.units import unit_factor

__all__ = [
    "error_table",
    "predict_subset",
    "prediction_arrays",
    "prediction_errors",
    "write_predictions",
]


def prediction_arrays(
    index: Sequence[int],
    numbers: Sequence[np.ndarray],
    predicted: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Mapping[str, np.ndarray]],
    stress_mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Values of S structures with N atoms in all, as they stand in the file.

    Args:
        index: (S,) place of each structure in the data.
        numbers: (n_atoms,) atomic numbers of each structure.
        predicted, references: of each structure, by "energy", "forces", "stress"; eV, eV/Ang,
            eV/Ang^3. A quantity counts if the first structure has it.
        stress_mask: (S,) False where the stress is a placeholder; default: nowhere.

    Returns:
        index (S,), n_atoms (S,), numbers (N,); energy and energy_ref (S,), forces and forces_ref
        (N, 3), stress and stress_ref (S, 3, 3) in float64, and stress_mask (S,) bool.
    """
    arrays = {
        "index": np.array(index, dtype=np.int64),
        "n_atoms": np.array([len(z) for z in numbers], dtype=np.int64),
        "numbers": np.concatenate(numbers),
    }
    for q in QUANTITIES:
        for name, rows in ((q.name, predicted), (f"{q.name}_ref", references)):
            if q.name in rows[0]:
                values = [np.reshape(row[q.name], (-1, *q.shape)) for row in rows]
                arrays[name] = np.concatenate(values).astype(np.float64)
    if STRESS.name in arrays:
        given = np.ones(len(index)) if stress_mask is None else stress_mask
        arrays["stress_mask"] = np.reshape(given, -1) > 0
    return arrays


def predict_subset(
    model: torch.nn.Module,
    datamodule,
    subset: str,
    names: Mapping[str, tuple[str, str]],
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Predictions and references of a subset, see `prediction_arrays`, in the database's order.

    Predictions are those of the saved model, with all it adds after training (offsets); references
    are those of the database.

    Args:
        model: any SchNetPack model; its mode is restored.
        datamodule: after `setup`.
        subset: "train", "val" or "test".
        names: keys of prediction and reference, by "energy", "forces", "stress"; what the model or
            the data lack is left out.
        device: where the model is.

    Returns:
        `prediction_arrays`, and group (S,) with group_names where the database has groups.
    """
    dataset = getattr(datamodule, f"{subset}_dataset")
    if dataset is None or not len(dataset):
        return {"n_atoms": np.zeros(0, dtype=np.int64)}
    predicted = _evaluate(model, _loader(datamodule, subset), names, device, SUBSETS[subset])
    # without transforms: RemoveOffsets, for one, changes the references that a batch carries
    samples = dataset.iter_properties(range(len(dataset)), load_structure=True)
    samples = {int(sample[properties.idx]): sample for sample in samples}
    index = sorted(samples)
    factors = {
        kind: unit_factor(dataset.units[target], BY_NAME[kind].unit)
        for kind, (key, target) in names.items()
        if key in predicted[index[0]] and target in samples[index[0]]
    }

    def in_ase_units(found: Mapping, which: int) -> list[dict[str, np.ndarray]]:
        return [
            {k: np.float64(found[i][names[k][which]]) * factor for k, factor in factors.items()}
            for i in index
        ]

    has_mask = keys.stress_mask in samples[index[0]]
    arrays = prediction_arrays(
        index,
        [samples[i][properties.Z].numpy() for i in index],
        in_ase_units(predicted, 0),
        in_ase_units(samples, 1),
        np.array([float(samples[i][keys.stress_mask]) for i in index]) if has_mask else None,
    )
    groups = dataset.metadata.get("groups_ids", {}).get(keys.group)
    group_names = dataset.metadata.get("group_names")
    if group_names and groups is not None:
        arrays["group"], arrays["group_names"] = np.asarray(groups)[index], np.array(group_names)
    return arrays


def _evaluate(model, batches, names, device, title: str) -> dict[int, dict[str, np.ndarray]]:
    """Predictions of each structure by its index in the database.

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
            for kind, (key, _) in names.items():
                if key in result:
                    q, values = BY_NAME[kind], result[key].detach().cpu().numpy()
                    sections = stops if q.per_atom else len(index)
                    columns[key] = np.split(values.reshape(-1, *q.shape), sections)
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


def write_predictions(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write an npz file, whole or not at all; the folder is made."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_file(path, buffer.getvalue())


def prediction_errors(
    arrays: Mapping[str, np.ndarray], data_units: Mapping[str, str] | None = None
) -> dict[str, float]:
    """RMSE and MAE of the quantities in `prediction_arrays`, by the keys of metrics.json.

    Args:
        arrays: of a subset.
        data_units: kinds and units in which errors are wanted too, as in `energy_rmse_data_unit`;
            energies in these are those of whole structures, as SchNetPack's metrics are.
    """
    metrics = {}
    for q in QUANTITIES:
        if q.name not in arrays or f"{q.name}_ref" not in arrays:
            continue
        error = arrays[q.name] - arrays[f"{q.name}_ref"]
        if q is STRESS:
            # six numbers, not nine: shear components would count twice
            error = full_to_voigt(error[arrays["stress_mask"]])
        if not error.size:
            continue
        shown = error / arrays["n_atoms"] if q.name == "energy" else error
        errors = {q.suffix: shown * q.shown_factor}
        if data_units and q.name in data_units:
            errors["data_unit"] = error * unit_factor(q.unit, data_units[q.name])
        for ending, values in errors.items():
            metrics[f"{q.name}_rmse_{ending}"] = float(np.sqrt(np.mean(values**2)))
            metrics[f"{q.name}_mae_{ending}"] = float(np.mean(np.abs(values)))
    return metrics


def error_table(
    errors: Mapping[str, Mapping[str, float]], data_units: Mapping[str, str] | None = None
) -> str:
    """`prediction_errors` as text, a line for each entry of `errors`, between rules."""
    columns = [(q.name, q.suffix, q.shown_unit) for q in QUANTITIES]
    columns += [(kind, "data_unit", unit) for kind, unit in (data_units or {}).items()]
    table = [["RMSE (MAE)", *errors]]  # a line for each column, turned below
    for kind, suffix, unit in columns:
        pairs = [
            [row.get(f"{kind}_{metric}_{suffix}") for metric in METRICS] for row in errors.values()
        ]
        if any(rmse is not None for rmse, _ in pairs):
            cells = ["-" if rmse is None else f"{rmse:.4g} ({mae:.4g})" for rmse, mae in pairs]
            table.append([f"{kind} [{unit}]", *cells])
    header, rule, *rows = text_table(list(zip(*table, strict=True)))
    return "\n".join([rule, header, rule, *rows, rule])
