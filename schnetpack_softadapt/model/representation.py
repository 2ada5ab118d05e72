"""Descriptors as a SchNetPack representation."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import properties
from schnetpack.transform import Transform
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.statistics import TrainingTargets, training_targets
from schnetpack_softadapt.descriptors.autograd import pair_descriptors
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.protocol import (
    Descriptor,
    check_engine_name,
    descriptor_from_dict,
    read_descriptor,
)
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.descriptors.selection import (
    sample_values,
    select_columns,
    variance_left,
)
from schnetpack_softadapt.descriptors.store.batch import batch_descriptors

__all__ = ["DescriptorRepresentation", "FamilyRepresentation"]

log = logging.getLogger(__name__)


class DescriptorRepresentation(Transform):
    """Descriptors of any family, scaled, as `scalar_representation`.

    There is nothing to train here: the scaling is fitted on the training set once. During training
    the descriptors and their derivatives come from the store of the data module if it has one,
    otherwise they are computed from the neighbour list.

    Args:
        descriptor: a `Descriptor`, what its `to_dict` gives, or a JSON or YAML file of that.
        scaling: one of `none`, `center`, `scale`, `scale_center`, `sigma` (`descriptors.scaling`).
        backend: `auto`, `kernels` or `reference` (`Descriptor.engine`).
        select: columns of each element to keep, chosen by the training set (`complete`); None for
            all.

    Attributes:
        descriptor: None until it is known.
        selected: (n_elements, `select`) the columns that were chosen, -1 where there are fewer; in
            checkpoints, so that no run goes on with others.

    Raises:
        ValueError: an unknown backend, a number to select that is none.
    """

    selected: Tensor

    #: whether the scaling is one that goes on, see `Scaling.fit`
    goes_on = False

    reads_neighbors = False  # where there is a store
    is_preprocessor = False
    is_postprocessor = False

    def __init__(
        self,
        descriptor: Descriptor | Mapping | str | Path | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        select: int | None = None,
    ):
        super().__init__()
        check_engine_name(backend)
        if select is not None and (type(select) is not int or select < 1):
            raise ValueError(f"select={select!r} is no number of functions (null: all of them)")
        self.select = select
        self._pool: Descriptor | None = None  # what is chosen from
        self.scaling_mode = scaling
        self.backend = backend
        self.descriptor: Descriptor | None = None
        self.scaling: Scaling | None = None
        if descriptor is not None:
            if isinstance(descriptor, str | Path):
                descriptor = read_descriptor(user_path(descriptor))
            given = isinstance(descriptor, Descriptor)
            self._describe(descriptor if given else descriptor_from_dict(descriptor))

    def _describe(self, descriptor: Descriptor) -> None:
        self.cutoff = float(descriptor.cutoff)
        if self.select is not None:
            self._pool = descriptor
            return
        self.settle(descriptor)

    def settle(self, descriptor: Descriptor) -> None:
        """Take this descriptor, and a scaling that is not fitted."""
        self.descriptor = descriptor
        self.cutoff = float(descriptor.cutoff)
        self.scaling = Scaling(descriptor.n_functions, mode=self.scaling_mode)

    def build(self, elements: Sequence[int | str]) -> None:
        """Make a descriptor for these elements, in a representation that leaves them open."""
        raise ValueError(f"{type(self).__name__} needs a descriptor")

    def complete(self, datamodule) -> None:
        """Make the descriptor where it follows from the training set: by its elements, or chosen.

        Raises:
            UnknownElementError: the data contain an element that there is nothing to choose for.
            ValueError: an element without training atoms, a family without a choice.
        """
        if self.descriptor is not None:
            return
        targets = training_targets(datamodule)
        if self._pool is None:
            self.build(targets.elements.tolist())
        if self._pool is not None:
            self._select(datamodule, targets)

    def _select(self, datamodule, targets: TrainingTargets) -> None:
        """Choose columns of the pool by their values for training atoms."""
        pool = self._pool
        check_elements(targets.elements.tolist(), pool.elements, "training data")
        first = np.cumsum(targets.n_atoms)[:-1].astype(int)
        labels = targets.labels
        values = sample_values(
            pool,
            zip(
                np.split(labels[properties.Z], first),
                np.split(labels[properties.R].astype(np.float64), first),
                labels[properties.cell].reshape(-1, 3, 3).astype(np.float64),
                labels[properties.pbc].reshape(-1, 3),
                strict=True,
            ),
        )
        columns = {z: select_columns(x, self.select) for z, x in values.items()}
        trainer = getattr(datamodule, "trainer", None)
        if trainer is not None:  # the ranks of a run may be different machines
            columns = trainer.strategy.broadcast(columns)
        selected = torch.full((len(columns), self.select), -1)
        for row, chosen in zip(selected, columns.values(), strict=True):
            row[: len(chosen)] = torch.tensor(chosen)
        self.register_buffer("selected", selected)
        self._pool = None
        self.settle(pool.select(columns))
        log.info(
            "kept %s, chosen by CUR; share of the variance left out: %s",
            ", ".join(
                f"{len(c)} of {pool.n_functions[z]} {pool.name} of {chemical_symbols[z]}"
                for z, c in columns.items()
            ),
            ", ".join(f"{variance_left(x, columns[z]):.1e}" for z, x in values.items()),
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        saved = state_dict.get(f"{prefix}selected")
        if saved is not None and "selected" in self._buffers:
            here = self.selected
            if saved.shape != here.shape or not torch.equal(saved.cpu(), here.cpu()):
                raise ValueError(
                    f"the checkpoint has other {self.descriptor.name} than `select` chooses now:"
                    " the training set or the settings of model.representation have changed; name"
                    " a new run run.id=..., or give what the run was started with"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def n_atom_basis(self) -> int:
        """Columns of the representation.

        Raises:
            ValueError: the elements are not known yet, so neither is their number.
        """
        if self.descriptor is None:
            raise ValueError(
                "how many symmetry functions there are follows from the data (elements, select):"
                " give ACSF(elements=..., select=None) for a head of a fixed size such as"
                " Atomwise, or use ElementalAtomwise in a DescriptorPotential, which follows them"
            )
        return self.descriptor.n_columns

    def datamodule(self, value) -> None:
        """Fit the scaling on the training set, and give the data module the descriptors to store.

        Raises:
            UnknownElementError: the data contain an element without descriptors.
            ValueError: the neighbour lists are shorter than the descriptors reach.
        """
        elements = training_targets(value).elements.tolist()
        self.complete(value)
        if hasattr(value, "check_elements"):
            value.check_elements(self.descriptor.elements)
        check_elements(elements, self.descriptor.elements, "training data")
        if not (hasattr(value, "attach_descriptors") and value.attach_descriptors(self.descriptor)):
            self._check_neighbors(value.train_dataset.transforms)
        self.scaling.fit(self.training_values(value.train_dataset), self.goes_on)

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
    def training_values(self, dataset) -> Iterator[tuple[Tensor, Tensor]]:
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
            values = batch_descriptors(inputs[properties.R], strain, idx_m, inputs)
        else:
            r_ij = inputs[properties.Rij]
            idx_i, idx_j = inputs[properties.idx_i], inputs[properties.idx_j]
            engine = self.descriptor.engine(r_ij.device, self.backend)
            values = pair_descriptors(r_ij, idx_i, idx_j, numbers, engine)
        inputs[keys.scalar_representation] = self.scaling(values, numbers)
        return inputs


class FamilyRepresentation(DescriptorRepresentation):
    """Base of the representations of one family: a descriptor given, or one for some elements.

    Subclasses give `make`.

    Args:
        cutoff: largest distance of a neighbour, Ang.
        elements: symbols or atomic numbers; when not given, those of the training set.
        descriptor: an explicit descriptor, its dictionary or a file of that, instead.
        scaling, backend, select: as for `DescriptorRepresentation`.
        parameters: other arguments of the descriptor.
    """

    def __init__(
        self,
        cutoff: float = 5.0,
        elements: Sequence[int | str] | None = None,
        descriptor: Descriptor | Mapping | str | Path | None = None,
        scaling: str = "scale_center",
        backend: str = "auto",
        parameters: Mapping | None = None,
        select: int | None = None,
    ):
        super().__init__(descriptor, scaling, backend, select)
        self.parameters = dict(parameters or {})
        if descriptor is not None:
            return
        self.cutoff = float(cutoff)
        # others stand for open ones: wrong settings should be found before the data are read
        self.build(self.stand_ins() if elements is None else elements)
        if elements is None:
            self.descriptor = self.scaling = self._pool = None

    def stand_ins(self) -> Sequence[int | str]:
        """Elements that fit the parameters, where none are given."""
        return ["H"]

    def make(self, elements: Sequence[int | str]) -> Descriptor:
        """The descriptor of some elements."""
        raise NotImplementedError

    def build(self, elements: Sequence[int | str]) -> None:
        """Make the descriptor for these elements."""
        self._describe(self.make(elements))
