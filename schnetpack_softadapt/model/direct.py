"""Energy, forces and stress of a batch by the short way, where it leads to the modules' result."""

import numpy as np
import torch
from schnetpack import properties
from schnetpack.atomistic import PairwiseDistances, Strain
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo32, CastTo64
from torch import Tensor, nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.model.baseline import Baseline
from schnetpack_softadapt.model.composition import Composition, UnsupportedModelError, take_apart
from schnetpack_softadapt.model.response import ForcesAndStress, inverse_volume
from schnetpack_softadapt.model.shift import ElementShift

__all__ = ["evaluate_directly"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)
# these need no more of the batch than what is written here
_POSTPROCESSORS = (AddOffsets, Baseline, CastTo32, CastTo64, ElementShift)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def evaluate_directly(model: NeuralNetworkPotential, inputs: dict[str, Tensor]) -> bool:
    """Write energy, forces and stress into the batch as the modules of the model would.

    Other than by the modules, the outputs have no graph (that of the energy is used up there), and
    no intermediate results are written. Anything unusual (another module, hooks, stored
    descriptors, a GPU, an engine that is asked to be exact) goes SchNetPack's way.

    Args:
        inputs: a batch of structures with `_offsets`, `_idx_i`, `_idx_j`.

    Returns:
        False if the batch has been left as it is, because this way is not for it.

    Raises:
        ValueError: as the modules do.
        IndexError: a pair of an atom, or an atom of a structure, that does not exist.
    """
    positions = inputs[properties.R]
    if model.training or not positions.is_cpu or keys.descriptors in inputs:
        return False
    composition = _usual_composition(model)
    if composition is None:
        return False
    # only now: numba takes a second to load
    from schnetpack_softadapt.descriptors.compiled import as_array
    from schnetpack_softadapt.model.pair_evaluator import PairEvaluator
    from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces, pair_vectors

    # made anew at each call: training changes the parameters in place
    evaluator = PairEvaluator([composition])
    if evaluator.engine.is_exact:
        return False
    networks, response = composition.networks, composition.response
    numbers, idx_m = as_array(inputs[properties.Z], _INT), as_array(inputs[properties.idx_m], _INT)
    idx_i, idx_j = (as_array(inputs[k], _INT) for k in (properties.idx_i, properties.idx_j))
    offsets = as_array(inputs[properties.offsets], _FLOAT)
    r_ij = pair_vectors(as_array(positions, _FLOAT), offsets, idx_i, idx_j)
    ((energies, gradient),) = evaluator(r_ij, idx_i, idx_j, numbers, len(numbers))
    n_structures = len(inputs[properties.n_atoms])
    forces, virial = np.zeros((len(numbers), 3)), np.zeros((n_structures, 3, 3))
    add_pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, forces, virial)
    inputs[networks.output_key] = torch.from_numpy(np.bincount(idx_m, energies, n_structures))
    if networks.per_atom_output_key is not None:
        inputs[networks.per_atom_output_key] = torch.from_numpy(energies)[:, None]
    if response.calc_forces:
        inputs[response.force_key] = torch.from_numpy(forces).to(positions.dtype)
    if response.calc_stress:
        virial *= inverse_volume(inputs).numpy()[:, None, None]
        dtype = inputs[properties.cell].dtype
        inputs[response.stress_key] = torch.from_numpy(virial).to(dtype)
    return True


def _usual_composition(model: NeuralNetworkPotential) -> Composition | None:
    """The composition of a model whose modules do what is done here, without hooks on them."""
    try:
        composition = take_apart(model, postprocessed=False, short_range=True)
    except UnsupportedModelError:
        return None
    response, energy_key = composition.response, composition.networks.output_key
    before = [*model.input_modules._modules.values()]
    if (
        type(response) is not ForcesAndStress
        or [*model.output_modules._modules.values()] != [composition.networks, response]
        or response.energy_key != energy_key
        or not response.required_derivatives  # without forces the energy keeps its graph
        or not before
        or (response.calc_stress and len(before) == 1)
        # SchNetPack's calculator adds another Strain each time
        or [type(m) for m in before] != [Strain] * (len(before) - 1) + [PairwiseDistances]
    ):
        return None
    modules = (composition.representation, *before, composition.networks, response)
    if any(map(_is_watched, modules)):
        return None
    after = model.postprocessors._modules.values()
    return composition if all(isinstance(m, _POSTPROCESSORS) for m in after) else None


def _is_watched(module: nn.Module) -> bool:
    return module.training or any(getattr(module, name) for name in _HOOKS)
