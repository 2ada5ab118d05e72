"""Taking a Behler-Parrinello model apart into descriptors, scaling, networks and energy offsets."""

from dataclasses import dataclass

import torch
from schnetpack.atomistic import Forces
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo32, CastTo64
from torch import nn

from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.model import ACSF, ElementalAtomwise, ElementShift

__all__ = ["ModelParts", "UnsupportedModelError", "model_parts"]


class UnsupportedModelError(ValueError):
    """A model has parts that what is asked for cannot express; the message says which."""


@dataclass
class ModelParts:
    """What determines the energy, E = sum_i [networks(scaling(G_i)) + offsets[Z_i]].

    Attributes:
        representation: holds `layout` and `scaling`, and the name of the backend.
        networks: one network per element, including their energy scale.
        offsets: (119,) energy per atom by atomic number, eV, float64; the networks' own shifts and
            what ElementShift and AddOffsets add.
    """

    representation: ACSF
    networks: ElementalAtomwise
    offsets: torch.Tensor

    @property
    def layout(self) -> Layout:
        """The symmetry functions."""
        return self.representation.layout

    @property
    def scaling(self) -> Scaling:
        """Scaling and training ranges of the symmetry functions."""
        return self.representation.scaling


def model_parts(model: nn.Module) -> ModelParts:
    """Take a model apart.

    Raises:
        UnsupportedModelError: there is anything in the model that these parts do not cover.
    """
    representation = getattr(model, "representation", None)
    if not isinstance(model, NeuralNetworkPotential) or not isinstance(representation, ACSF):
        raise UnsupportedModelError(
            f"only models with the ACSF representation will do, not {type(model).__name__} with"
            f" {type(representation).__name__}"
        )
    networks = [m for m in model.output_modules if isinstance(m, ElementalAtomwise)]
    if representation.layout is None or len(networks) != 1 or not networks[0].is_built:
        raise UnsupportedModelError(
            "the model needs exactly one ElementalAtomwise whose networks exist: train it first"
        )
    energy_key = networks[0].output_key
    offsets = networks[0].shifts.shift.detach().cpu().double().clone()
    postprocessors = list(model.postprocessors) if model.do_postprocessing else []
    for module in [*model.output_modules, *postprocessors]:
        if isinstance(module, (ElementalAtomwise, Forces, CastTo32, CastTo64)):
            continue
        if isinstance(module, ElementShift) and module.output_key == energy_key:
            offsets += module.shift.detach().cpu().double()
        elif (
            isinstance(module, AddOffsets)
            and module._property == energy_key
            and module.is_extensive
        ):
            if module.add_mean:
                offsets += float(module.mean)
            if module.add_atomrefs:
                n = min(len(offsets), len(module.atomref))
                offsets[:n] += module.atomref[:n].detach().cpu().double().flatten()
        else:
            raise UnsupportedModelError(
                f"the module {type(module).__name__} is no sum of atomic energies: it has no"
                " counterpart"
            )
    return ModelParts(representation, networks[0], offsets)
