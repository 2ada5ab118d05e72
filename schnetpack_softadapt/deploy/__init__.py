"""Simulations with trained models and exchange of potentials with other programs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential, write_potential

__all__ = ["SoftAdaptCalculator", "read_potential", "write_potential"]

_HOMES = {
    "SoftAdaptCalculator": "calculator",
    "read_potential": "exchange.n2p2",
    "write_potential": "exchange.n2p2",
}


def __getattr__(name: str):
    # loaded when asked for: LAMMPS imports a module of this room and needs no torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
