"""Behler-Parrinello potentials as SchNetPack modules.

The import paths of these classes are part of the format of saved models.
"""

from schnetpack_softadapt.model.acsf import ACSF
from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.model.baseline import ZBL, CalculatorBaseline
from schnetpack_softadapt.model.potential import DescriptorPotential
from schnetpack_softadapt.model.representation import DescriptorRepresentation
from schnetpack_softadapt.model.response import ForcesAndStress
from schnetpack_softadapt.model.shift import ElementShift, EnergyScale

__all__ = [
    "ACSF",
    "ZBL",
    "CalculatorBaseline",
    "DescriptorPotential",
    "DescriptorRepresentation",
    "ElementShift",
    "ElementalAtomwise",
    "EnergyScale",
    "ForcesAndStress",
]
