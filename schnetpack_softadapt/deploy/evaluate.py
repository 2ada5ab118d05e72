"""Energy, forces and stress of one structure from its pair list, with little around the model.

`ComposedModels` is the short way for sums of networks of descriptors on the CPU, also in chunks of
atoms, so that large structures fit in memory. `BatchModel` calls any SchNetPack model on a batch of
one structure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from schnetpack import properties
from schnetpack.atomistic import Strain
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.deploy.extrapolation import ExtrapolationMonitor
from schnetpack_softadapt.deploy.skin import PairList, check_finite
from schnetpack_softadapt.model import ForcesAndStress
from schnetpack_softadapt.model.composition import Composition
from schnetpack_softadapt.model.pair_evaluator import PairEvaluator
from schnetpack_softadapt.neighbors.pair_list import LinkedCells
from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces

__all__ = [
    "BatchModel",
    "ComposedModels",
    "Geometry",
    "Prediction",
    "activate_responses",
    "evaluate_in_chunks",
]


@dataclass
class Geometry:
    """A structure as the models see it: float64 arrays, Ang."""

    numbers: np.ndarray  # (n_atoms,)
    positions: np.ndarray  # (n_atoms, 3)
    cell: np.ndarray  # (3, 3) rows
    pbc: np.ndarray  # (3,)
    volume: float  # Ang^3, 0 where a stress has no meaning


@dataclass
class Prediction:
    """What one model says, in its own units."""

    energy: float
    forces: np.ndarray  # (n_atoms, 3)
    stress: np.ndarray | None  # (3, 3), symmetric, positive = tension
    energies: np.ndarray | None  # (n_atoms,)


class ComposedModels:
    """Models with the same descriptor, evaluated by the short way; see `model.pair_evaluator`."""

    def __init__(self, models: Sequence[Composition], monitor: ExtrapolationMonitor | None = None):
        self.monitor = monitor
        self.evaluator = PairEvaluator(models, None if monitor is None else monitor.add)

    def __call__(self, structure: Geometry, pairs: PairList) -> list[Prediction]:
        """One prediction for each model."""
        sums = self.begin(len(structure.numbers))
        indices = pairs.idx_i, pairs.idx_j
        self.add(sums, 0, len(structure.numbers), *indices, pairs.r_ij, *indices, structure.numbers)
        return self.finish(sums, structure.volume)

    def begin(self, n_atoms: int) -> list["_Sums"]:
        """Sums for each model, to which the atoms of a structure are added."""
        return [_Sums(n_atoms) for _ in range(self.evaluator.n_models)]

    def add(self, sums, start, stop, idx_i, idx_j, r_ij, local_i, local_j, numbers) -> None:
        """Add the atoms start to stop.

        Args:
            local_i, local_j: the atoms of the pairs in `numbers`.
            numbers: atomic numbers, first those of the range, then of all other neighbours.
        """
        results = self.evaluator(r_ij, local_i, local_j, numbers, stop - start, start)
        for one, (energies, gradient) in zip(sums, results, strict=True):
            one.energies[start:stop] = energies
            add_pair_forces(idx_i, idx_j, r_ij, gradient, one.idx_m, one.forces, one.virial)

    def finish(self, sums: list["_Sums"], volume: float) -> list[Prediction]:
        """One prediction for each model, when all atoms of a structure have been added.

        Raises:
            ExtrapolationError: too many descriptors outside of the training range.
        """
        if self.monitor is not None:
            self.monitor.finish()
        return [one.prediction(volume) for one in sums]


class _Sums:
    """Results of one model so far: energies (N,), forces (N, 3), virial dE/dstrain (1, 3, 3)."""

    def __init__(self, n_atoms: int):
        self.energies = np.zeros(n_atoms)
        self.forces = np.zeros((n_atoms, 3))
        self.virial = np.zeros((1, 3, 3))
        self.idx_m = np.zeros(n_atoms, np.int64)

    def prediction(self, volume: float) -> Prediction:
        stress = self.virial[0] / volume if volume else None
        return Prediction(float(self.energies.sum()), self.forces, stress, self.energies)


def evaluate_in_chunks(
    evaluators: Sequence[ComposedModels],
    structure: Geometry,
    cutoff: float,
    atoms_per_chunk: int,
    length_unit: float = 1.0,
) -> list[Prediction]:
    """What the evaluators give for a structure, to rounding, with the pairs of a chunk at a time.

    The energy is a sum over atoms, and a descriptor sees no more of a neighbour than its vector and
    its element. So the atoms of a chunk, with one atom of each element to stand for all neighbours,
    are a small structure of their own; only forces and virial are sums over the chunks. Neighbours
    are searched anew at each call: a list of all pairs to keep is what does not fit.

    Args:
        structure: in Ang.
        cutoff: the largest of the models, Ang.
        length_unit: the models' unit of length, Ang.

    Returns:
        one prediction for each model of each evaluator, in the models' units.

    Raises:
        ValueError: positions or cell are not finite, or a periodic direction has no vector.
        ExtrapolationError: too many descriptors outside of the training range.
    """
    check_finite(structure.positions, structure.cell[structure.pbc])
    cells = LinkedCells(structure.positions, structure.cell, structure.pbc, cutoff)
    numbers, n_atoms = structure.numbers, len(structure.numbers)
    elements, element_of = np.unique(numbers, return_inverse=True)
    sums = [evaluator.begin(n_atoms) for evaluator in evaluators]
    for start in range(0, n_atoms, atoms_per_chunk):
        stop = min(start + atoms_per_chunk, n_atoms)
        idx_i, idx_j, r_ij = cells.pairs(start, stop)
        r_ij /= length_unit
        local = idx_i - start, stop - start + element_of[idx_j]
        z = np.concatenate([numbers[start:stop], elements])
        for evaluator, of_models in zip(evaluators, sums, strict=True):
            evaluator.add(of_models, start, stop, idx_i, idx_j, r_ij, *local, z)
    volume = structure.volume / length_unit**3
    results = [e.finish(of, volume) for e, of in zip(evaluators, sums, strict=True)]
    return [prediction for of_models in results for prediction in of_models]


class BatchModel:
    """Any SchNetPack model that gives energy and forces.

    Args:
        model: in evaluation mode; stress is computed if its key is among the outputs.
        keys: names of its "energy", "forces" and "stress", the last may be None.
        transforms: applied to every structure after the pairs are known, for models that need more
            than pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Mapping[str, str | None],
        device: str | torch.device,
        dtype: torch.dtype,
        transforms: Sequence[Callable] = (),
        additional_inputs: Mapping[str, torch.Tensor] | None = None,
    ):
        self.model, self.keys = model, keys
        self.device, self.dtype = torch.device(device), dtype
        self.transforms = list(transforms)
        self.additional_inputs = dict(additional_inputs or {})

    def __call__(self, structure: Geometry, pairs: PairList) -> list[Prediction]:
        """A list of one prediction."""
        results = self.model(self._batch(structure, pairs))
        stress = None
        if structure.volume and self.keys["stress"] in results:
            stress = _numpy(results[self.keys["stress"]]).reshape(3, 3) * self._sign(structure.cell)
            stress = 0.5 * (stress + stress.T)
        energy = float(_numpy(results[self.keys["energy"]]).sum())
        energies = None
        if keys.atomic_energies in results:
            energies = _numpy(results[keys.atomic_energies]).reshape(-1)
            # a module after the networks may have added to the energy, but not to its parts
            if abs(energies.sum() - energy) > 1e-5 * max(1.0, abs(energy)):
                energies = None
        return [Prediction(energy, _numpy(results[self.keys["forces"]]), stress, energies)]

    def _sign(self, cell: np.ndarray) -> float:
        """SchNetPack divides by the signed volume: the stress of a left-handed cell flips."""
        if any(isinstance(m, ForcesAndStress) for m in self.model.output_modules):
            return 1.0
        return float(np.sign(np.linalg.det(cell)))

    def _batch(self, structure: Geometry, pairs: PairList) -> dict[str, torch.Tensor]:
        n_atoms = len(structure.numbers)
        # stock models divide by the volume without a look at it: a dummy box for what has none
        cell = structure.cell if structure.volume else np.eye(3)
        batch = {
            properties.idx: torch.zeros(1, dtype=torch.long),
            properties.n_atoms: torch.tensor([n_atoms]),
            properties.Z: torch.from_numpy(structure.numbers),
            properties.R: torch.from_numpy(structure.positions).to(self.dtype),
            properties.cell: torch.from_numpy(cell).to(self.dtype).view(1, 3, 3),
            properties.pbc: torch.from_numpy(structure.pbc),
            properties.idx_i: torch.from_numpy(pairs.idx_i),
            properties.idx_j: torch.from_numpy(pairs.idx_j),
            properties.offsets: torch.from_numpy(pairs.offsets).to(self.dtype),
            # our ForcesAndStress refuses the stress of a structure that has none, unless told so
            keys.stress_mask: torch.tensor([1.0 if structure.volume else 0.0]),
            **self.additional_inputs,
        }
        for transform in self.transforms:
            batch = transform(batch)
        batch[properties.idx_m] = torch.zeros(n_atoms, dtype=torch.long)
        # forward writes into the batch: nothing in it may share memory with what is kept
        return {key: value.clone().to(self.device) for key, value in batch.items()}


def activate_responses(model: nn.Module, force_key: str = "auto", stress_key: str | None = "auto"):
    """Make a model compute forces, and stress if its key is not None, in place.

    Names of what it already computes stay as they are, "auto" is the module's own name.
    SchNetPack's `activate_model_stress` inserts a further Strain each time it is called, which
    strains twice.
    """
    module = next((m for m in model.output_modules if hasattr(m, "calc_stress")), None)
    if module is None:
        return
    if not module.calc_forces:
        module.calc_forces = True
        module.force_key = module.force_key if force_key == "auto" else force_key
    if not module.calc_stress and stress_key is not None:
        module.calc_stress = True
        module.stress_key = module.stress_key if stress_key == "auto" else stress_key
    responses = [(module.force_key, properties.R)]
    if module.calc_stress:
        responses.append((module.stress_key, properties.strain))
        if not any(isinstance(m, Strain) for m in model.input_modules):
            model.input_modules.insert(0, Strain())
    module.model_outputs, module.required_derivatives = map(list, zip(*responses, strict=True))
    model.collect_derivatives()
    model.collect_outputs()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
