"""Bispectrum components as a SchNetPack representation."""

from collections.abc import Mapping, Sequence

from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.model.representation import DescriptorRepresentation

__all__ = ["SNAP"]


class SNAP(DescriptorRepresentation):
    """Bispectrum components: a set given, or one for some elements.

    A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015); formulas in `descriptors.snap`.

    Args:
        cutoff: largest distance of a neighbour, Ang.
        elements: symbols or atomic numbers; when not given, those of the training set.
        descriptor: an explicit `Bispectrum`, or its dictionary, instead.
        scaling: as for `DescriptorRepresentation`.
        backend: likewise.
        parameters: other arguments of `Bispectrum`, such as `twojmax`. `rcutfac` follows from
            `cutoff`; radii that are not given are 0.5.
    """

    reads_neighbors = False

    def __init__(
        self,
        cutoff: float = 5.0,
        elements: Sequence[int | str] | None = None,
        descriptor: Bispectrum | Mapping | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        parameters: Mapping | None = None,
    ):
        super().__init__(descriptor, scaling, backend)
        self.parameters = dict(parameters or {})
        if "rcutfac" in self.parameters:
            raise ValueError("rcutfac follows from the cutoff: give that instead")
        if descriptor is not None:
            return
        self.cutoff = float(cutoff)
        # hydrogen stands for open ones: wrong settings should be found before the data are read
        self.build(elements or self.parameters.get("radii") or ["H"])
        if elements is None:
            self.descriptor = self.scaling = None

    def build(self, elements: Sequence[int | str]) -> None:
        """Choose the radii of these elements, and with them the rest."""
        given = self.parameters.get("radii") or {}
        given = {atomic_number(key): float(value) for key, value in given.items()}
        radii = {z: given.get(z, 0.5) for z in map(atomic_number, elements)}
        rcutfac = self.cutoff / (2 * max(radii.values()))
        self._describe(Bispectrum(**self.parameters | {"radii": radii, "rcutfac": rcutfac}))
