"""Finds the public data and reference values that tests use but the project does not ship."""

import os
from pathlib import Path

import pytest

__all__ = ["shared_path"]


def shared_path(name: str) -> Path:
    """Path of a file or folder of the shared data; skips the test when it is not there.

    The folder is `$SOFTADAPT_SHARED`, or `shared` beside the repository.
    """
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("SOFTADAPT_SHARED", default)) / name
    if not path.exists():
        pytest.skip(f"public data {name!r} not found; set SOFTADAPT_SHARED to its folder")
    return path
