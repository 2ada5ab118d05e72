"""A structure of the set that a model was trained on, found from the run directory alone."""

from pathlib import Path

from ase import Atoms
from omegaconf import OmegaConf

from ..data.dataset import InMemoryAtomsData
from ..data.split_file import load_split

__all__ = ["training_structure"]


def training_structure(model: str | Path) -> Atoms:
    """The largest structure of a run's training set (the first of several), in Ang.

    Args:
        model: a run directory, or a file in it, such as its `best_model`.

    Raises:
        FileNotFoundError: not in a run directory, or the run's database or split is not there.
        ValueError: the split does not belong to the database.
    """
    run_dir = Path(model).resolve()
    run_dir = run_dir if run_dir.is_dir() else run_dir.parent
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(f"{run_dir} is no run directory: it has no config.yaml")
    config = OmegaConf.load(run_dir / "config.yaml")
    # what Hydra put in has gone with it; SchNetPack's default is WORK_DIR/runs/RUN
    OmegaConf.update(config, "run.work_dir", str(run_dir.parent.parent))
    datapath = OmegaConf.select(config, "data.datapath")
    if datapath is None:
        raise FileNotFoundError(f"{run_dir / 'config.yaml'} names no database")
    database = run_dir.parent.parent / datapath
    dataset = InMemoryAtomsData(str(database), load_properties=[], distance_unit="Ang")
    split_file = run_dir / (OmegaConf.select(config, "data.split_file") or "split.npz")
    if not split_file.is_file():
        raise FileNotFoundError(f"no split file at {split_file}")
    train = load_split(split_file, len(dataset)).train
    return max(dataset.subset(train).structures(), key=lambda s: s.n_atoms).to_atoms()
