"""Energy, forces and stress of a trained potential by compiled loops, without autograd.

SchNetPack's way through `Strain`, `PairwiseDistances`, representation, networks and the derivative
is right for any model, but its operators cost more than the symmetry functions of a small
structure. In evaluation the result of the usual chain of modules is also

    F_i = sum_p(i = i_p) dE/dr_p - sum_p(i = j_p) dE/dr_p,      V stress = sum_p dE/dr_p (x) r_p

with dE/dr_p the vector-Jacobian product of the symmetry functions, which needs no graph. Anything
unusual (another module, hooks, stored descriptors, a GPU) goes SchNetPack's way.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from schnetpack import properties
from schnetpack.atomistic import PairwiseDistances, Strain
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo32, CastTo64
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.autograd import choose_backend
from schnetpack_softadapt.model.acsf import ACSF
from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.model.response import ForcesAndStress, inverse_volume
from schnetpack_softadapt.model.shift import ElementShift
from schnetpack_softadapt.neighbors.cells import stress_volumes

if TYPE_CHECKING:
    from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelBackend

__all__ = ["evaluate_directly"]

_CPU = torch.device("cpu")
_FLOAT, _INT, _BOOL = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)
_LAST_INPUT = [PairwiseDistances]
_OUTPUTS = [ElementalAtomwise, ForcesAndStress]
# these need no more of the batch than what is written here
_POSTPROCESSORS = (AddOffsets, CastTo32, CastTo64, ElementShift)


def evaluate_directly(model: NeuralNetworkPotential, inputs: dict[str, Tensor]) -> bool:
    """Write energy, forces and stress into the batch as the modules of the model would.

    Other than by the modules, the outputs have no graph (that of the energy is used up there), and
    no intermediate results are written.

    Args:
        model: any potential.
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
    backend = _kernels(model) if _is_usual(model) else None
    if backend is None:
        return False
    # only now: numba takes a second to load
    from schnetpack_softadapt.descriptors.acsf.kernels.engine import as_array
    from schnetpack_softadapt.model.compiled_networks import CompiledNetworks
    from schnetpack_softadapt.neighbors.pair_sums import pair_forces, pair_vectors

    scaling = model.representation.scaling
    networks, response = model.output_modules._modules.values()
    numbers, idx_m = as_array(inputs[properties.Z], _INT), as_array(inputs[properties.idx_m], _INT)
    idx_i, idx_j = (as_array(inputs[k], _INT) for k in (properties.idx_i, properties.idx_j))
    offsets = as_array(inputs[properties.offsets], _FLOAT)
    r_ij = pair_vectors(as_array(positions, _FLOAT), offsets, idx_i, idx_j)
    pairs = backend.prepare(r_ij, idx_i, idx_j, numbers)
    # made anew at each call: training changes the parameters in place
    compiled = CompiledNetworks(networks, scaling)
    energies, gradient = compiled(scaling.rows_of(numbers), backend.values_of(pairs))
    energies += as_array(networks.shifts.shift, _FLOAT)[numbers]
    n_structures = len(inputs[properties.n_atoms])
    forces, virial = pair_forces(
        idx_i, idx_j, r_ij, backend.vjp_of(pairs, gradient), idx_m, n_structures
    )
    energy = np.bincount(idx_m, energies, n_structures)
    inputs[networks.output_key] = torch.from_numpy(energy)
    if networks.per_atom_output_key is not None:
        inputs[networks.per_atom_output_key] = torch.from_numpy(energies)[:, None]
    if response.calc_forces:
        inputs[response.force_key] = torch.from_numpy(forces).to(positions.dtype)
    if response.calc_stress:
        cell = inputs[properties.cell]
        volume = stress_volumes(as_array(cell, _FLOAT), as_array(inputs[properties.pbc], _BOOL))
        if volume.min(initial=1.0) > 0 and keys.stress_mask not in inputs:
            virial /= volume[:, None, None]
        else:
            virial *= inverse_volume(inputs).numpy()[:, None, None]
        inputs[response.stress_key] = torch.from_numpy(virial).to(cell.dtype)
    return True


def _is_usual(model: NeuralNetworkPotential) -> bool:
    """Whether the modules are those whose result is known here, and nobody listens to them."""
    # `_modules`: going through a ModuleList takes several times longer
    before = [*model.input_modules._modules.values()]
    after = [*model.output_modules._modules.values()]
    if type(model.representation) is not ACSF or [type(m) for m in after] != _OUTPUTS:
        return False
    # SchNetPack's calculator adds another Strain each time
    if not before or [type(m) for m in before] != [Strain] * (len(before) - 1) + _LAST_INPUT:
        return False
    networks, response = after
    if (
        response.energy_key != networks.output_key
        or not response.required_derivatives  # without forces the energy keeps its graph
        or (response.calc_stress and len(before) == 1)
    ):
        return False
    for module in (model.representation, *before, *after):
        if (
            module.training
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return False
    return all(isinstance(m, _POSTPROCESSORS) for m in model.postprocessors._modules.values())


def _kernels(model: NeuralNetworkPotential) -> "KernelBackend | None":
    """The compiled symmetry functions of a model that they and the compiled networks can do."""
    representation, networks = model.representation, model.output_modules[0]
    layout, scaling = representation.layout, representation.scaling
    if layout is None or layout.elements != scaling.elements:
        return None
    backend = choose_backend(layout, representation.backend, _CPU)
    if not hasattr(backend, "prepare"):  # the reference is plain autograd
        return None
    from schnetpack_softadapt.model.compiled_networks import can_compile

    return backend if can_compile(networks, scaling) else None
