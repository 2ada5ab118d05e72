"""Counting descriptors outside of the range seen in training.

A network gives an energy for any input, also for one it never saw. The range of each
descriptor over the training atoms is in the model; leaving it does not prove an energy wrong, and
staying inside does not prove it right, but many at once are the sign of a simulation gone astray.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.scaling import Scaling

__all__ = ["ExtrapolationError", "ExtrapolationMonitor"]

log = logging.getLogger(__name__)


class ExtrapolationError(ValueError):
    """More descriptors than allowed lie outside of the training range."""


class ExtrapolationMonitor:
    """Counts extrapolations (one for each descriptor of each atom outside) step by step.

    Args:
        scalings: hold the ranges, one for each model of a committee: what lies outside of the range
            of any of them counts.
        maximum: largest number allowed in one step; None allows any.

    Attributes:
        n_steps: structures seen.
        n_last: extrapolations of the last one.
        n_total: extrapolations of all.
        counts: (n_elements, D) how often each function lay outside.
    """

    def __init__(
        self, descriptor: Descriptor, scalings: Sequence[Scaling], maximum: int | None = None
    ):
        if maximum is not None and maximum < 0:
            raise ValueError(f"max_extrapolations must not be negative, got {maximum}")
        self.descriptor = descriptor
        self.maximum = maximum
        bounds = torch.stack([torch.stack(s.bounds()) for s in scalings]).detach().cpu().numpy()
        self._low, self._high = bounds[:, 0].max(axis=0), bounds[:, 1].min(axis=0)  # by element
        self._numbers = b""
        self.reset()

    def reset(self) -> None:
        """Start a new run: counts at zero, and the next extrapolation is reported again."""
        self.n_steps = self.n_last = self.n_total = 0
        self.counts = np.zeros(self._low.shape, dtype=np.int64)

    def add(self, values: np.ndarray, numbers: np.ndarray, start: int = 0) -> None:
        """Count the extrapolations of some atoms of a structure.

        Args:
            values: (n, D) descriptors without scaling.
            numbers: (n,) atomic numbers.
            start: number of atoms that came before; 0 begins a structure.
        """
        if start == 0:
            self._n_outside = self._n_atoms_outside = 0
            self._first: list[str] = []
        if numbers.tobytes() != self._numbers:  # the same atoms step after step
            self._numbers = numbers.tobytes()
            self._rows = np.searchsorted(self.descriptor.elements, numbers)
            self._bounds = self._low[self._rows], self._high[self._rows]
        outside = (values < self._bounds[0]) | (values > self._bounds[1])  # (n, D)
        n_outside = int(np.count_nonzero(outside))
        if n_outside == 0:
            return
        self._n_outside += n_outside
        self._n_atoms_outside += int(np.count_nonzero(outside.any(axis=1)))
        np.add.at(self.counts, self._rows, outside)
        if len(self._first) < 3 and (self.n_total == 0 or self.maximum is not None):
            self._first += self._describe(outside, values, numbers, start)

    def finish(self) -> int:
        """End a structure; the number of its extrapolations.

        The first step of a run that has any is reported with atoms and functions.

        Raises:
            ExtrapolationError: more than `maximum`.
        """
        self.n_steps += 1
        self.n_last = self._n_outside
        if self.n_last == 0:
            return 0
        is_first = self.n_total == 0
        self.n_total += self.n_last
        if is_first:
            log.warning(
                "extrapolation in step %d: %s. Further ones are counted, not reported",
                self.n_steps,
                self._report(),
            )
        if self.maximum is not None and self.n_last > self.maximum:
            raise ExtrapolationError(
                f"stopped: {self._report()}; at most {self.maximum} are"
                " allowed (max_extrapolations). The model was not trained on such structures: add"
                " some to the training set."
            )
        return self.n_last

    def _describe(
        self, outside: np.ndarray, values: np.ndarray, numbers: np.ndarray, start: int
    ) -> list[str]:
        texts = []
        for atom, column in np.argwhere(outside)[:3]:
            function = self.descriptor.describe(int(numbers[atom]), int(column))
            low, high = (bound[atom, column] for bound in self._bounds)
            texts.append(
                f"atom {start + atom} ({chemical_symbols[numbers[atom]]}) function {column}"
                f" [{' '.join(function.split())}] = {values[atom, column]:.4g}, trained on"
                f" {low:.4g} to {high:.4g}"
            )
        return texts

    def _report(self) -> str:
        more = "; ..." if self.n_last > 3 else ""
        return (
            f"{self.n_last} {self.descriptor.name} of {self._n_atoms_outside} atoms are outside of"
            f" the training range: {'; '.join(self._first[:3])}{more}"
        )

    def summary(self) -> str:
        """One line per function that left its range, the most frequent first."""
        if not self.n_total:
            return f"no extrapolation in {self.n_steps} steps"
        lines = [f"{self.n_total} extrapolations in {self.n_steps} steps"]
        order = np.argsort(self.counts, axis=None, kind="stable")[::-1]
        for row, column in zip(*np.unravel_index(order, self.counts.shape), strict=True):
            if not self.counts[row, column]:
                break
            number = self.descriptor.elements[row]
            function = self.descriptor.describe(number, int(column))
            count = self.counts[row, column]
            symbol = chemical_symbols[number]
            lines.append(f"  {count:8d}  {symbol:2s} function {column}: {function}")
        return "\n".join(lines)
