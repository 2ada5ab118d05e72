"""Atom-centred symmetry functions as a SchNetPack representation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.model.representation import FamilyRepresentation

__all__ = ["ACSF"]


class ACSF(FamilyRepresentation):
    """Behler-Parrinello symmetry functions: a set given, or the default set for some elements.

    J. Behler, J. Chem. Phys. 134, 074106 (2011); formulas in `descriptors.acsf`.

    Args:
        layout: explicit symmetry functions instead of a default set: a `Layout`, its dictionary, or
            a file of that, as `spk-softadapt select-functions` writes it.
        grid: further arguments of `descriptors.acsf.grids.default_layout`, such as the number of
            radial functions.
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
        super().__init__(cutoff, elements, layout, scaling, backend, grid, select)

    def make(self, elements):
        return default_layout(elements, cutoff=self.cutoff, **self.parameters)
