"""Atomic cluster expansion: invariant products of neighbour densities, up to five bodies."""

from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion

__all__ = ["ClusterExpansion"]
