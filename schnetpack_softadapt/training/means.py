"""Means of losses and errors over a batch and over an epoch, exact on any number of ranks.

A mean over atoms must count atoms: where batches or ranks hold structures of different size, a mean
of their means is another number. So sums and counts are kept apart until the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from schnetpack import properties
from torch.utils.data.distributed import DistributedSampler

from schnetpack_softadapt.training.losses import REAL_KEY, LossComponent

__all__ = ["EpochMeans", "EpochSums", "batch_loss", "error_sums", "mark_repeated"]

#: sum of a component over a batch, and the sum of its weights
Term = tuple[torch.Tensor, float | torch.Tensor]
SumOverRanks = Callable[[torch.Tensor], torch.Tensor]


def batch_loss(
    components: Sequence[LossComponent],
    weights: Mapping[str, float],
    terms: Sequence[Term],
    n_ranks: int,
    sum_over_ranks: SumOverRanks,
) -> torch.Tensor:
    """sum_k alpha_k l_k of a batch, to be differentiated on each of the ranks that share it.

    DDP takes the mean of the gradients over ranks. With more than one, the counts are summed over
    ranks, and the slope of the loss of the whole batch is applied to this rank's sum: the step is
    that of the whole batch on one rank.
    """
    loss = 0.0
    if n_ranks == 1:
        for c, (total, count) in zip(components, terms, strict=True):
            alpha = weights[c.component]
            if alpha != 0.0:
                # a batch without a single reference: 0 / tiny
                count = count.clamp_min(1e-300) if isinstance(count, torch.Tensor) else count
                loss = loss + alpha * c.finish(total / count)
        return loss
    device = terms[0][0].device
    counts = [torch.as_tensor(count, dtype=torch.float64, device=device) for _, count in terms]
    detached = [total.detach().double() for total, _ in terms]
    totals, counts = sum_over_ranks(torch.stack(detached + counts)).chunk(2)
    for c, (own, _), total, count in zip(
        components, terms, totals, counts.clamp_min(1e-300), strict=True
    ):
        # also for weight zero: DDP waits for a gradient of every parameter
        slope = c.slope(total / count) * weights[c.component] * n_ranks / count
        loss = loss + slope * own
    return loss


def mark_repeated(
    batch: Mapping[str, torch.Tensor], batch_idx: int, loader
) -> Mapping[str, torch.Tensor]:
    """The batch, with a mark on its last structure if that is there to make ranks equally long.

    torch's DistributedSampler deals structures out in turn and starts again from the first until
    all ranks have the same number; such a repetition is the last structure of its rank.
    """
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    last = sampler.rank + sampler.num_replicas * (sampler.num_samples - 1)
    if batch_idx + 1 != len(loader) or last < len(sampler.dataset):
        return batch
    n_atoms = batch[properties.n_atoms]
    real = torch.ones(len(n_atoms), device=n_atoms.device)
    real[-1] = 0.0
    return {**batch, REAL_KEY: real}


class EpochSums:
    """Named sums in float64.

    Deliberately no `nn.Module` and no buffers: DistributedDataParallel overwrites the buffers of
    all ranks with those of rank 0 on every forward, which would silently lose the other ranks'
    sums. Values on a device stay there until `reduce`.
    """

    def __init__(self):
        self._numbers: Counter[str] = Counter()
        self._tensors: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Add one batch: plain numbers and tensors of one element each."""
        tensors = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
        self._numbers.update({name: v for name, v in values.items() if name not in tensors})
        if tensors:  # one addition for all
            names = tuple(tensors)
            total = torch.stack([v.double() for v in tensors.values()])
            self._tensors[names] = self._tensors.get(names, 0.0) + total

    def reduce(
        self, names: Sequence[str], sum_over_ranks: SumOverRanks | None = None
    ) -> dict[str, float]:
        """The sums by name (0 where nothing was added), over all ranks in a single reduction."""
        sums = Counter(self._numbers)
        for key, total in self._tensors.items():
            sums.update(dict(zip(key, total.tolist(), strict=True)))
        if sum_over_ranks is None:
            return {name: float(sums[name]) for name in names}
        vector = torch.tensor([sums[name] for name in names], dtype=torch.float64)
        return dict(zip(names, sum_over_ranks(vector).tolist(), strict=True))


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
        sums[f"{name}/n"] = float(error.numel())
        error = error.double()
        if mask is not None:
            known = mask > 0
            error = torch.where(known, error, 0.0)
            sums[f"{name}/n"] = known.sum() * error.shape[1]
        values.append(error)
    if values:
        # one call for all properties: a step of a small network is as short as ten calls
        for power, ending in ((1, "error_abs"), (2, "error_sq")):
            for name, norm in zip(errors, torch._foreach_norm(values, power), strict=True):
                sums[f"{name}/{ending}"] = norm**power
    return sums


@dataclass(frozen=True)
class EpochMeans:
    """Means over a subset in an epoch; components without a reference in it are absent."""

    losses: dict[str, float]  # of each component
    # sum of the standardised losses, a component split in pieces counting as one
    standardized: float
    # by logged name, `{subset}_{component}_loss` and, in ASE units,
    # `{subset}_{property}_{rmse|mae}`
    values: dict[str, float]

    @staticmethod
    def names(components: Sequence[LossComponent]) -> list[str]:
        """Names of all sums of an epoch, the same on every rank."""
        names = [f"{c.component}/{part}" for c in components for part in ("sum", "count", "std")]
        keys = dict.fromkeys(c.name for c in components if c.kind is not None)
        return names + [f"{k}/{part}" for k in keys for part in ("error_sq", "error_abs", "n")]

    @classmethod
    def of(
        cls, subset: str, components: Sequence[LossComponent], sums: Mapping[str, float]
    ) -> "EpochMeans":
        """From the sums of an epoch over all ranks, by `names`."""
        counted = [c for c in components if sums[f"{c.component}/count"] != 0.0]
        losses, wholes = {}, {c.whole: c for c in counted}
        totals, counts = Counter(), Counter()
        for c in counted:
            count = sums[f"{c.component}/count"]
            losses[c.component] = c.finish(sums[f"{c.component}/sum"] / count)
            totals[c.whole] += sums[f"{c.component}/std"]
            counts[c.whole] += count
        standardized = sum(c.finish(totals[k] / counts[k]) for k, c in wholes.items())
        values = {f"{subset}_{name}_loss": loss for name, loss in losses.items()}
        for name, c in {c.name: c for c in components if c.kind is not None}.items():
            if n := sums[f"{name}/n"]:
                values[f"{subset}_{name}_rmse"] = (sums[f"{name}/error_sq"] / n) ** 0.5 * c.to_ase
                values[f"{subset}_{name}_mae"] = sums[f"{name}/error_abs"] / n * c.to_ase
        return cls(losses, standardized, values)
