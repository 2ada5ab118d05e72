"""Files of a descriptor store: arrays that many write at once, checksums, the journal of a build,
and of which database it is.

Arrays are plain `.npy` files, so that `numpy.load` reads them without this package.
"""

import contextlib
import json
import os
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: stores are not claimed, and none is removed
    fcntl = None

__all__ = [
    "ORIGIN",
    "Shard",
    "StoreError",
    "append_journal",
    "checksums",
    "claim",
    "create_array",
    "file_checksum",
    "map_array",
    "read_journal",
    "remove_store",
    "size_on_disk",
    "write_atomically",
    "write_rows",
]

#: names the database to which a store belongs; locked while somebody builds or reads the store
ORIGIN = "origin.json"

_CHUNK = 1 << 20  # bytes read at a time for a checksum


class StoreError(ValueError):
    """A descriptor store that is not there, not finished, damaged, or made from other data."""


@dataclass(frozen=True)
class Shard:
    """Consecutive atoms whose part of the store is computed, written and checked as one.

    Attributes:
        rows: first and last + 1 row (atom) of the store.
        blocks: first and last + 1 block.
        crc: checksum (CRC-32) of the shard's part of each array, by name.
    """

    rows: tuple[int, int]
    blocks: tuple[int, int]
    crc: dict[str, int]

    def range_of(self, name: str) -> tuple[int, int]:
        """Range of the shard along the first axis of an array."""
        return self.rows if name in ROW_ARRAYS else self.blocks

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Shard":
        """Raises KeyError, TypeError or ValueError if it is no shard."""
        (r0, r1), (b0, b1) = data["rows"], data["blocks"]
        crc = {str(k): int(v) for k, v in data["crc"].items()}
        return cls((int(r0), int(r1)), (int(b0), int(b1)), crc)


#: arrays with one entry per atom
ROW_ARRAYS = ("G", "dg_dstrain")


def write_atomically(path: Path, write) -> None:
    """Call `write(file)` on a temporary file in the same folder, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def create_array(path: Path, shape: tuple[int, ...], dtype, fill: int | None = None) -> None:
    """Create a `.npy` file of that shape, with `fill`, or sparse with zeros."""
    dtype = np.dtype(dtype)

    def write(file):
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if fill is None:
            size = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
            file.truncate(size)
        else:
            np.full(shape, fill, dtype).tofile(file)

    write_atomically(path, write)


def map_array(path: Path, shape: tuple[int, ...] | None = None, dtype=None) -> np.ndarray:
    """Read-only map of a `.npy` file.

    Raises:
        StoreError: the file is missing, cut off, or of another shape or dtype than asked for.
    """
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            found, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        size = path.stat().st_size
    except (OSError, ValueError, SyntaxError) as error:
        raise StoreError(f"{path.name} cannot be read ({error})") from error
    expected = offset + int(np.prod(found, dtype=object)) * found_dtype.itemsize
    if size != expected:
        raise StoreError(f"{path.name} has {size} bytes instead of {expected}")
    if fortran or found_dtype.hasobject:
        raise StoreError(f"{path.name} is not an array of numbers in C order")
    if shape is not None and found != tuple(shape):
        raise StoreError(f"{path.name} has the shape {found} instead of {tuple(shape)}")
    if dtype is not None and found_dtype != np.dtype(dtype):
        raise StoreError(f"{path.name} has the dtype {found_dtype} instead of {np.dtype(dtype)}")
    if 0 in found:  # an empty range cannot be mapped
        return np.zeros(found, found_dtype)
    # a plain array over the map: subclasses are slow to pass to compiled functions
    return np.asarray(np.memmap(path, found_dtype, "r", offset, found))


def write_rows(path: Path, begin: int, values: np.ndarray) -> int:
    """Write `values` at rows `begin`... of a `.npy` file; returns their CRC-32."""
    values = np.ascontiguousarray(values)
    data = memoryview(values).cast("B") if values.size else b""
    with open(path, "r+b", buffering=0) as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.seek(begin * int(np.prod(values.shape[1:], dtype=object)) * values.itemsize, 1)
        written = 0
        while written < len(data):  # a single write stops at 2 GiB
            written += file.write(data[written:])
    return zlib.crc32(data)


def checksums(arrays: dict[str, np.ndarray], shard: Shard) -> dict[str, int]:
    """CRC-32 of a shard's part of each array."""
    result = {}
    for name, array in arrays.items():
        begin, end = shard.range_of(name)
        part = array[begin:end]
        crc = 0
        rows = max(1, _CHUNK // max(1, part[:1].nbytes))
        for k in range(0, len(part), rows):
            crc = zlib.crc32(memoryview(part[k : k + rows]).cast("B"), crc)
        result[name] = crc
    return result


def file_checksum(path: Path) -> int:
    """CRC-32 of a whole file."""
    crc = 0
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            crc = zlib.crc32(data, crc)
    return crc


def append_journal(path: Path, shard: Shard) -> None:
    """Add a finished shard; one write, so that a killed process leaves at most half a line."""
    line = ("\n" + json.dumps(shard.to_dict())).encode()
    with open(path, "ab", buffering=0) as file:
        file.write(line)


def read_journal(folder: Path) -> Iterator[Shard]:
    """The shards in all journals of a build; half a line counts as nothing."""
    for path in sorted(folder.glob("journal-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                yield Shard.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def size_on_disk(path: Path) -> int:
    """Bytes that a file occupies, without the holes of a sparse one where the system tells."""
    stat = path.stat()
    return stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size


def claim(folder: Path, holder: object) -> bool:
    """Keep `remove_store` away from a store, or one being built, as long as `holder` lives.

    Returns:
        False if the store is being removed at this moment.
    """
    if fcntl is None:
        return True
    try:
        descriptor = os.open(folder / ORIGIN, os.O_RDONLY)
    except OSError:  # a store that says nothing about its origin: it is never removed
        return True
    weakref.finalize(holder, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is removed either
        pass
    return True


def remove_store(folder: Path, database: str) -> int:
    """Remove a store, finished or not, if it is of that database and nobody has claimed it.

    Files that are no part of a store stay.

    Returns:
        the number of bytes that this has freed.
    """
    if fcntl is None:
        return 0
    try:
        with open(folder / ORIGIN, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if json.load(file)["database"] != database:
                return 0
            # its description first: what is left after an interruption is no store
            names = ("manifest.json", "journal-*.jsonl", "*.npy", ORIGIN)
            paths = [path for name in names for path in sorted(folder.glob(name))]
            size = sum(map(size_on_disk, paths))
            for path in paths:
                path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return size
