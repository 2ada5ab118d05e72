"""Models taken apart: descriptor, scaling, networks, constant energies, response, baseline."""

from typing import NamedTuple

import torch
from schnetpack.atomistic import Forces
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo32, CastTo64
from torch import nn

from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.model.baseline import Baseline
from schnetpack_softadapt.model.representation import DescriptorRepresentation
from schnetpack_softadapt.model.shift import ElementShift

__all__ = ["Composition", "UnsupportedModelError", "take_apart"]


class UnsupportedModelError(ValueError):
    """A model has modules that what is asked for cannot express; the message says which."""


class Composition(NamedTuple):
    """What determines the energy, E = sum_i [networks(scaling(G_i)) + offsets[Z_i]] + baseline."""

    representation: DescriptorRepresentation  # gives the descriptors, scaled
    networks: ElementalAtomwise  # one network per element, including their energy scale and shifts
    response: Forces | None  # gives forces and stress; None if the model has none
    constants: list[nn.Module]  # modules that add a constant for each atom to the energy
    baseline: Baseline | None = None  # a sum over pairs that is added to it

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor."""
        return self.representation.descriptor

    @property
    def scaling(self) -> Scaling:
        """Scaling and training ranges of the descriptors."""
        return self.representation.scaling

    @property
    def offsets(self) -> torch.Tensor:
        """(119,) energy per atom by atomic number, eV, float64, of networks and constants."""
        offsets = self.networks.shifts.shift.detach().cpu().double().clone()
        for module in self.constants:
            if isinstance(module, ElementShift):
                offsets += module.shift.detach().cpu().double()
                continue
            if module.add_mean:
                offsets += float(module.mean)
            if module.add_atomrefs:
                n = min(len(offsets), len(module.atomref))
                offsets[:n] += module.atomref[:n].detach().cpu().double().flatten()
        return offsets


def take_apart(
    model: nn.Module, postprocessed: bool = True, short_range: bool = False
) -> Composition:
    """The composition of a model.

    Args:
        postprocessed: include what the postprocessors add to the energy.
        short_range: the caller also takes what is beyond networks and constants: a baseline, and
            networks that fade out (`networks.fade`). Others are refused such a model, since without
            these it would be another.

    Raises:
        UnsupportedModelError: the model is no `Composition`.
    """
    representation = getattr(model, "representation", None)
    forward = getattr(type(representation), "forward", None)
    if (
        not isinstance(model, NeuralNetworkPotential)
        or forward is not DescriptorRepresentation.forward
    ):
        raise UnsupportedModelError(
            "only models whose representation is a descriptor such as ACSF will do, not"
            f" {type(model).__name__} with {type(representation).__name__}"
        )
    # `_modules`: going through a ModuleList takes several times longer
    outputs = [*model.output_modules._modules.values()]
    networks = [m for m in outputs if type(m) is ElementalAtomwise]
    if representation.descriptor is None or len(networks) != 1 or not networks[0].is_built:
        raise UnsupportedModelError(
            "the model needs exactly one ElementalAtomwise whose networks exist: train it first"
        )
    networks, descriptor = networks[0], representation.descriptor
    if networks.elements != descriptor.elements or networks.n_columns != descriptor.n_columns:
        raise UnsupportedModelError("the networks are not made for the elements of the descriptor")
    response, constants, baseline = None, [], None
    after = model.postprocessors if postprocessed and model.do_postprocessing else []
    for module in [*outputs, *after]:
        if isinstance(module, Forces) and response is None:
            response = module
        elif _adds_constant(module, networks.output_key):
            constants.append(module)
        elif isinstance(module, Baseline) and module.is_pairwise:
            baseline = module
        elif isinstance(module, Baseline):
            raise UnsupportedModelError(
                f"the baseline {module.to_dict()} is no sum over pairs: it runs only with ASE"
            )
        elif module is not networks and not isinstance(module, (CastTo32, CastTo64)):
            raise UnsupportedModelError(
                f"the module {type(module).__name__} is no sum of atomic energies: it has no"
                " counterpart"
            )
    if not short_range and (baseline is not None or networks.fade is not None):
        what = "its networks fade out" if baseline is None else f"{baseline.to_dict()}"
        raise UnsupportedModelError(
            f"the model has a baseline ({what}), for which there is no place here: without it the"
            " potential would be another"
        )
    return Composition(representation, networks, response, constants, baseline)


def _adds_constant(module: nn.Module, energy_key: str) -> bool:
    if isinstance(module, ElementShift):
        return module.output_key == energy_key
    return isinstance(module, AddOffsets) and module._property == energy_key and module.is_extensive
