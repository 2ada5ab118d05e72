"""Atom-centred symmetry functions as a SchNetPack representation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
        layout: explicit symmetry functions instead of a default set: a `Layout`, its dictionary, or
            a file of that, as `spk-softadapt select-functions` writes it.
        scaling: as for `DescriptorRepresentation`.
        backend: likewise.
        grid: further arguments of `descriptors.acsf.grids.default_layout`, such as the number of
            radial functions.
        select: as for `DescriptorRepresentation`: how many of these are kept.
    """

    reads_neighbors = False

    def __init__(
        self,
        cutoff: float = 6.0,
        elements: Sequence[int | str] | None = None,
        layout: Layout | Mapping | str | Path | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        grid: Mapping | None = None,
        select: int | None = None,
    ):
        if isinstance(layout, Mapping):
            layout = Layout.from_dict(layout)
        super().__init__(layout, scaling, backend, select)
        self.grid = dict(grid or {})
        if layout is not None:
            return
        self.cutoff = float(cutoff)
        # hydrogen stands for open ones: wrong settings should be found before the data are read
        self.build(["H"] if elements is None else elements)
        if elements is None:
            self.descriptor = self.scaling = self._pool = None

    def build(self, elements: Sequence[int | str]) -> None:
        """Generate the default symmetry functions for these elements."""
        self._describe(default_layout(elements, cutoff=self.cutoff, **self.grid))
