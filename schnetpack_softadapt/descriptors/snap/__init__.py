"""Bispectrum components of the neighbour density, as in SNAP potentials."""

from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["Bispectrum"]
