"""Models made of what a file holds, and what is asked of models before they are written."""

from collections.abc import Mapping

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.deploy.exchange.text import FILE_NAME, Member
from schnetpack_softadapt.deploy.self_description import common_unit
from schnetpack_softadapt.model import (
    ZBL,
    DescriptorPotential,
    DescriptorRepresentation,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.baseline import Baseline
from schnetpack_softadapt.model.composition import Composition, UnsupportedModelError

__all__ = ["energy_in_ev", "made_model", "made_networks", "refuse_fading", "to_model"]


def made_networks(
    n_in: int | Mapping[str, int], shifts: Mapping[str, float], **arguments
) -> ElementalAtomwise:
    """Networks of the elements that have a constant energy in `shifts`, to be filled."""
    return ElementalAtomwise(
        n_in=n_in,
        elements=list(shifts),
        per_atom_output_key=keys.atomic_energies,
        fit_shifts=False,
        shifts=shifts,
        fit_scale=False,
        **arguments,
    )


def made_model(
    representation: DescriptorRepresentation,
    networks: ElementalAtomwise,
    provenance: str,
    baseline: Baseline | None = None,
) -> DescriptorPotential:
    """The potential (float64, energies, forces and stress, eV and Ang) of these parts."""
    model = DescriptorPotential(
        representation=representation,
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
        postprocessors=[] if baseline is None else [baseline],
        input_dtype_str="float64",
    ).double()
    model.metadata.update(
        units={"energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang/Ang/Ang", "length": "Ang"},
        elements=[chemical_symbols[z] for z in representation.descriptor.elements],
        descriptor=representation.descriptor.to_dict(),
        provenance=provenance,
    )
    return model.eval()


def to_model(member: Member) -> DescriptorPotential:
    """The model of a member of a text potential."""
    d = member.descriptor
    symbols = [chemical_symbols[z] for z in d.elements]
    networks = made_networks(
        {chemical_symbols[z]: n for z, n in d.n_functions.items()},
        dict(zip(symbols, member.offsets.tolist(), strict=True)),
        n_hidden=[b.shape[1] for b in member.biases[:-1]],
        quadratic=member.weights[0].shape[1] > d.n_columns,
    )
    networks.activations = member.activations
    baseline = None
    if member.zbl:
        cutoffs = {"-".join(symbols): pair for symbols, *pair in member.zbl}
        elements = {atomic_numbers[s] for symbols, _, _ in member.zbl for s in symbols}
        baseline = ZBL.of_elements(elements, cutoffs=cutoffs, fade=member.fade is not None)
        baseline.fade = member.fade
    representation = DescriptorRepresentation(d, scaling=member.mode)
    model = made_model(representation, networks, f"read from {FILE_NAME}", baseline)
    networks.fade = member.fade
    networks.scale.fill_(member.scale)
    scaling = representation.scaling
    with torch.no_grad():
        for stack, own in zip(networks.weights, member.weights, strict=True):
            stack.copy_(torch.from_numpy(own))
        for stack, own in zip(networks.biases, member.biases, strict=True):
            stack.copy_(torch.from_numpy(own)[:, None])
        for name, table in member.scaling.items():
            if table is not None:
                getattr(scaling, name).copy_(torch.from_numpy(table))
    scaling.n_atoms.fill_(int(member.scaling["minimum"] is not None))  # the file has no numbers
    return model


def energy_in_ev(model: nn.Module, composition: Composition) -> float:
    """The model's unit of energy; eV where it states none.

    Raises:
        UnsupportedModelError: its unit of length is not Ang.
    """
    stated = (getattr(model, "metadata", None) or {}).get("units", {})
    key = composition.networks.output_key
    _, energy = common_unit([model], [key], "energy", stated.get(key, "eV"))
    unit, length = common_unit([model], ["length"], "position", stated.get("length", "Ang"))
    if length != 1.0:
        raise UnsupportedModelError(
            f"the model's unit of length is {unit}; a potential is written in Ang"
        )
    return energy


def refuse_fading(composition: Composition, pair_style: str) -> None:
    """Refuse a model whose networks fade out, for a pair style whose cannot."""
    if composition.networks.fade is not None:
        raise UnsupportedModelError(
            "the networks fade out below the distances of the data, which those of pair_style"
            f" {pair_style} cannot; with model.postprocessors.0.fade=false in training they would"
            " not"
        )
