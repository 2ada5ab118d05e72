"""What a run shows and writes while it trains: the progress bar and history.csv."""

import csv
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers.logger import Logger
from tqdm import tqdm

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import BY_NAME

__all__ = ["HistoryWriter", "NoLogger", "Renamed", "WeightsProgressBar"]

log = logging.getLogger(__name__)


class Renamed(Callback):
    """Says at the start of a run that a setting of its command has a new name."""

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def on_fit_start(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            log.warning("%s is now %s; the old name will go", self.old, self.new)


class HistoryWriter(Callback):
    """Appends what every epoch logs to history.csv, one row an epoch.

    The row is written before the checkpoint of the epoch. On a resume, rows of epochs that the
    checkpoint does not know are dropped, so no epoch is there twice and none is missing.

    Args:
        path: the file, relative to the run directory.
    """

    def __init__(self, path: str = "history.csv"):
        self.path = Path(path).resolve()
        self._columns: list[str] = []
        self._ready = False

    def on_train_start(self, trainer, pl_module) -> None:
        """Drop rows of epochs that will be trained again."""
        self._ready = trainer.is_global_zero
        if not self._ready:
            return
        rows = [r for r in self._read() if int(float(r["epoch"])) < trainer.current_epoch]
        self._columns = list(rows[0]) if rows else []
        if rows:
            self._write(rows)
        else:
            self.path.unlink(missing_ok=True)

    def on_epoch_record(self, trainer, task, record: dict[str, float]) -> None:
        """Append the values of an epoch; called by the task."""
        if not self._ready:
            return
        if new := [key for key in record if key not in self._columns]:
            rows = self._read() if self._columns else []
            self._columns += new
            self._write([*rows, record])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._lines([record]))

    def _read(self) -> list[dict[str, str]]:
        """Complete rows of the file; a killed run may have left half a line."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [row for row in rows if row.get("epoch") and None not in row.values()]

    def _write(self, rows: list[dict]) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_file(self.path, self._lines([header, *rows]))

    def _lines(self, rows: list[dict]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


class WeightsProgressBar(ProgressBar):
    """One bar over epochs: RMSE of energy, forces and stress, and the weights of their losses.

    Lightning's bar redraws at every step, which takes longer than a step of a small network, and
    shows val_loss only. This one looks at the clock, and within long epochs counts batches.

    Args:
        refresh_s: seconds between two redraws on a terminal.
        log_refresh_s: the same where it is written to a file.
    """

    def __init__(self, refresh_s: float = 0.3, log_refresh_s: float = 30.0):
        super().__init__()
        self.refresh_s = refresh_s if sys.stderr.isatty() else log_refresh_s
        self._bar: tqdm | None = None
        self._text = ""
        self._drawn = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer, pl_module) -> None:
        """Open the bar at the epoch that a resumed run has reached."""
        self._bar = tqdm(
            total=trainer.max_epochs if trainer.max_epochs not in (None, -1) else None,
            initial=trainer.current_epoch,
            desc="training",
            unit=" epochs",
            dynamic_ncols=True,
            mininterval=self.refresh_s,
            maxinterval=max(10.0, self.refresh_s),
            disable=not self._enabled or not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Count batches while an epoch takes long."""
        if self._bar is not None and time.monotonic() - self._drawn >= max(2.0, self.refresh_s):
            self._draw(f"batch {batch_idx + 1}/{trainer.num_training_batches} {self._text}")
            self._bar.refresh()

    def on_epoch_record(self, trainer, task, record: dict[str, float]) -> None:
        """Show what an epoch logged; called by the task."""
        if self._bar is None:
            return
        if time.monotonic() - self._drawn >= self.refresh_s:
            self._text = describe(task.active, record)
            self._draw(self._text)
        self._bar.update(1)

    def _draw(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._drawn = time.monotonic()

    def on_train_end(self, trainer, pl_module) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(describe(pl_module.active, pl_module.record))
        self._close()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class NoLogger(Logger):
    """Logs nothing: `spktrain` needs a logger, and history.csv is enough for a sweep."""

    name = "none"
    version = 0

    def log_metrics(self, metrics, step=None) -> None:
        """Do nothing."""

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        """Do nothing."""


def describe(components, record: dict[str, float]) -> str:
    """RMSEs, of validation if there was one, and weights: `val E 4.1 meV/atom F ... | w ...`."""
    subset = "val" if any(key.startswith("val_") for key in record) else "train"
    weights = [
        f"{c.component} {record[key]:.2f}"
        for c in components
        if (key := f"weight_{c.component}") in record
    ]
    errors = {}
    for c in components:
        rmse = record.get(f"{subset}_{c.name}_rmse")
        if rmse is not None:
            q = BY_NAME[c.kind]
            errors[c.name] = f"{q.letter} {rmse * q.shown_factor:.3g} {q.shown_unit}"
    return f"{subset} {'  '.join(errors.values())} | weights {' '.join(weights)}"
