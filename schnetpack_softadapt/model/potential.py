"""The model that `spktrain` builds: SchNetPack's potential, completed from the training data."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import atomistic
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo32, CastTo64, ScaleProperty
from schnetpack.units import convert_units
from torch import Tensor, nn

from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.descriptors.elements import UnknownElementError, check_elements
from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.model.baseline import Baseline, baseline_of
from schnetpack_softadapt.model.composition import take_apart
from schnetpack_softadapt.model.direct import evaluate_directly
from schnetpack_softadapt.model.jacobian import JacobianRows, potential_jacobian
from schnetpack_softadapt.model.representation import DescriptorRepresentation
from schnetpack_softadapt.model.response import ForcesAndStress
from schnetpack_softadapt.model.start import check_start, start_from

__all__ = ["DescriptorPotential"]

log = logging.getLogger(__name__)

#: SchNetPack's modules that read no neighbour list, or only to prepare it for others
_WITHOUT_NEIGHBORS = {
    AddOffsets,
    CastTo32,
    CastTo64,
    ScaleProperty,
    atomistic.Aggregation,
    atomistic.Atomwise,
    atomistic.Forces,
    atomistic.PairwiseDistances,
    atomistic.Response,
    atomistic.Strain,
}


class DescriptorPotential(NeuralNetworkPotential):
    """`NeuralNetworkPotential` whose elements, descriptors and networks follow from the data.

    Before training, `initialize_transforms` resolves what the config leaves open: the elements of
    the data, the descriptor, its scaling, the networks of the elements. Everything is
    stored in the model, so that a saved model needs no data. Arguments are those of
    `schnetpack.model.NeuralNetworkPotential`.

    Descriptors from a store replace the neighbour lists of the batches, unless one of the modules
    may read these: all modules that are not known here, or whose class does not say
    `reads_neighbors = False` itself.

    Args:
        input_modules: `Strain` and `PairwiseDistances` if not given.
        start_from: a smaller model, or one of the same size, whose energies this one has before
            training, see `model.start`: the last step of a ladder, or a model that new data refine
            (`like`). Other codes and pseudopotentials count energies from other zeros, so only its
            differences are kept: the constants of the elements are fitted to the new labels.

    Attributes:
        metadata: what a user of the saved model must know: units, elements, descriptor,
            provenance of the training data.
    """

    #: a list, lest it become a part of this model; None once the model has started
    _start: list[nn.Module] | None = None

    def __init__(
        self,
        representation: nn.Module,
        input_modules: Sequence[nn.Module] | None = None,
        *args,
        start_from: nn.Module | None = None,
        **kwargs,
    ):
        if input_modules is None:
            input_modules = [atomistic.Strain(), atomistic.PairwiseDistances()]
        super().__init__(representation, input_modules, *args, **kwargs)
        self._start = None if start_from is None else [start_from]
        self.metadata: dict = {}
        self._build_networks()

    @classmethod
    def like(
        cls,
        start_from: nn.Module,
        representation: DescriptorRepresentation,
        cutoff: float | None = None,
        n_hidden: Sequence[int] | str | None = None,
        activation: str | None = None,
    ) -> "DescriptorPotential":
        """A model of the form of another, which new data refine: `start_from` and its baseline.

        Args:
            start_from: any of our models, of the same units as the new data.
            representation: without a descriptor; it gets that of the other, with its scaling if it
                has statistics.
            cutoff: that of the descriptor, Ang, or None.
            n_hidden, activation: of the networks; those of the other if None.

        Raises:
            UnsupportedModelError: the other is no `Composition`.
            ValueError: another cutoff.
        """
        other = take_apart(start_from, short_range=True)
        descriptor, old = other.descriptor, other.networks
        if cutoff is not None and abs(cutoff - descriptor.cutoff) > 1e-9:
            raise ValueError(
                f"the model that is started from has a cutoff of {descriptor.cutoff:g} Ang, and its"
                f" energies cannot be had with globals.cutoff={cutoff:g}"
            )
        if representation.descriptor is None and type(representation) is DescriptorRepresentation:
            representation.goes_on = True
            representation.settle(descriptor)
            if other.scaling.is_fitted:
                representation.scaling = copy.deepcopy(other.scaling)
        widths = old.n_hidden if n_hidden is None else n_hidden
        networks = ElementalAtomwise(
            n_hidden=widths,
            activation=activation or "tanh",
            fit_scale=len(widths) > 0,
            quadratic=old.quadratic,
            dtype="float64",
        )
        if activation is None and len(networks.n_hidden) == len(old.n_hidden):
            networks.activations = old.activations
        return cls(
            representation,
            output_modules=[networks, ForcesAndStress("auto", "auto")],
            postprocessors=[] if other.baseline is None else [copy.deepcopy(other.baseline)],
            start_from=start_from,
        ).train()

    @property
    def baseline(self) -> Baseline | None:
        """What is added to the networks, of the postprocessors; its labels are not learned."""
        return baseline_of(self)

    def _build_networks(self) -> None:
        descriptor = getattr(self.representation, "descriptor", None)
        if descriptor is None:
            return
        for module in self.output_modules:
            if isinstance(module, ElementalAtomwise) and not module.is_built:
                module.build(descriptor.elements, descriptor.n_functions)
            if isinstance(module, ElementalAtomwise) and module.has_densities:
                self.representation.scaling.keep_zero()

    def _follow_labels(self, datamodule) -> None:
        """Forces and stress that are "auto" are computed if the training data have them."""
        for module in self.output_modules:
            if isinstance(module, ForcesAndStress):
                targets = training_targets(datamodule).named(
                    module.energy_key, module.force_key, module.stress_key
                )
                for network in self.output_modules:
                    if isinstance(network, ElementalAtomwise):
                        network.force_key = module.force_key
                        if network.output_key not in targets.labels:  # a term of the energy
                            network.shifts.target_key = module.energy_key
                has_stress = targets.stress is not None and bool(targets.stress_mask.any())
                module.follow(targets.forces is not None, has_stress)
        self.collect_derivatives()
        self.collect_outputs()

    def initialize_transforms(self, datamodule) -> None:
        """Complete the model from the training set of a data module.

        Raises:
            UnknownElementError: the data contain an element that the model was not built for.
            ValueError: the model that this one starts from is no part of it, or has other units
                than the data.
        """
        if self._start is not None:
            self._check_start(datamodule)
        baseline = self.baseline
        if baseline is not None:
            baseline.datamodule(datamodule)  # first: all else is fitted to what it leaves
            self.metadata["baseline"] = baseline.to_dict()
            for module in self.output_modules:
                if isinstance(module, ElementalAtomwise):
                    module.fade = baseline.fade
        describes = isinstance(self.representation, DescriptorRepresentation)
        if describes:
            self.representation.complete(datamodule)
        if self._start is not None:
            check_start(self.representation.descriptor, *self._start)  # before a store is built
        self._follow_labels(datamodule)
        datamodule.keep_neighbors = self._reads_neighbors()
        # the networks must exist before the transforms, which fit their scale and shifts
        self._build_networks()
        super().initialize_transforms(datamodule)
        dataset = datamodule.dataset
        self.metadata.update(
            units={**dict(dataset.units), "length": dataset.distance_unit},
            provenance=dataset.metadata.get("provenance", ""),
        )
        if describes:
            descriptor = self.representation.descriptor
            self.metadata.update(
                elements=[chemical_symbols[z] for z in descriptor.elements],
                descriptor=descriptor.to_dict(),
            )
            log.info("descriptors:\n%s", descriptor.summary())
            log.debug("all of them:\n%s", descriptor)
        if self._start is not None:
            start_from(self, *self._start)
            self._fit_constants(datamodule)
            self._start = None

    def _check_start(self, datamodule) -> None:
        (start,), dataset = self._start, datamodule.dataset
        mine = {**dict(dataset.units), "length": dataset.distance_unit}
        theirs = (getattr(start, "metadata", None) or {}).get("units", {})
        theirs = {k: theirs[k] for k in ("energy", "length") if k in theirs and k in mine}
        other = [
            f"{theirs[k]}, not {mine[k]}"
            for k in theirs
            if abs(convert_units(theirs[k], mine[k]) - 1.0) > 1e-9
        ]
        if other:
            raise ValueError(
                f"the model that is started from is in {'; '.join(other)} as the data: convert them"
            )
        if getattr(self.representation, "goes_on", False):
            known = self.representation.descriptor.elements
            try:
                if hasattr(datamodule, "check_elements"):
                    datamodule.check_elements(known)
                check_elements(training_targets(datamodule).elements.tolist(), known)
            except UnknownElementError as error:
                raise UnknownElementError(
                    f"{error}, or start a larger one (--model) from it"
                ) from error

    @torch.no_grad()
    def _fit_constants(self, datamodule) -> None:
        """Add to the constants of the elements what the labels of energies are off by."""
        parts = take_apart(self, postprocessed=False, short_range=True)
        networks, offsets = parts.networks, parts.offsets
        targets = training_targets(datamodule).named(energy=networks.shifts.target_key)
        if targets.energy is None:
            return
        energies = [
            float(networks.atomic_energies(parts.scaling(values, z), z).double().sum())
            + float(offsets[z].sum())
            for values, z in self.representation.training_values(datamodule.train_dataset)
        ]
        left = replace(targets, energy=targets.energy - np.array(energies))
        elements, constants = composition_fit(left)
        for z, constant in zip(elements.tolist(), constants.tolist(), strict=True):
            networks.shifts.shift[z] += constant
            log.info("constant energy of %s moved by %.6g eV", chemical_symbols[z], constant)

    def _reads_neighbors(self) -> bool:
        """Whether batches need neighbour lists beside stored descriptors."""
        modules = [self.representation, *self.input_modules, *self.output_modules]
        # the class itself must be known: what it says need not hold for its subclasses
        kinds = {type(m) for m in [*modules, *self.postprocessors]} - _WITHOUT_NEIGHBORS
        kinds = {kind for kind in kinds if kind.__dict__.get("reads_neighbors", True)}
        if kinds:
            log.info(
                "batches carry neighbour lists beside stored descriptors, for %s; a class that"
                " reads none says so with reads_neighbors = False",
                ", ".join(sorted(kind.__name__ for kind in kinds)),
            )
        return bool(kinds)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs for a batch; in evaluation on the CPU without SchNetPack's modules.

        See `model.direct` for when that is, and what it leaves out.
        """
        if evaluate_directly(self, inputs):
            return self.extract_outputs(self.postprocess(inputs))
        return super().forward(inputs)

    def parameter_jacobian(
        self,
        batch: Mapping[str, Tensor],
        wanted: Sequence[JacobianRows],
        room: Tensor | None = None,
    ) -> Tensor | None:
        """Derivatives of outputs by the trainable parameters; see `potential_jacobian`.

        Second-order optimizers ask for it; None sends them to automatic differentiation.
        """
        return potential_jacobian(self, batch, wanted, room)
