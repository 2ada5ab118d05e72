"""Atom-centred symmetry functions as a SchNetPack representation."""

import logging
from collections.abc import Mapping, Sequence

import torch
from schnetpack import properties
from schnetpack.transform import Transform

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.autograd import BACKENDS, descriptors
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.descriptors.store.autograd import stored_descriptors

__all__ = ["ACSF"]

log = logging.getLogger(__name__)


class ACSF(Transform):
    """Behler-Parrinello symmetry functions, scaled, as `scalar_representation`.

    J. Behler, J. Chem. Phys. 134, 074106 (2011); formulas in `descriptors.functions`. There is
    nothing to train here: the scaling is fitted on the training set once. During training the
    symmetry functions and their derivatives come from the store of the data module if it has one,
    otherwise they are computed from the neighbour list.

    Args:
        cutoff: radius of the default set, Ang.
        elements: symbols or atomic numbers; when not given, those of the training set.
        layout: explicit symmetry functions (`Layout`, or its dictionary) instead of a default set.
        scaling: one of `none`, `center`, `scale`, `scale_center`, `sigma` (`descriptors.scaling`).
        backend: `auto`, `kernels` or `reference` (`descriptors.autograd`).
        grid: further arguments of `descriptors.grids.default_layout`, such as the number of radial
            functions.
    """

    is_preprocessor = False
    is_postprocessor = False

    def __init__(
        self,
        cutoff: float = 6.0,
        elements: Sequence[int | str] | None = None,
        layout: Layout | Mapping | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        grid: Mapping | None = None,
    ):
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; choose from {BACKENDS}")
        self.cutoff = float(cutoff)
        self.grid = dict(grid or {})
        self.scaling_mode = scaling
        self.backend = backend
        self.layout: Layout | None = None
        self.scaling: Scaling | None = None
        if layout is not None:
            self._set_layout(layout if isinstance(layout, Layout) else Layout.from_dict(layout))
        elif elements is not None:
            self.build(elements)
        else:  # hydrogen stands for them: wrong settings should be found before the data are read
            self.build(["H"])
            self.layout = self.scaling = None

    @property
    def n_atom_basis(self) -> int:
        """Columns of the representation.

        Raises:
            ValueError: the elements are not known yet, so neither is their number.
        """
        if self.layout is None:
            raise ValueError(
                "how many symmetry functions there are follows from the elements, which are open:"
                " give ACSF(elements=...) for a head of a fixed size such as Atomwise, or use"
                " ElementalAtomwise in an ACSFPotential, which take them from the training data"
            )
        return self.layout.n_columns

    def build(self, elements: Sequence[int | str]) -> None:
        """Generate the default symmetry functions for these elements."""
        self._set_layout(default_layout(elements, cutoff=self.cutoff, **self.grid))

    def _set_layout(self, layout: Layout) -> None:
        self.layout = layout
        self.cutoff = layout.cutoff
        self.scaling = Scaling(layout.n_functions, mode=self.scaling_mode)

    def datamodule(self, value) -> None:
        """Fit the scaling on the training set, and give the data module the descriptors to store.

        Raises:
            UnknownElementError: the data contain an element without symmetry functions.
            ValueError: the neighbour lists are shorter than the symmetry functions.
        """
        if self.layout is None:
            self.build(training_targets(value).elements)
        if hasattr(value, "check_elements"):
            value.check_elements(self.layout.elements)
        elements = training_targets(value).elements.tolist()
        check_elements(elements, self.layout.elements, "training data")
        if not (hasattr(value, "attach_descriptors") and value.attach_descriptors(self.layout)):
            self._check_neighbors(value.train_dataset.transforms)
        self.scaling.fit_batches(self._training_values(value))

    def _check_neighbors(self, transforms: Sequence) -> None:
        for transform in transforms:
            radius = getattr(transform, "_cutoff", self.cutoff)  # of SchNetPack's neighbour lists
            if radius < self.cutoff:
                raise ValueError(
                    f"the neighbour list in data.transforms has a cutoff of {radius:g} Ang, the"
                    f" symmetry functions reach {self.cutoff:g} Ang: give both one globals.cutoff"
                )

    def _training_values(self, datamodule):
        """Yield unscaled descriptors (n_atoms, D) and atomic numbers of each training structure."""
        dataset = datamodule.train_dataset
        for k in range(len(dataset)):
            sample = dataset[k]
            if keys.descriptors in sample:
                yield sample[keys.descriptors].double(), sample[properties.Z]
                continue
            idx_i, idx_j = sample[properties.idx_i], sample[properties.idx_j]
            positions = sample[properties.R].double()
            r_ij = positions[idx_j] - positions[idx_i] + sample[properties.offsets].double()
            numbers = sample[properties.Z]
            with torch.no_grad():
                yield descriptors(r_ij, idx_i, idx_j, numbers, self.layout, self.backend), numbers

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write `scalar_representation` (n_atoms, n_atom_basis).

        Reads the store's keys if the batch has them, else `_Rij` (n_pairs, 3), `_idx_i`, `_idx_j`.
        """
        numbers = inputs[properties.Z]
        if self.layout is None:
            raise RuntimeError(
                "the symmetry functions are not known yet: give `elements` or `layout`, or call"
                " `initialize_transforms(datamodule)` of the model first (training does so)"
            )
        if keys.descriptors in inputs:
            values = stored_descriptors(
                inputs[properties.R],
                inputs.get(properties.strain),
                inputs[properties.idx_m],
                inputs,
            )
        else:
            values = descriptors(
                inputs[properties.Rij],
                inputs[properties.idx_i],
                inputs[properties.idx_j],
                numbers,
                self.layout,
                self.backend,
            )
        inputs[keys.scalar_representation] = self.scaling(values, numbers)
        return inputs
