"""The atomic cluster expansion as a SchNetPack representation."""

from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.model.representation import FamilyRepresentation

__all__ = ["ACE"]


class ACE(FamilyRepresentation):
    """Functions of a cluster expansion; `parameters` as of `ClusterExpansion`: `n_functions` ...

    R. Drautz, Phys. Rev. B 99, 014104 (2019); formulas in `descriptors.ace`.
    """

    reads_neighbors = False

    def stand_ins(self):
        """As many as there are channels."""
        channels = self.parameters.get("channels")
        if channels is None or isinstance(channels, int):
            return list(range(1, max(channels or 1, 1) + 1))
        return list(channels[0]) if channels else [1]

    def make(self, elements):
        return ClusterExpansion(elements, cutoff=self.cutoff, **self.parameters)
