"""Bispectrum components as a SchNetPack representation."""

from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.model.representation import FamilyRepresentation

__all__ = ["SNAP"]


class SNAP(FamilyRepresentation):
    """Bispectrum components; `parameters` as of `Bispectrum`, such as `twojmax`.

    `rcutfac` follows from `cutoff`; radii that are not given are 0.5. A. P. Thompson et al., J.
    Comput. Phys. 285, 316 (2015); formulas in `descriptors.snap`.
    """

    reads_neighbors = False

    def stand_ins(self):
        """Those that radii are given for."""
        return list(self.parameters.get("radii") or ["H"])

    def make(self, elements):
        if "rcutfac" in self.parameters:
            raise ValueError("rcutfac follows from the cutoff: give that instead")
        given = self.parameters.get("radii") or {}
        given = {atomic_number(key): float(value) for key, value in given.items()}
        radii = {z: given.get(z, 0.5) for z in map(atomic_number, elements)}
        rcutfac = self.cutoff / (2 * max(radii.values()))
        return Bispectrum(**self.parameters | {"radii": radii, "rcutfac": rcutfac})
