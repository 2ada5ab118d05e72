"""Settings of a run that cannot work, found before its data are read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["check_monitor", "check_optimizer", "logged_names"]


def check_optimizer(
    optimizer_cls: Callable,
    optimizer_args: Mapping[str, Any],
    scheduler_cls: Callable | None,
    scheduler_args: Mapping[str, Any],
    scheduler_monitor: str | None,
    logged: Collection[str],
) -> None:
    """Make optimizer and scheduler once, for a parameter of their own.

    Args:
        logged: names that `scheduler_monitor` may be.

    Raises:
        ValueError: no learning rate, arguments that do not fit, or a scheduler that waits for a
            plateau of something that is not logged.
    """
    if "lr" not in optimizer_args:
        raise ValueError("task.optimizer_args needs lr, the learning rate")
    parameters = [torch.nn.Parameter(torch.zeros(1, 1))]
    optimizer = _made("optimizer_args", optimizer_cls, parameters, optimizer_args)
    if scheduler_cls is None:
        return
    scheduler = _made("scheduler_args", scheduler_cls, optimizer, scheduler_args)
    if isinstance(scheduler, ReduceLROnPlateau):
        check_monitor("task.scheduler_monitor", scheduler_monitor, logged)


def _made(name: str, cls: Callable, first: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        return cls(first, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"task.{name}={dict(arguments)} do not fit: {error}") from error


def check_monitor(what: str, monitor: str | None, logged: Collection[str]) -> None:
    """Refuse to wait for nothing, and for what is nearly the name of a value but not quite.

    Other names may be those of values that a callback of the user logs.
    """
    misspelt = monitor not in logged and get_close_matches(str(monitor), logged, n=1, cutoff=0.8)
    if monitor is None or misspelt:
        raise ValueError(f"{what}={monitor!r} is not logged; there are {', '.join(sorted(logged))}")


def logged_names(components: Sequence[LossComponent]) -> set[str]:
    """Names of the values of an epoch with these components."""
    names = {"train_loss", "val_loss", "lr", "wall_s"}
    for c in components:
        names |= {f"weight_{c.component}", f"rate_{c.component}"}
        for subset in ("train", "val"):
            names.add(f"{subset}_{c.component}_loss")
            if c.kind is not None:
                names |= {f"{subset}_{c.name}_{metric}" for metric in ("rmse", "mae")}
            if c.output is not None:
                names |= {f"{subset}_{c.name}_{metric}" for metric in c.output.metrics[subset]}
    return names
