"""Sums over the batches of an epoch, on every rank, without stopping the device each step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["EpochRecord", "EpochSums", "epoch_record", "error_sums", "sum_names"]


class EpochSums:
    """Named sums in float64.

    Deliberately no `nn.Module` and no buffers: DistributedDataParallel overwrites the buffers of
    all ranks with those of rank 0 on every forward, which would silently lose the other ranks'
    sums. Values on a device stay there until `reduce`.
    """

    def __init__(self):
        self._floats: dict[str, float] = {}
        self._tensors: dict[tuple[str, ...], torch.Tensor] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._floats.clear()
        self._tensors.clear()

    @torch.no_grad()
    def add(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Add one batch: plain numbers and tensors of one element each."""
        names, tensors = [], []
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                names.append(name)
                tensors.append(value if value.dtype == torch.float64 else value.double())
            else:
                self._floats[name] = self._floats.get(name, 0.0) + value
        if tensors:
            key = tuple(names)
            total = torch.stack(tensors)
            if key in self._tensors:
                self._tensors[key] += total
            else:
                self._tensors[key] = total

    def reduce(
        self,
        names: Sequence[str],
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """The sums by name (0 where nothing was added), over all ranks in a single reduction."""
        sums = dict.fromkeys(names, 0.0)
        for key, total in self._tensors.items():
            for name, value in zip(key, total.tolist(), strict=True):
                sums[name] += value
        for name, value in self._floats.items():
            sums[name] += value
        if sum_over_ranks is not None:
            vector = torch.tensor(list(sums.values()), dtype=torch.float64)
            sums = dict(zip(sums, sum_over_ranks(vector).tolist(), strict=True))
        return sums


@torch.no_grad()
def error_sums(
    errors: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
) -> dict[str, float | torch.Tensor]:
    """Sums for RMSE and MAE of each property, without weights.

    Args:
        errors: by property, (rows, columns) in the units of the data, and the mask (rows, 1), 0
            where there is no reference, None if there is one everywhere.
    """
    values, sums = [], {}
    for name, (error, mask) in errors.items():
        error = error.double()
        if mask is None:
            sums[f"{name}/n"] = float(error.numel())
        else:
            known = mask > 0
            error = torch.where(known, error, 0.0)
            sums[f"{name}/n"] = known.sum() * error.shape[1]
        values.append(error)
    if not values:
        return sums
    # one call for all properties: a step of a small network is as short as ten calls
    for name, norm in zip(errors, torch._foreach_norm(values, 2), strict=True):
        sums[f"{name}/error_sq"] = norm * norm
    for name, norm in zip(errors, torch._foreach_norm(values, 1), strict=True):
        sums[f"{name}/error_abs"] = norm
    return sums


def sum_names(components: Sequence["LossComponent"]) -> list[str]:
    """Names of all sums of an epoch, the same on every rank."""
    names = [f"{c.component}/{part}" for c in components for part in ("sum", "count", "std")]
    properties = dict.fromkeys(c.name for c in components if c.kind is not None)
    return names + [f"{p}/{part}" for p in properties for part in ("error_sq", "error_abs", "n")]


@dataclass(frozen=True)
class EpochRecord:
    """Means of an epoch.

    Attributes:
        losses: loss of each component.
        standardized: sum of the standardised losses, a component split in pieces counting as one.
        values: all by logged name.
    """

    losses: list[tuple["LossComponent", float]]
    standardized: float
    values: dict[str, float]


def epoch_record(
    subset: str, components: Sequence["LossComponent"], sums: Mapping[str, float]
) -> EpochRecord:
    """Means from the sums of an epoch; components without a reference in the subset are absent.

    Logged are `{subset}_{component}_loss` and, in ASE units, `{subset}_{property}_{rmse|mae}`.
    """
    losses, values, wholes = [], {}, {}
    for c in components:
        count = sums[f"{c.component}/count"]
        if count == 0.0:
            continue
        losses.append((c, c.finish(sums[f"{c.component}/sum"] / count)))
        values[f"{subset}_{c.component}_loss"] = losses[-1][1]
        _, total, number = wholes.get(c.whole, (c, 0.0, 0.0))
        wholes[c.whole] = c, total + sums[f"{c.component}/std"], number + count
    standardized = sum(c.finish(total / number) for c, total, number in wholes.values())
    for name, c in {c.name: c for c in components if c.kind is not None}.items():
        n = sums[f"{name}/n"]
        if n:
            values[f"{subset}_{name}_rmse"] = (sums[f"{name}/error_sq"] / n) ** 0.5 * c.to_ase
            values[f"{subset}_{name}_mae"] = sums[f"{name}/error_abs"] / n * c.to_ase
    return EpochRecord(losses, standardized, values)
