"""Paths as the user means them: spktrain changes into the run directory before it reads them."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

__all__ = ["run_config", "run_database", "user_path"]


def user_path(path: str | os.PathLike) -> Path:
    """Absolute path; a relative one starts where the command was given, also under Hydra."""
    path = os.path.expanduser(os.fspath(path))
    if HydraConfig.initialized():
        return Path(to_absolute_path(path))
    return Path(path).absolute()


def run_config(run_dir: Path) -> DictConfig:
    """config.yaml of a run, whose interpolations need no Hydra.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(f"{run_dir} is no run directory: it has no config.yaml")
    config = OmegaConf.load(run_dir / "config.yaml")
    # what Hydra put in has gone with it; SchNetPack's default is WORK_DIR/runs/RUN
    OmegaConf.update(config, "run.work_dir", str(run_dir.resolve().parent.parent))
    return config


def run_database(run_dir: Path, config: DictConfig) -> Path:
    """Where a run's database is; where it would be, if it is nowhere.

    A relative path is sought from the run directory, where SchNetPack reads it, and from where
    `spktrain` was called: the folder around `runs`, or around the run.

    Raises:
        FileNotFoundError: the config names no database.
    """
    datapath = OmegaConf.select(config, "data.datapath")
    if datapath is None:
        raise FileNotFoundError(f"{run_dir / 'config.yaml'} names no database")
    run_dir = run_dir.resolve()
    places = [folder / datapath for folder in (run_dir, run_dir.parent.parent, run_dir.parent)]
    return next((path for path in places if path.is_file()), places[0])
