"""What a run logged per epoch: from history.csv, Lightning's CSV logger or TensorBoard files."""

import io
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["History", "read_history"]


@dataclass(frozen=True)
class History:
    """Logged values over epochs; NaN where an epoch has no value.

    `source` names the kind of file; `wall_s` is the time the log spans, if it is known.
    """

    table: pd.DataFrame  # (E, columns) float64, by epoch, ascending
    source: str
    wall_s: float | None = None

    @property
    def epochs(self) -> np.ndarray:
        """(E,) int64, ascending."""
        return self.table.index.to_numpy()

    def get(self, name: str) -> np.ndarray | None:
        """Column `name` regardless of case, (E,); None where absent or without a single value."""
        for column in self.table:
            if column.lower() == name.lower() and self.table[column].notna().any():
                return self.table[column].to_numpy()
        return None

    def prefixed(self, prefix: str) -> dict[str, np.ndarray]:
        """Columns that start with `prefix`, by the rest of their name, in logged order."""
        there = self.table.dropna(axis=1, how="all")
        return {
            column.removeprefix(prefix): there[column].to_numpy()
            for column in there
            if column.startswith(prefix)
        }

    @property
    def best_epoch(self) -> int | None:
        """Epoch of the smallest `val_loss`, the first of equals."""
        loss = self.get("val_loss")
        return None if loss is None else int(self.epochs[np.nanargmin(loss)])


def read_history(run_dir: Path) -> History | None:
    """What `run_dir` logged per epoch, from the best source there is; None without any.

    history.csv comes first, then the files of Lightning's CSV logger, then TensorBoard's. Half a
    last line, which a run still writing leaves behind, is ignored.

    Raises:
        ValueError: there are TensorBoard files only and tensorboard is not installed.
    """
    for name, source in (("history.csv", "history.csv"), ("metrics.csv", "the CSV logger")):
        paths = [run_dir / name] if name == source else _found(run_dir, name)
        table = _by_epoch(_read_csv(path) for path in paths if path.is_file())
        if table is not None:
            # history.csv carries the seconds since the start of training
            seconds = table["wall_s"].max() if "wall_s" in table else np.nan
            return History(table, source, None if np.isnan(seconds) else float(seconds))
    events = _found(run_dir, "events.out.tfevents.*")
    return _from_tensorboard(list(dict.fromkeys(path.parent for path in events)))


def _found(run_dir: Path, pattern: str) -> list[Path]:
    """Files outside of the report, version_10 after version_9."""
    paths = [p for p in run_dir.rglob(pattern) if p.relative_to(run_dir).parts[0] != "report"]
    return sorted(paths, key=lambda p: [x.zfill(9) for x in re.split(r"(\d+)", str(p))])


def _read_csv(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    lines = io.StringIO(text[: text.rfind("\n") + 1].strip() or "epoch")
    table = pd.read_csv(lines, dtype=str, index_col=False, on_bad_lines="skip")
    return table.apply(pd.to_numeric, errors="coerce")


def _by_epoch(tables: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    """Logged rows, one file after the other, as one row an epoch; steps of an epoch are averaged.

    A resumed run logs again from the epoch of its checkpoint, mostly into a file of its own: where
    the epoch goes back or a file starts, what was logged from that epoch on is dropped.
    """
    rows, starts = [], []
    for table in tables:
        table = table.dropna(subset="epoch") if "epoch" in table else table[:0]
        # trainer.test logs once more after training, as one epoch past the last
        left_out = [c for c in table if c in ("epoch", "step") or c.startswith("test_")]
        values = table.drop(columns=left_out)
        values.index = table.get("epoch", pd.Series()).astype(np.int64).rename(None)
        values = values.dropna(how="all").astype(np.float64)
        if len(values):
            epoch = values.index.to_numpy()
            is_start = np.diff(epoch, prepend=epoch[0] + 1) < 0
            rows.append(values)
            starts.append(np.where(is_start, epoch, np.inf))
    if not rows:
        return None
    later_starts = np.append(np.concatenate(starts)[1:], np.inf)
    table = pd.concat(rows)
    valid = table.index < np.minimum.accumulate(later_starts[::-1])[::-1]
    return table[valid].groupby(level=0).mean()


def _from_tensorboard(folders: list[Path]) -> History | None:
    if not folders:
        return None
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ValueError(
            f"{folders[0]} holds TensorBoard files; to read them, `pip install tensorboard`"
        ) from error
    # it reports every file it opens
    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    tables, seconds = [], 0.0
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        times = [event.wall_time for series in scalars.values() for event in series]
        seconds += max(times) - min(times) if times else 0.0
        # Lightning logs the epoch beside every value, at the same step
        by_step = {tag: {e.step: e.value for e in series} for tag, series in scalars.items()}
        tables.append(pd.DataFrame(by_step).sort_index())
    table = _by_epoch(tables)
    return None if table is None else History(table, "TensorBoard", seconds or None)
