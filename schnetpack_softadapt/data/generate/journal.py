"""Results as they come, one line of JSON each: whatever is interrupted goes on from there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from schnetpack_softadapt.files import locked

__all__ = ["Journal", "open_journal"]


class Journal:
    """Records by key, each safely on disk when `add` returns. Made by `open_journal`.

    Attributes:
        records: the last record of each key.
    """

    def __init__(self, path: Path):
        self.records: dict[str, dict] = {}
        n_good_bytes = 0
        if path.exists():
            for record, n_bytes in _good_lines(path):
                self.records[record["key"]] = record
                n_good_bytes += n_bytes
        self._file = open(path, "ab")  # noqa: SIM115  closed by `open_journal`
        self._file.truncate(n_good_bytes)  # the rest of a line that was being written

    def add(self, key: str, record: dict) -> None:
        """Append a record; what was known by this key before is replaced."""
        record = {"key": key, **record}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[key] = record

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open a journal, with what it holds already, for this process alone.

    Args:
        path: the file; made if there is none.

    Raises:
        ValueError: another process has it open, or it is no journal.
    """
    with locked(path), contextlib.closing(Journal(path)) as journal:
        yield journal


def _good_lines(path: Path) -> Iterator[tuple[dict, int]]:
    """Complete records from the beginning on, and how many bytes each takes."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # it was being written
            try:
                record = json.loads(line)
                record["key"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}, line {number}: damaged; remove this line, or the file to start afresh"
                ) from None
            yield record, len(line)
