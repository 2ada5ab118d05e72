"""What a run shows and writes while it trains: the progress bar and history.csv."""

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers.logger import Logger
from tqdm import tqdm

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import BY_NAME

__all__ = ["HistoryWriter", "NoLogger", "WeightsProgressBar"]


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
        self._ready = False
        if not trainer.is_global_zero:
            return
        rows = [r for r in self._read() if int(float(r["epoch"])) < trainer.current_epoch]
        self._columns = list(rows[0]) if rows else []
        self._write(rows)
        self._ready = True

    def on_epoch_record(self, trainer, task, record: dict[str, float]) -> None:
        """Append the values of an epoch; called by the task."""
        if not self._ready:
            return
        row = {key: _text(value) for key, value in record.items()}
        new = [key for key in row if key not in self._columns]
        if new:
            rows = self._read() if self._columns else []
            self._columns += new
            self._write([*rows, row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_lines(self._columns, [row]))

    def _read(self) -> list[dict[str, str]]:
        """Complete rows of the file; a kill may have left half a line."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        text = text[: text.rfind("\n") + 1]
        rows = csv.DictReader(io.StringIO(text))
        return [row for row in rows if row.get("epoch") and None not in row.values()]

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        header = _lines(self._columns, [{c: c for c in self._columns}])
        write_file(self.path, header + _lines(self._columns, rows))


class WeightsProgressBar(ProgressBar):
    """One bar over epochs: RMSE of energy, forces and stress in people's units, and the weights.

    Lightning's bar redraws at every step, which takes longer than a step of a small network, and
    shows val_loss only. This one looks at the clock, and within long epochs counts batches.

    Args:
        refresh_s: seconds between two redraws on a terminal.
        log_refresh_s: the same where the output goes to a file.
    """

    def __init__(self, refresh_s: float = 0.3, log_refresh_s: float = 30.0):
        super().__init__()
        terminal = sys.stderr.isatty()
        self.refresh_s = refresh_s if terminal else log_refresh_s
        self._bar: tqdm | None = None
        self._text = ""
        self._drawn = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer, pl_module) -> None:
        """Open the bar at the epoch that a resumed run has reached."""
        total = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
        self._bar = tqdm(
            total=total,
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
        if self._bar is None or time.monotonic() - self._drawn < max(2.0, self.refresh_s):
            return
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
        """Show the last epoch and close the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(describe(pl_module.active, pl_module.record))
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer, pl_module, exception) -> None:
        """Leave the terminal tidy."""
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
    errors, weights = [], []
    subset = "val" if any(key.startswith("val_") for key in record) else "train"
    seen = set()
    for c in components:
        weight = record.get(f"weight_{c.component}")
        if weight is not None:
            weights.append(f"{c.component} {weight:.2f}")
        rmse = record.get(f"{subset}_{c.name}_rmse")
        if rmse is not None and c.name not in seen:
            seen.add(c.name)
            q = BY_NAME[c.kind]
            errors.append(f"{q.letter} {rmse * q.shown_factor:.3g} {q.shown_unit}")
    return f"{subset} {'  '.join(errors)} | weights {' '.join(weights)}"


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _lines(columns: list[str], rows: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writerows(rows)
    return buffer.getvalue()
