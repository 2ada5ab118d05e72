"""The loss of a batch, alone or spread over ranks, such that both give the same gradient."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from schnetpack import properties
from torch.utils.data.distributed import DistributedSampler

if TYPE_CHECKING:
    from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["REAL_KEY", "batch_loss", "mark_repeated"]

#: (n_structures,) 0 for a structure that a sampler has repeated, which must not count
REAL_KEY = "_softadapt_real"

#: sum of a component over a batch, and the sum of its weights
Term = tuple[torch.Tensor, float | torch.Tensor]


def batch_loss(
    components: Sequence["LossComponent"],
    weights: Mapping[str, float],
    terms: Sequence[Term],
    n_ranks: int,
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """sum_k alpha_k l_k of a batch, to be differentiated on each of the ranks that share it."""
    if n_ranks > 1:
        return _loss_over_ranks(components, weights, terms, n_ranks, sum_over_ranks)
    loss = 0.0
    for c, (total, count) in zip(components, terms, strict=True):
        alpha = weights[c.component]
        if alpha != 0.0:
            # a batch without a single reference: 0 / tiny
            count = count.clamp_min(1e-300) if isinstance(count, torch.Tensor) else count
            loss = loss + alpha * c.finish(total / count)
    return loss


def _loss_over_ranks(components, weights, terms, n_ranks, sum_over_ranks) -> torch.Tensor:
    """What each rank differentiates, so that the step is that of the whole batch on one rank.

    DDP takes the mean of the gradients over ranks. A mean over atoms must count atoms: where ranks
    hold structures of different size, a mean of their means is another loss. So the counts are
    summed over ranks, and the slope of the loss of the whole batch is applied to this rank's sum.
    """
    sums = [total for total, _ in terms]
    device = sums[0].device
    counts = [torch.as_tensor(count, dtype=torch.float64, device=device) for _, count in terms]
    detached = [total.detach().double() for total in sums]
    whole = sum_over_ranks(torch.stack(detached + counts))
    totals, counts = whole[: len(sums)], whole[len(sums) :].clamp_min(1e-300)
    loss = 0.0
    for k, c in enumerate(components):
        alpha = weights[c.component]
        # also for weight zero: DDP waits for a gradient of every parameter
        slope = c.slope(totals[k] / counts[k])
        loss = loss + (alpha * n_ranks * slope / counts[k]) * sums[k]
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
