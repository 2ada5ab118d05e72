"""A descriptor for elements of which nothing but their density at ambient conditions is known."""

from collections.abc import Iterable

import numpy as np
from ase.build import bulk
from ase.data import chemical_symbols, covalent_radii

from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.snap import Bispectrum

__all__ = ["ambient_volume", "default_descriptor"]

#: of spheres of the covalent radius, where an element's crystal is not known
_PACKING = 0.5
#: cutoff in units of the cube root of an atom's volume: two shells of bcc and fcc, 4.8 Ang in W
_REACH = 1.9


def ambient_volume(z: int) -> float:
    """Volume of an atom in the crystal of an element, Ang^3."""
    try:
        atoms = bulk(chemical_symbols[z])
        return float(atoms.get_volume() / len(atoms))
    except (ValueError, RuntimeError, KeyError):  # molecules, complicated crystals
        return float(4 / 3 * np.pi * covalent_radii[z] ** 3 / _PACKING)


def default_descriptor(elements: Iterable[int], twojmax: int = 8) -> Descriptor:
    """Bispectrum components (55 with 2J = 8) that reach two shells of neighbours."""
    elements = sorted(elements)
    volume = np.mean([ambient_volume(z) for z in elements])
    # so that neighbours of different elements can be told apart
    weights = dict(zip(elements, np.linspace(1.0, 0.5, len(elements)).tolist(), strict=True))
    cutoff = round(float(_REACH * np.cbrt(volume)), 2)
    return Bispectrum(dict.fromkeys(elements, 0.5), weights, twojmax=twojmax, rcutfac=cutoff)
