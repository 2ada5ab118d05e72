"""Computes missing prediction files from a run's best_model, for any SchNetPack model.

Model and data are loaded as SchNetPack itself loads them; nothing is assumed of the model but its
outputs. References are read from the database without transforms, for transforms such as
RemoveOffsets change the targets that a batch carries, while best_model adds the offsets back.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .quantities import QUANTITIES, SUBSETS, Quantity
from .run import Run
from .style import write_atomically

__all__ = ["predict_missing"]


def predict_missing(
    run_dir: Path | str, datapath: Path | str | None = None, device: str = "cpu"
) -> list[Path]:
    """Write `predictions/<subset>.npz` for the subsets that have none; returns the files written.

    Args:
        run_dir: a run with config.yaml, split file and best_model
        datapath: the database, where it is no longer at the place that config.yaml names
        device: where the model runs

    Raises:
        ValueError: config.yaml, best_model, split file or database is missing, the database
            holds none of the model's outputs, or its units cannot be read.
    """
    run_dir = Path(run_dir).resolve()
    missing = [s for s in SUBSETS if not (run_dir / "predictions" / f"{s}.npz").is_file()]
    if not missing:
        return []
    for name in ("config.yaml", "best_model"):
        if not (run_dir / name).is_file():
            raise ValueError(
                f"{run_dir / name} is missing; predictions need config.yaml and best_model, which "
                "spktrain writes"
            )
    from schnetpack.utils import load_model

    with warnings.catch_warnings():
        # A pickled model can execute code when it is loaded, which is SchNetPack's way; what torch
        # says of it helps no user.
        warnings.simplefilter("ignore", FutureWarning)
        model = load_model(str(run_dir / "best_model"), device=device).eval()
    datamodule = _datamodule(run_dir, datapath)
    run = Run.read(run_dir)
    written = []
    for subset in missing:
        dataset = getattr(datamodule, f"{subset}_dataset")
        if not len(dataset):
            continue
        arrays = _predict(model, dataset, run, datamodule.val_batch_size, device, subset)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path = run_dir / "predictions" / f"{subset}.npz"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def _datamodule(run_dir: Path, datapath: Path | str | None) -> Any:
    """The run's data module after `setup`, with the split that the run used."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    config = OmegaConf.load(run_dir / "config.yaml")
    with open_dict(config):
        # Hydra's own directories are gone; SchNetPack's default is WORK_DIR/runs/RUN.
        config.run.work_dir = str(run_dir.parent.parent)
        if datapath is None:
            datapath = _find(config.data.datapath, run_dir)
        config.data.datapath = str(Path(datapath).resolve())
        config.data.num_workers = 0
        config.data.num_val_workers = config.data.num_test_workers = 0
        config.data.data_workdir = None
        config.data.train_sampler_cls = None
        if "store" in config.data:
            config.data.store = False  # one pass over the data does not repay a store
    # Relative paths are meant from the run's directory, where SchNetPack puts split and lock file.
    with contextlib.chdir(run_dir):
        datamodule = hydra.utils.instantiate(config.data)
        if not Path(datamodule.datapath).is_file():
            raise ValueError(
                f"the run's data {datamodule.datapath} are not there; give their place with --data"
            )
        split_file = datamodule.split_file
        if split_file is None or not Path(split_file).is_file():
            raise ValueError(
                f"{run_dir} has no split file ({split_file}); without it nobody knows which "
                "structures the run was trained on"
            )
        datamodule.setup()
    return datamodule


def _find(datapath: str, run_dir: Path) -> Path:
    """A relative path as SchNetPack means it, from the run's directory, or as a user would."""
    places = [folder / datapath for folder in (run_dir, run_dir.parent.parent, run_dir.parent)]
    return next((path for path in places if path.is_file()), places[0])


def _predict(
    model: Any, dataset: Any, run: Run, batch_size: int, device: str, subset: str
) -> dict[str, np.ndarray]:
    """Arrays of one predictions file, in ASE units."""
    import schnetpack.properties
    from schnetpack.data import AtomsLoader
    from tqdm import tqdm

    keys = {q.name: run.output_key(q) for q in QUANTITIES}
    predicted: dict[str, list[np.ndarray]] = {}
    loader = AtomsLoader(dataset, batch_size=batch_size, num_workers=0)
    for batch in tqdm(loader, desc=f"predicting {SUBSETS[subset]}", unit="batch", delay=2):
        batch = {key: value.to(device) for key, value in batch.items()}
        result = model(batch)
        for name, key in keys.items():
            if key in result:
                predicted.setdefault(name, []).append(result[key].detach().cpu().numpy())
    references: dict[str, list[np.ndarray]] = {}
    for sample in _references(dataset):
        for key, value in sample.items():
            references.setdefault(key, []).append(np.asarray(value))
    n_atoms = np.concatenate(references[schnetpack.properties.n_atoms]).reshape(-1)
    arrays = {
        "n_atoms": n_atoms,
        "numbers": np.concatenate(references[schnetpack.properties.Z]),
    }
    for quantity in QUANTITIES:
        key = keys[quantity.name]
        if quantity.name not in predicted or key not in references:
            continue
        factor = _to_ase(dataset, key, quantity)
        shape = {"energy": (-1,), "forces": (-1, 3), "stress": (-1, 3, 3)}[quantity.name]
        for name, parts in (
            (quantity.name, predicted[quantity.name]),
            (f"{quantity.name}_ref", references[key]),
        ):
            values = np.concatenate([part.reshape(shape) for part in parts]).astype(np.float64)
            arrays[name] = values * factor
    if len(arrays) == 2:
        raise ValueError(
            f"model and data of {run.path} share none of {', '.join(keys.values())}; nothing to "
            "compare"
        )
    mask = references.get("stress_mask")
    if "stress" in arrays and mask is not None:
        arrays["stress_mask"] = np.concatenate([part.reshape(-1) for part in mask])
    indices = np.concatenate(references[schnetpack.properties.idx]).reshape(-1)
    arrays.update(_groups(dataset, indices))
    return arrays


def _references(dataset: Any) -> Iterator[dict[str, Any]]:
    """Samples as in the database but for units, in the order of the data set."""
    yield from dataset.iter_properties(range(len(dataset)), load_structure=True)


def _groups(dataset: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
    metadata = dataset.metadata
    ids = (metadata.get("groups_ids") or {}).get("group")
    names = metadata.get("group_names")
    if ids is None or not names:
        return {}
    return {"group": np.asarray(ids)[indices], "group_names": np.asarray(names, dtype=str)}


def _to_ase(dataset: Any, key: str, quantity: Quantity) -> float:
    """Factor from the unit of the data, after the data module's conversion, to the ASE unit."""
    from schnetpack.units import convert_units

    unit = dataset.units[key]
    try:
        return float(convert_units(unit, quantity.ase_unit))
    except Exception as error:  # names are looked up in ase.units; Warning is raised too
        raise ValueError(
            f"{dataset.datapath}: unit {unit!r} of {key} is not one that SchNetPack reads "
            f"({error}); correct the database's metadata"
        ) from error
