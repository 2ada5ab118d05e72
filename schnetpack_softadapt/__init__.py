"""Adaptive loss weighting, Behler-Parrinello potentials and stress for SchNetPack.

    import schnetpack_softadapt as spksa

The names below are loaded when they are asked for: Hydra imports this package in every Hydra
program to find the configs, and must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from schnetpack_softadapt.api import Predictions, Run, load, predict, train
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.model import ACSF
    from schnetpack_softadapt.training import losses, rules
    from schnetpack_softadapt.training.task import SoftAdaptTask

__all__ = [
    "ACSF",
    "Predictions",
    "Run",
    "SoftAdaptCalculator",
    "SoftAdaptTask",
    "__version__",
    "load",
    "losses",
    "predict",
    "rules",
    "train",
]

#: module of each name; of a module itself where nothing follows the colon
_HOMES = {
    "ACSF": "model:ACSF",
    "Predictions": "api:Predictions",
    "Run": "api:Run",
    "SoftAdaptCalculator": "deploy.calculator:SoftAdaptCalculator",
    "SoftAdaptTask": "training.task:SoftAdaptTask",
    "load": "api:load",
    "losses": "training.losses:",
    "predict": "api:predict",
    "rules": "training.rules:",
    "train": "api:train",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    home = import_module(f"{__name__}.{module}")
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
