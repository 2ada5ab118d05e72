"""A linear model solved again, with other weights or another solver, without its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schnetpack_softadapt.training.optimizers import LeastSquares

__all__ = ["refit"]


def refit(
    model: nn.Module, checkpoint: str | Path, weights: Mapping[str, float], **settings: Any
) -> dict[str, float]:
    """Give a linear model the solution with these weights, in a time that no data set lengthens.

    Args:
        model: of the run (`load(run)`); changed.
        checkpoint: of the run, `checkpoints/last.ckpt`; it executes nothing when it is read.
        weights: of the components by name; 0 for those that are not named.
        settings: `solver`, `l2` and others of `LeastSquares`.

    Returns:
        Training loss of each component, standardised as in the run.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: its run had another optimizer, or components of other names.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["optimizer_states"]
    if not state or not state[0].get("factors"):
        raise ValueError(f"{checkpoint} is of a run without task/optimizer=softadapt_least_squares")
    optimizer = LeastSquares([p for p in model.parameters() if p.requires_grad])
    optimizer.load_state_dict(state[0])
    if unknown := sorted(set(weights) - set(optimizer.factors)):
        raise ValueError(
            f"weights of {', '.join(unknown)}, but the components of the run are"
            f" {', '.join(optimizer.factors)}"
        )
    weights = {**dict.fromkeys(optimizer.factors, 0.0), **weights}
    return optimizer.solve(weights, **{"lr": 1.0, **settings}).losses
