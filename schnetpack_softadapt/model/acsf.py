"""Atom-centred symmetry functions as a SchNetPack representation."""

from collections.abc import Mapping, Sequence

from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.model.representation import DescriptorRepresentation

__all__ = ["ACSF"]


class ACSF(DescriptorRepresentation):
    """Behler-Parrinello symmetry functions: a set given, or the default set for some elements.

    J. Behler, J. Chem. Phys. 134, 074106 (2011); formulas in `descriptors.acsf`.

    Args:
        cutoff: radius of the default set, Ang.
        elements: symbols or atomic numbers; when not given, those of the training set.
        layout: explicit symmetry functions (`Layout`, or its dictionary) instead of a default set.
        scaling: as for `DescriptorRepresentation`.
        backend: likewise.
        grid: further arguments of `descriptors.acsf.grids.default_layout`, such as the number of
            radial functions.
    """

    reads_neighbors = False

    def __init__(
        self,
        cutoff: float = 6.0,
        elements: Sequence[int | str] | None = None,
        layout: Layout | Mapping | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        grid: Mapping | None = None,
    ):
        if isinstance(layout, Mapping):
            layout = Layout.from_dict(layout)
        super().__init__(layout, scaling, backend)
        self.grid = dict(grid or {})
        if layout is not None:
            return
        self.cutoff = float(cutoff)
        # hydrogen stands for open ones: wrong settings should be found before the data are read
        self.build(["H"] if elements is None else elements)
        if elements is None:
            self.descriptor = self.scaling = None

    def build(self, elements: Sequence[int | str]) -> None:
        """Generate the default symmetry functions for these elements."""
        self._describe(default_layout(elements, cutoff=self.cutoff, **self.grid))
