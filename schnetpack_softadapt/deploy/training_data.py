"""The set that a model was trained on, found from the run directory alone."""

from pathlib import Path

from ase import Atoms
from omegaconf import OmegaConf

from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.data.paths import run_config, run_database
from schnetpack_softadapt.data.splitting import load_split

__all__ = ["training_set", "training_structure"]


def training_structure(model: str | Path) -> Atoms:
    """The largest structure of a run's training set (the first of equals), in Ang.

    Arguments and errors are those of `training_set`.
    """
    return max(training_set(model).structures(), key=lambda s: s.n_atoms).to_atoms()


def training_set(model: str | Path) -> InMemoryAtomsData:
    """A run's training structures without labels, in Ang.

    Args:
        model: a run directory, or a file in it, such as its `best_model`.

    Raises:
        FileNotFoundError: not in a run directory, or the run's database or split is not there.
        ValueError: the split does not belong to the database.
    """
    run_dir = Path(model).resolve()
    run_dir = run_dir if run_dir.is_dir() else run_dir.parent
    config = run_config(run_dir)
    database = run_database(run_dir, config)
    dataset = InMemoryAtomsData(str(database), load_properties=[], distance_unit="Ang")
    split_file = run_dir / (OmegaConf.select(config, "data.split_file") or "split.npz")
    if not split_file.is_file():
        raise FileNotFoundError(f"no split file at {split_file}")
    return dataset.subset(load_split(split_file, len(dataset)).train)
