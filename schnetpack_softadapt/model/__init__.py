"""Behler-Parrinello potentials as SchNetPack modules.

The import paths of these classes are part of the format of saved models.
"""

from .acsf import ACSF
from .atomwise import ElementalAtomwise
from .potential import ACSFPotential
from .response import ForcesAndStress
from .shift import ElementShift

__all__ = ["ACSF", "ACSFPotential", "ElementShift", "ElementalAtomwise", "ForcesAndStress"]
