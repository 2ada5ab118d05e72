"""Simulations with trained models and exchange of potentials with other programs."""

from typing import TYPE_CHECKING

from schnetpack_softadapt.lazy import attributes_of

if TYPE_CHECKING:
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential, write_potential

__all__ = ["SoftAdaptCalculator", "read_potential", "write_potential"]

# loaded when asked for: LAMMPS imports a module of this room and needs no torch
__getattr__ = attributes_of(
    __name__,
    {
        "SoftAdaptCalculator": "calculator",
        "read_potential": "exchange.n2p2",
        "write_potential": "exchange.n2p2",
    },
)
