"""Missing predictions of a run, from its best_model, for any SchNetPack model.

Model and data are loaded as SchNetPack itself loads them; what is written is what training writes,
see `training.predictions`.
"""

import contextlib
from pathlib import Path
from typing import Any

from schnetpack_softadapt.data.paths import run_config, run_database
from schnetpack_softadapt.quantities import QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.run import Run

__all__ = ["predict_missing"]


def predict_missing(
    run_dir: Path | str, datapath: Path | str | None = None, device: str = "cpu"
) -> list[Path]:
    """Write `predictions/<subset>.npz` for the subsets that have none; returns the files written.

    Args:
        run_dir: a run with config.yaml, split file and best_model
        datapath: the database, where it is no longer at the place that config.yaml names

    Raises:
        ValueError: config.yaml, best_model, split file or database is missing or damaged, the
            database holds no labels of what the model gives, or its units cannot be read.
    """
    run_dir = Path(run_dir).resolve()
    files = {subset: run_dir / "predictions" / f"{subset}.npz" for subset in SUBSETS}
    files = {subset: file for subset, file in files.items() if not file.is_file()}
    if not files:
        return []
    for name in ("config.yaml", "best_model"):
        if not (run_dir / name).is_file():
            raise ValueError(
                f"{run_dir / name} is missing; predictions need config.yaml and best_model, which "
                "spktrain writes"
            )
    from schnetpack.utils import load_model

    from schnetpack_softadapt.model.outputs import property_kinds
    from schnetpack_softadapt.training.predictions import predict_subset, write_predictions

    try:
        # a pickle, which can execute code
        model = load_model(str(run_dir / "best_model"), device=device)
    except Exception as error:  # a broken pickle can raise anything
        path = run_dir / "best_model"
        raise ValueError(f"{path} cannot be loaded as a model: {error!r}") from error
    datamodule = _datamodule(run_dir, datapath)
    run = Run.read(run_dir)
    keys = {kind: key for key, kind in property_kinds(model).items()}
    keys = {q.name: keys.get(q.name, run.model_key(q)) for q in QUANTITIES}
    names = {kind: (key, run.data_key(key)) for kind, key in keys.items()}
    written = []
    for subset, file in files.items():
        arrays = predict_subset(model, datamodule, subset, names, device)
        if len(arrays["n_atoms"]):
            if not arrays.keys() & keys.keys():
                shared = ", ".join(keys.values())
                raise ValueError(f"model and data of {run_dir} share none of {shared}")
            written.append(write_predictions(file, arrays))
    return written


def _datamodule(run_dir: Path, datapath: Path | str | None) -> Any:
    """The run's data module after `setup`, with the split that the run used."""
    import hydra
    import hydra.errors
    from omegaconf import open_dict

    config = run_config(run_dir)
    if datapath is None:
        datapath = run_database(run_dir, config)
    with open_dict(config):
        config.data.datapath = str(Path(datapath).resolve())
        config.data.num_workers = 0
        config.data.num_val_workers = config.data.num_test_workers = 0
        config.data.data_workdir = None
        config.data.train_sampler_cls = None
        if "store" in config.data:
            config.data.store = False  # one pass over the data does not repay a store
    # Relative paths are meant from the run's directory, where SchNetPack puts split and lock file.
    with contextlib.chdir(run_dir):
        try:
            datamodule = hydra.utils.instantiate(config.data)
        except hydra.errors.InstantiationException as error:
            raise ValueError(f"{run_dir / 'config.yaml'}, section data: {error}") from error
        if not Path(datamodule.datapath).is_file():
            raise ValueError(
                f"the run's data {datamodule.datapath} are not there; give their place with --data"
            )
        split_file = datamodule.split_file
        if split_file is None or not Path(split_file).is_file():
            raise ValueError(
                f"{run_dir} has no split file ({split_file}), which says what structures the run"
                " was trained on"
            )
        datamodule.setup()
    return datamodule
