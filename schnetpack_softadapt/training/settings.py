"""Settings of a run: what cannot work is found before data are read, what is used is written."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from torch.optim.lr_scheduler import ReduceLROnPlateau

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["check_monitor", "check_optimizer", "logged_names", "update_config"]

#: a step of this length leaves nothing of float32 parameters of order one
LARGEST_LR = 1e6


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
        ValueError: no learning rate or an impossible one, arguments that do not fit, or a scheduler
            that waits for a plateau of something that is not logged.
    """
    if "lr" not in optimizer_args:
        raise ValueError("task.optimizer_args needs lr, the learning rate")
    lr = optimizer_args["lr"]
    if not (isinstance(lr, int | float) and 0 <= lr < LARGEST_LR):
        raise ValueError(f"task.optimizer_args.lr={lr} is no learning rate; usual are 1e-4 to 1")
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
            names.update(c.metric_names(subset))
    return names


def update_config(path: Path, resumed: bool, chosen: Mapping[str, Any]) -> None:
    """Write the settings of this start of `spktrain` into config.yaml.

    Upstream writes the file on the first start only, and on others copies it to config.old.N.yaml:
    an extended run would keep the settings of the shorter one, and a run whose first start has
    failed those that were wrong. A resumed run keeps its first seed. Only the file that upstream
    writes is touched: that of `spktrain` in the run's folder.

    Args:
        chosen: settings that the run has chosen, by dotted names.
    """
    if not path.is_file() or not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if path.resolve().parent != Path(hydra.runtime.output_dir).resolve():
        return
    config = compose(hydra.job.config_name, list(hydra.overrides.task))
    for name, value in chosen.items():
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    if resumed:
        first = OmegaConf.load(path)
        with open_dict(config):
            config.pop("seed", None)
            if "seed" in first:
                config.seed = first.seed
    write_file(path, OmegaConf.to_yaml(config))
