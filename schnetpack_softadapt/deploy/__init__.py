"""Simulations with trained models and exchange of potentials with other programs."""

from .calculator import SoftAdaptCalculator
from .n2p2 import read_potential, write_potential

__all__ = ["SoftAdaptCalculator", "read_potential", "write_potential"]
