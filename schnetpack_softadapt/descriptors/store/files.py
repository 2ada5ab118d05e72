"""Files of a descriptor store: arrays mapped into memory, checksums, claims.

Arrays are plain `.npy` files, so that `numpy.load` reads them without this package.
"""

import contextlib
import json
import os
import weakref
import zlib
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: stores are not claimed, and none is removed
    fcntl = None

__all__ = [
    "MANIFEST",
    "StoreError",
    "checksum",
    "claim",
    "map_array",
    "n_checked_parts",
    "remove_store",
    "write_header",
]

#: describes the store: what is in a folder without it is none
MANIFEST = "manifest.json"

#: bytes of a file that have a checksum of their own
PART_BYTES = 1 << 24


class StoreError(ValueError):
    """A descriptor store that is not there, not finished, damaged, or made from other data."""


def write_header(file, shape: tuple[int, ...], dtype) -> None:
    """Begin a `.npy` file, to which the numbers are then written in order."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def map_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read-only map of a `.npy` file.

    Raises:
        StoreError: the file is missing, cut off, or of another shape or dtype.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, SyntaxError) as error:
        raise StoreError(f"{path.name} cannot be read ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise StoreError(f"{path.name} holds {array.dtype} {array.shape}, not {dtype} {shape}")
    # a plain array over the map: subclasses are slow to pass to compiled functions
    return np.asarray(array)


def n_checked_parts(path: Path) -> int:
    """How many checksums a file has."""
    return -(-path.stat().st_size // PART_BYTES)


def checksum(path: Path, part: int) -> int:
    """CRC-32 of a part of a file."""
    crc = 0
    with open(path, "rb") as file:
        file.seek(part * PART_BYTES)
        for size in [1 << 20] * (PART_BYTES >> 20):
            crc = zlib.crc32(file.read(size), crc)
    return crc


def claim(folder: Path, holder: object) -> None:
    """Keep `remove_store` away from a store as long as `holder` lives.

    Raises:
        StoreError: there is no store, or it is being removed at this moment.
    """
    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"no descriptor store at {folder}") from error
    weakref.finalize(holder, os.close, descriptor)
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{folder} is being removed") from None
        except OSError:  # a file system without locks, where nothing is removed either
            pass


def remove_store(folder: Path, database: str) -> int:
    """Remove a store if it is of that database and nobody has claimed it.

    Returns:
        the number of bytes that this has freed.
    """
    if fcntl is None:
        return 0
    try:
        with open(folder / MANIFEST, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            manifest = json.load(file)
            if manifest["database"] != database:
                return 0
            # its description first: what is left after an interruption is no store
            paths = [folder / MANIFEST, *(folder / f"{name}.npy" for name in manifest["arrays"])]
            size = sum(path.stat().st_size for path in paths)
            for path in paths:
                path.unlink()
            with contextlib.suppress(OSError):  # files of the user stay
                folder.rmdir()
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return size
