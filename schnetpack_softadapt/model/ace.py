"""The atomic cluster expansion as a SchNetPack representation."""

from collections.abc import Mapping, Sequence

from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.model.representation import DescriptorRepresentation

__all__ = ["ACE"]


class ACE(DescriptorRepresentation):
    """Functions of a cluster expansion: a set given, or one for some elements.

    R. Drautz, Phys. Rev. B 99, 014104 (2019); formulas in `descriptors.ace`.

    Args:
        cutoff: largest distance of a neighbour, Ang.
        elements: symbols or atomic numbers; when not given, those of the training set.
        descriptor: an explicit `ClusterExpansion`, its dictionary or a file of that, instead.
        scaling: as for `DescriptorRepresentation`.
        backend: likewise.
        parameters: other arguments of `ClusterExpansion`, such as `n_functions`.
    """

    reads_neighbors = False

    def __init__(
        self,
        cutoff: float = 5.0,
        elements: Sequence[int | str] | None = None,
        descriptor: ClusterExpansion | Mapping | str | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        parameters: Mapping | None = None,
    ):
        super().__init__(descriptor, scaling, backend)
        if descriptor is not None:
            return
        self.parameters = dict(parameters or {})
        self.cutoff = float(cutoff)
        # others stand for open ones: wrong settings should be found before the data are read
        self.build(elements or self._some_elements())
        if elements is None:
            self.descriptor = self.scaling = None

    def _some_elements(self) -> list[int | str]:
        channels = self.parameters.get("channels")
        if channels is None or isinstance(channels, int):
            return list(range(1, max(channels or 1, 1) + 1))
        return list(channels[0]) if channels else [1]

    def build(self, elements: Sequence[int | str]) -> None:
        """Choose the functions for these elements."""
        self._describe(ClusterExpansion(elements, cutoff=self.cutoff, **self.parameters))
