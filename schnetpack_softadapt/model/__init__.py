"""Behler-Parrinello potentials as SchNetPack modules.

The import paths of these classes are part of the format of saved models. They are loaded when they
are asked for: simulations with compiled networks do without torch.
"""

from typing import TYPE_CHECKING

from schnetpack_softadapt.lazy import attributes_of

if TYPE_CHECKING:
    from schnetpack_softadapt.model.ace import ACE
    from schnetpack_softadapt.model.acsf import ACSF
    from schnetpack_softadapt.model.atomwise import ElementalAtomwise
    from schnetpack_softadapt.model.baseline import ZBL, CalculatorBaseline
    from schnetpack_softadapt.model.core_repulsion import CoreRepulsion
    from schnetpack_softadapt.model.pair_table import PairTable
    from schnetpack_softadapt.model.potential import DescriptorPotential
    from schnetpack_softadapt.model.representation import DescriptorRepresentation
    from schnetpack_softadapt.model.response import ForcesAndStress
    from schnetpack_softadapt.model.shift import ElementShift, EnergyScale
    from schnetpack_softadapt.model.snap import SNAP

__all__ = [
    "ACE",
    "ACSF",
    "SNAP",
    "ZBL",
    "CalculatorBaseline",
    "CoreRepulsion",
    "DescriptorPotential",
    "DescriptorRepresentation",
    "ElementShift",
    "ElementalAtomwise",
    "EnergyScale",
    "ForcesAndStress",
    "PairTable",
]

__getattr__ = attributes_of(
    __name__,
    {
        "ACE": "ace",
        "ACSF": "acsf",
        "SNAP": "snap",
        "ZBL": "baseline",
        "CalculatorBaseline": "baseline",
        "CoreRepulsion": "core_repulsion",
        "DescriptorPotential": "potential",
        "DescriptorRepresentation": "representation",
        "ElementShift": "shift",
        "ElementalAtomwise": "atomwise",
        "EnergyScale": "shift",
        "ForcesAndStress": "response",
        "PairTable": "pair_table",
    },
)
