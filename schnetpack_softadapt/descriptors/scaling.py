"""Shifts and factors that bring descriptors to the range networks like, per element.

`G_scaled = (G - shift) * factor`, with both from the training atoms of the element; the modes are
those of n2p2 (`scale_symmetry_functions`, `center_symmetry_functions`, `..._sigma`) and `spread`.
"""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.elements import check_elements

__all__ = ["SCALING_MODES", "Scaling"]

SCALING_MODES = ("none", "center", "scale", "scale_center", "sigma", "spread")

# A column whose training values spread by less carries nothing but rounding (float32 values), or
# the far tail of a Gaussian whose factor would turn any new structure into a huge number.
RELATIVE_SPREAD = 1e-6
ABSOLUTE_SPREAD = 1e-8


class Scaling(nn.Module):
    """Scaling of descriptors with statistics of the training atoms.

    With (a, b) = `limits`:

    ================ ==========================================
    mode             G_scaled
    ================ ==========================================
    `none`           G
    `center`         G - mean
    `scale`          a + (b - a) (G - min) / (max - min)
    `scale_center`   a + (b - a) (G - mean) / (max - min)
    `sigma`          a + (b - a) (G - mean) / sigma
    `spread`         (b - a) G / sigma
    ================ ==========================================

    Until `fit` it changes nothing. All buffers are (n_elements, D), float64 unless the module is
    converted; columns beyond an element's own descriptors have shift and factor 0.

    Args:
        n_descriptors: number of descriptors of each element (`Descriptor.n_functions`).
        mode: one of `SCALING_MODES`.
        limits: a and b above.

    Raises:
        ValueError: an unknown mode, or limits that are not ascending.
    """

    shift: Tensor
    factor: Tensor
    minimum: Tensor
    maximum: Tensor
    mean: Tensor
    sigma: Tensor
    n_atoms: Tensor  # (n_elements,) atoms the statistics come from

    def __init__(
        self,
        n_descriptors: Mapping[int, int],
        mode: str = "scale_center",
        limits: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        if mode not in SCALING_MODES:
            raise ValueError(f"unknown scaling {mode!r}; choose from {SCALING_MODES}")
        if not limits[0] < limits[1]:
            raise ValueError(f"limits must be ascending, got {limits}")
        self.n_descriptors = dict(sorted(n_descriptors.items()))
        self.mode = mode
        self.limits = (float(limits[0]), float(limits[1]))
        n_elements, n_columns = len(self.n_descriptors), max(self.n_descriptors.values())
        for name in ("shift", "minimum", "maximum", "mean", "sigma"):
            self.register_buffer(name, torch.zeros(n_elements, n_columns, dtype=torch.float64))
        self.register_buffer("factor", self._used().to(torch.float64))
        self.register_buffer("n_atoms", torch.zeros(n_elements, dtype=torch.int64))
        self.index = ElementIndex(self.n_descriptors)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers, in the order of the rows of the buffers."""
        return tuple(self.n_descriptors)

    @property
    def is_fitted(self) -> bool:
        """Whether every element has statistics."""
        return bool((self.n_atoms > 0).all())

    def _used(self) -> Tensor:
        columns = torch.arange(max(self.n_descriptors.values()))
        return columns < torch.tensor(list(self.n_descriptors.values()))[:, None]

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        names = " ".join(chemical_symbols[z] for z in self.elements)
        return f"mode={self.mode!r}, elements={names}, columns={self.shift.shape[1]}"

    def keep_zero(self) -> None:
        """Leave out the shift: what is zero stays zero. Before `fit`."""
        if self.mode != "none":
            self.mode = "spread"

    def forward(self, g: Tensor, numbers: Tensor) -> Tensor:
        """Scaled descriptors (N, D) of `g` (N, D) and atomic numbers (N,)."""
        rows = self.index(numbers)
        shift, factor = self.shift.to(g.dtype), self.factor.to(g.dtype)
        if len(self.elements) > 1 or g.device.type != "cpu":  # a GPU finds unknown elements here
            shift, factor = shift[rows], factor[rows]
        return (g - shift) * factor

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound (n_elements, D) of the range of the training atoms.

        Widened by float32 rounding, so that no training atom is ever outside.
        """
        size = torch.maximum(self.minimum.abs(), self.maximum.abs())
        slack = 8 * torch.finfo(torch.float32).eps * size
        return self.minimum - slack, self.maximum + slack

    @torch.no_grad()
    def fit(
        self, batches: Iterable[tuple[Tensor | np.ndarray, ...]], goes_on: bool = False
    ) -> None:
        """Take statistics of training atoms and set shifts and factors by them.

        Args:
            batches: descriptors (n, D) and atomic numbers (n,) of a part of the atoms, each.
            goes_on: add to the statistics there are, of the atoms of a model that is trained
                further. What these atoms do not tell may still count in that model: descriptors
                that do not vary, and elements without atoms, keep the factor 1.

        Raises:
            UnknownElementError: an atom of another element.
            ValueError: an element without atoms, a descriptor that is not finite.
        """
        n_columns = self.shift.shape[1]
        moments = {z: _Moments(n_columns) for z in self.elements}
        for row, z in enumerate(self.elements if goes_on else ()):
            if n := int(self.n_atoms[row]):
                names = ("minimum", "maximum", "mean", "sigma")
                moments[z].start(n, *(getattr(self, x)[row].double().numpy() for x in names))
        for g, numbers in batches:
            g, numbers = np.asarray(g), np.asarray(numbers)
            present = set(np.unique(numbers).tolist())
            check_elements(present, self.elements)
            for z in present:
                moments[z].add(np.asarray(g[numbers == z], dtype=np.float64), chemical_symbols[z])
        missing = [chemical_symbols[z] for z in self.elements if not moments[z].n]
        if missing and not goes_on:
            raise ValueError(
                f"no training atom of {', '.join(missing)}: descriptors cannot be scaled; leave "
                "the element out or add structures with it"
            )
        for z in self.elements:
            if not moments[z].n:
                moments[z].start(0, *np.zeros((4, n_columns)))
        self.set_statistics(
            *(
                np.stack([getattr(moments[z], name) for z in self.elements])
                for name in ("minimum", "maximum", "mean", "sigma")
            ),
            n_atoms=np.array([moments[z].n for z in self.elements]),
            off=not goes_on,
        )

    @torch.no_grad()
    def set_statistics(
        self,
        minimum: Tensor | np.ndarray,
        maximum: Tensor | np.ndarray,
        mean: Tensor | np.ndarray,
        sigma: Tensor | np.ndarray,
        n_atoms: Tensor | np.ndarray | None = None,
        off: bool = True,
    ) -> None:
        """Set statistics (n_elements, D) of elsewhere, and shifts and factors by them.

        Descriptors that do not vary get the factor 0, with a warning: the network does not see
        them. With `off` false they get the factor 1.
        """
        used = self._used().to(self.shift.device)
        given = {"minimum": minimum, "maximum": maximum, "mean": mean, "sigma": sigma}
        for name, values in given.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.where(used, torch.as_tensor(values).to(buffer), 0.0))
        self.n_atoms.copy_(torch.as_tensor(1 if n_atoms is None else n_atoms))

        low, high = self.limits
        spread = self.maximum - self.minimum
        size = torch.maximum(self.maximum.abs(), self.minimum.abs())
        varies = spread > torch.clamp(RELATIVE_SPREAD * size, min=ABSOLUTE_SPREAD)
        if self.mode in ("none", "center"):
            factor = torch.ones_like(spread)
        else:
            width = self.sigma if self.mode in ("sigma", "spread") else spread
            constant = 0.0 if off else 1.0
            factor = torch.where(varies, (high - low) / torch.where(varies, width, 1.0), constant)
            if off:
                self._warn_constant(used & ~varies)
        if self.mode in ("none", "spread"):
            shift = torch.zeros_like(spread)
        else:
            shift = self.minimum if self.mode == "scale" else self.mean
        if self.mode not in ("none", "center", "spread"):
            shift = shift - torch.where(factor > 0, low / torch.where(factor > 0, factor, 1.0), 0.0)
        self.factor.copy_(torch.where(used, factor, 0.0))
        self.shift.copy_(torch.where(used, shift, 0.0))

    def _warn_constant(self, constant: Tensor) -> None:
        for z, row in zip(self.elements, constant, strict=True):
            columns = row.nonzero().squeeze(1).tolist()
            if columns:
                warnings.warn(
                    f"descriptors {columns} of {chemical_symbols[z]} are the same for all training "
                    "atoms and are switched off (factor 0)",
                    stacklevel=4,
                )


class _Moments:
    """Running minimum, maximum, mean and spread of the rows added, in float64."""

    def __init__(self, n_columns: int):
        self.n = 0
        self.minimum = np.full(n_columns, np.inf)
        self.maximum = np.full(n_columns, -np.inf)
        self.mean = np.zeros(n_columns)
        self._squares = np.zeros(n_columns)  # sum of (g - mean)^2

    def start(self, n: int, minimum, maximum, mean, sigma) -> None:
        """Go on from these of n rows."""
        self.n, self.minimum, self.maximum, self.mean = n, minimum, maximum, mean
        self._squares = np.nan_to_num(sigma) ** 2 * max(n - 1, 1)  # some files have none

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviation of the sample, zero for a single row."""
        return np.sqrt(self._squares / max(self.n - 1, 1))

    def add(self, g: np.ndarray, symbol: str) -> None:
        """Merge rows (n, D): T. Chan, G. Golub, R. LeVeque, Am. Stat. 37, 242 (1983)."""
        finite = np.isfinite(g).all(0)
        if not finite.all():
            columns = np.flatnonzero(~finite).tolist()
            raise ValueError(
                f"descriptors {columns} of {symbol} are not finite; look for coinciding atoms or "
                "positions that are not numbers"
            )
        n, mean = len(g), g.mean(0)
        difference = mean - self.mean
        total = self.n + n
        self._squares += ((g - mean) ** 2).sum(0) + difference**2 * (self.n * n / total)
        self.mean += difference * (n / total)
        self.minimum = np.minimum(self.minimum, g.min(0))
        self.maximum = np.maximum(self.maximum, g.max(0))
        self.n = total
