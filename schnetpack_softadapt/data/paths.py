"""Paths as the user means them: spktrain changes into the run directory before it reads them."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path

__all__ = ["user_path"]


def user_path(path: str | os.PathLike) -> Path:
    """Absolute path; a relative one starts where the command was given, also under Hydra."""
    path = os.path.expanduser(os.fspath(path))
    if HydraConfig.initialized():
        return Path(to_absolute_path(path))
    return Path(path).absolute()
