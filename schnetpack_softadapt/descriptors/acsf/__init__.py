"""Atom-centred symmetry functions of Behler and Parrinello."""

from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

__all__ = ["Layout", "SymmetryFunction"]
