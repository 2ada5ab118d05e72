"""Descriptors as a SchNetPack representation."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from schnetpack import properties
from schnetpack.transform import Transform
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.descriptors.autograd import pair_descriptors
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.protocol import (
    Descriptor,
    check_engine_name,
    descriptor_from_dict,
)
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.descriptors.store.batch import stored_descriptors

__all__ = ["DescriptorRepresentation"]


class DescriptorRepresentation(Transform):
    """Descriptors of any family, scaled, as `scalar_representation`.

    There is nothing to train here: the scaling is fitted on the training set once. During training
    the descriptors and their derivatives come from the store of the data module if it has one,
    otherwise they are computed from the neighbour list.

    Args:
        descriptor: a `Descriptor`, or what its `to_dict` gives.
        scaling: one of `none`, `center`, `scale`, `scale_center`, `sigma` (`descriptors.scaling`).
        backend: `auto`, `kernels` or `reference` (`Descriptor.engine`).
    """

    reads_neighbors = False  # where there is a store
    is_preprocessor = False
    is_postprocessor = False

    def __init__(
        self,
        descriptor: Descriptor | Mapping | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
    ):
        super().__init__()
        check_engine_name(backend)
        self.scaling_mode = scaling
        self.backend = backend
        self.descriptor: Descriptor | None = None
        self.scaling: Scaling | None = None
        if descriptor is not None:
            given = isinstance(descriptor, Descriptor)
            self._describe(descriptor if given else descriptor_from_dict(descriptor))

    def _describe(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.cutoff = float(descriptor.cutoff)
        self.scaling = Scaling(descriptor.n_functions, mode=self.scaling_mode)

    def build(self, elements: Sequence[int | str]) -> None:
        """Make a descriptor for these elements, in a representation that leaves them open."""
        raise ValueError(f"{type(self).__name__} needs a descriptor")

    @property
    def n_atom_basis(self) -> int:
        """Columns of the representation.

        Raises:
            ValueError: the elements are not known yet, so neither is their number.
        """
        if self.descriptor is None:
            raise ValueError(
                "how many symmetry functions there are follows from the elements, which are open:"
                " give ACSF(elements=...) for a head of a fixed size such as Atomwise, or use"
                " ElementalAtomwise in a DescriptorPotential, which take them from the data"
            )
        return self.descriptor.n_columns

    def datamodule(self, value) -> None:
        """Fit the scaling on the training set, and give the data module the descriptors to store.

        Raises:
            UnknownElementError: the data contain an element without descriptors.
            ValueError: the neighbour lists are shorter than the descriptors reach.
        """
        elements = training_targets(value).elements.tolist()
        if self.descriptor is None:
            self.build(elements)
        if hasattr(value, "check_elements"):
            value.check_elements(self.descriptor.elements)
        check_elements(elements, self.descriptor.elements, "training data")
        if not (hasattr(value, "attach_descriptors") and value.attach_descriptors(self.descriptor)):
            self._check_neighbors(value.train_dataset.transforms)
        self.scaling.fit(self._training_values(value.train_dataset))

    def _check_neighbors(self, transforms: Sequence) -> None:
        for transform in transforms:
            radius = getattr(transform, "_cutoff", self.cutoff)  # of SchNetPack's neighbour lists
            if radius < self.cutoff:
                raise ValueError(
                    f"the neighbour list in data.transforms has a cutoff of {radius:g} Ang, the"
                    f" {self.descriptor.name} reach {self.cutoff:g} Ang: give both one"
                    " globals.cutoff"
                )

    @torch.no_grad()
    def _training_values(self, dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield unscaled descriptors (n_atoms, D) and atomic numbers of each training structure."""
        for k in range(len(dataset)):
            sample = dataset[k]
            if keys.descriptors in sample:
                yield sample[keys.descriptors].double(), sample[properties.Z]
                continue
            idx_i, idx_j = sample[properties.idx_i], sample[properties.idx_j]
            positions = sample[properties.R].double()
            r_ij = positions[idx_j] - positions[idx_i] + sample[properties.offsets].double()
            engine = self.descriptor.engine(r_ij.device, self.backend)
            numbers = sample[properties.Z]
            yield engine.values(engine.prepare(r_ij, idx_i, idx_j, numbers)), numbers

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write `scalar_representation` (n_atoms, n_atom_basis).

        Reads the store's keys if the batch has them, else `_Rij` (n_pairs, 3), `_idx_i`, `_idx_j`.
        """
        if self.descriptor is None:
            raise RuntimeError(
                "the symmetry functions are not known yet: give `elements` or `layout`, or call"
                " `initialize_transforms(datamodule)` of the model first (training does so)"
            )
        numbers = inputs[properties.Z]
        if keys.descriptors in inputs:
            strain, idx_m = inputs.get(properties.strain), inputs[properties.idx_m]
            values = stored_descriptors(inputs[properties.R], strain, idx_m, inputs)
        else:
            r_ij = inputs[properties.Rij]
            idx_i, idx_j = inputs[properties.idx_i], inputs[properties.idx_j]
            engine = self.descriptor.engine(r_ij.device, self.backend)
            values = pair_descriptors(r_ij, idx_i, idx_j, numbers, engine)
        inputs[keys.scalar_representation] = self.scaling(values, numbers)
        return inputs
