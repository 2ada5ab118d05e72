"""Simulations with trained models and exchange of potentials with other programs."""

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential, write_potential

__all__ = ["SoftAdaptCalculator", "read_potential", "write_potential"]
