"""Adaptive loss weighting, Behler-Parrinello potentials and stress for SchNetPack.

    import schnetpack_softadapt as spksa

The names below are loaded when they are asked for: Hydra imports this package in every Hydra
program to find the configs, and must not wait for torch.
"""

from typing import TYPE_CHECKING

from schnetpack_softadapt.lazy import attributes_of

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

__getattr__ = attributes_of(
    __name__,
    {
        "ACSF": "model",
        "Predictions": "api",
        "Run": "api",
        "SoftAdaptCalculator": "deploy.calculator",
        "SoftAdaptTask": "training.task",
        "load": "api",
        "losses": "training.losses:",
        "predict": "api",
        "rules": "training.rules:",
        "train": "api",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
