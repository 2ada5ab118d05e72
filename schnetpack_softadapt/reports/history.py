"""What a run logged per epoch: from history.csv, Lightning's CSV logger or TensorBoard files."""

import csv
import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["History", "read_history"]


@dataclass(frozen=True)
class History:
    """Logged values over epochs; NaN where an epoch has no value.

    `source` names the kind of file in words; `wall_s` is the time the log spans, if it is known.
    """

    epochs: np.ndarray  # (E,) int64, ascending
    columns: dict[str, np.ndarray]  # name -> (E,)
    source: str
    wall_s: float | None = None

    def get(self, name: str) -> np.ndarray | None:
        """Column `name` regardless of case, (E,); None where absent or without a single value."""
        for key, values in self.columns.items():
            if key.lower() == name.lower() and np.isfinite(values).any():
                return values
        return None

    def prefixed(self, prefix: str) -> dict[str, np.ndarray]:
        """Columns that start with `prefix`, by the rest of their name, in logged order."""
        return {
            key.removeprefix(prefix): values
            for key, values in self.columns.items()
            if key.startswith(prefix) and np.isfinite(values).any()
        }

    @property
    def best_epoch(self) -> int | None:
        """Epoch of the smallest `val_loss`, the first of equals."""
        loss = self.get("val_loss")
        return None if loss is None else int(self.epochs[np.nanargmin(loss)])


class _Rows:
    """Collects values by epoch; steps of one epoch are averaged.

    A resumed run logs again from the epoch of its checkpoint, mostly into a file of its own: where
    the epoch goes back or a file starts, what was logged from that epoch on is dropped.
    """

    def __init__(self) -> None:
        self.values: dict[int, dict[str, list[float]]] = {}
        self.last = -1
        self.starting = True

    def start_file(self) -> None:
        """The values that follow come from another file."""
        self.starting = True

    def add(self, epoch: int, values: dict[str, float]) -> None:
        # trainer.test logs once more after training, as one epoch past the last.
        values = {
            key: value
            for key, value in values.items()
            if not key.startswith("test_") and key not in ("epoch", "step")
        }
        if not values:
            return
        if epoch < self.last or self.starting:
            self.values = {e: v for e, v in self.values.items() if e < epoch}
        self.last, self.starting = epoch, False
        row = self.values.setdefault(epoch, {})
        for key, value in values.items():
            row.setdefault(key, []).append(value)

    def history(self, source: str, wall_s: float | None = None) -> History | None:
        if not self.values:
            return None
        epochs = sorted(self.values)
        names = list(dict.fromkeys(name for epoch in epochs for name in self.values[epoch]))
        columns = {
            name: np.array([_mean(self.values[epoch].get(name, ())) for epoch in epochs])
            for name in names
        }
        return History(np.array(epochs, dtype=np.int64), columns, source, wall_s)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def read_history(run_dir: Path) -> History | None:
    """What `run_dir` logged per epoch, from the best source there is; None without any.

    history.csv comes first, then the files of Lightning's CSV logger, then TensorBoard's. Half a
    last line, which a run still writing leaves behind, is ignored.

    Raises:
        ValueError: there are TensorBoard files only and tensorboard is not installed.
    """
    own = run_dir / "history.csv"
    if own.is_file():
        history = _from_csv([own], "history.csv")
        if history is not None:
            return history
    logged = sorted(_outside_report(run_dir, "metrics.csv"), key=_by_version)
    if logged:
        history = _from_csv(logged, "CSV logger")
        if history is not None:
            return history
    events = {path.parent for path in _outside_report(run_dir, "events.out.tfevents.*")}
    return _from_events(sorted(events, key=_by_version)) if events else None


def _outside_report(run_dir: Path, pattern: str) -> Iterator[Path]:
    for path in run_dir.rglob(pattern):
        if path.relative_to(run_dir).parts[0] != "report":
            yield path


def _by_version(path: Path) -> list[tuple[int, str]]:
    """Sort key by which version_10 follows version_9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _from_csv(paths: list[Path], source: str) -> History | None:
    rows = _Rows()
    for path in paths:
        rows.start_file()
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        complete = text[: text.rfind("\n") + 1]
        for line in csv.DictReader(complete.splitlines()):
            values = {key: _number(value) for key, value in line.items() if key is not None}
            epoch = values.get("epoch")
            if epoch is None:
                continue
            rows.add(int(epoch), {key: v for key, v in values.items() if v is not None})
    history = rows.history(source)
    if history is None:
        return None
    wall = history.get("wall_s")
    # history.csv carries the seconds since the start of training.
    seconds = None if wall is None else float(np.nanmax(wall))
    return History(history.epochs, history.columns, source, seconds)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text not in (None, "") else None
    except ValueError:
        return None


def _from_events(folders: list[Path]) -> History | None:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ValueError(
            f"{folders[0]} holds TensorBoard files; to read them, `pip install tensorboard`"
        ) from error
    # It reports every file it opens.
    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    rows = _Rows()
    seconds = 0.0
    for folder in folders:
        rows.start_file()
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        scalars = {tag: events.Scalars(tag) for tag in tags}
        times = [event.wall_time for series in scalars.values() for event in series]
        seconds += max(times) - min(times) if times else 0.0
        # Lightning logs the epoch beside every value, at the same step.
        epoch_of = {event.step: int(event.value) for event in scalars.pop("epoch", ())}
        by_step: dict[int, dict[str, float]] = {}
        for tag, series in scalars.items():
            for event in series:
                by_step.setdefault(event.step, {})[tag] = event.value
        for step in sorted(by_step):
            if step in epoch_of:
                rows.add(epoch_of[step], by_step[step])
    return rows.history("TensorBoard", seconds or None)
