"""Adaptive loss weighting, Behler-Parrinello potentials and stress for SchNetPack.

Kept free of imports: Hydra imports this package in every Hydra program to find the configs. The
names below are loaded when they are asked for.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {"SoftAdaptTask": ".training.task", "SoftAdaptCalculator": ".deploy.calculator"}

__all__ = ["SoftAdaptCalculator", "SoftAdaptTask", "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
