"""Energy, forces and stress of one structure from its pair list, with little around the model.

`ComposedModels` is the short way for Behler-Parrinello models on the CPU: descriptors, network,
and the derivative of the pair vectors, without SchNetPack's modules in between. `BatchModel` calls
any SchNetPack model on a batch of one structure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from schnetpack import properties
from schnetpack.atomistic import Strain
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.deploy.extrapolation import ExtrapolationMonitor
from schnetpack_softadapt.deploy.parts import ModelParts
from schnetpack_softadapt.deploy.skin import Pairs
from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelBackend
from schnetpack_softadapt.descriptors.autograd import choose_backend
from schnetpack_softadapt.model import ForcesAndStress
from schnetpack_softadapt.model.compiled_networks import CompiledNetworks, can_compile
from schnetpack_softadapt.neighbors.pair_sums import pair_forces

__all__ = ["BatchModel", "ComposedModels", "Prediction", "Structure", "activate_responses"]


@dataclass
class Structure:
    """One structure as the models see it: float64 arrays, Ang."""

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
    stress: np.ndarray | None  # (3, 3), positive = tension
    energies: np.ndarray | None  # (n_atoms,)


class ComposedModels:
    """Models with the same symmetry functions: these are computed once for all of them.

    Args:
        parts: the models, taken apart; on the CPU.
        dtype: precision of descriptors and networks where these are torch's; the compiled loops
            and sums over atoms are float64.
        monitor: counts extrapolations.
    """

    def __init__(
        self,
        parts: Sequence[ModelParts],
        dtype: torch.dtype,
        monitor: ExtrapolationMonitor | None = None,
    ):
        self.parts = list(parts)
        self.dtype = dtype
        self.monitor = monitor
        first = self.parts[0]
        self.backend = choose_backend(
            first.layout, first.representation.backend, torch.device("cpu")
        )
        # without autograd where backend and networks allow it
        self._is_compiled = isinstance(self.backend, KernelBackend) and all(
            p.layout.elements == p.scaling.elements and can_compile(p.networks, p.scaling)
            for p in self.parts
        )
        if self._is_compiled:
            self._networks = [CompiledNetworks(p.networks, p.scaling) for p in self.parts]
        # by atomic number; all models have the same elements
        self._offsets = [p.offsets.numpy() for p in self.parts]
        self._rows = first.scaling.rows_of(np.arange(len(self._offsets[0])))

    def __call__(self, structure: Structure, pairs: Pairs) -> list[Prediction]:
        """One prediction for each model."""
        numbers, idx_i, idx_j, r_ij = structure.numbers, pairs.idx_i, pairs.idx_j, pairs.r_ij
        n_atoms = len(numbers)
        idx_m = np.zeros(n_atoms, np.int64)
        predictions = []
        for energies, gradient in self.derivatives(r_ij, idx_i, idx_j, numbers, n_atoms):
            forces, virial = pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, 1)
            stress = virial[0] / structure.volume if structure.volume else None
            predictions.append(Prediction(float(energies.sum()), forces, stress, energies))
        self.finish()
        return predictions

    def derivatives(
        self,
        r_ij: np.ndarray,
        idx_i: np.ndarray,
        idx_j: np.ndarray,
        numbers: np.ndarray,
        n_central: int,
        start: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Atomic energies, and their sum's derivative by the pair vectors, model after model.

        Args:
            r_ij, idx_i, idx_j: (P, 3), (P,), (P,) pairs of the central atoms.
            numbers: (N,) atomic numbers; of neighbours that are not central only this is seen.
            n_central: atoms that have an energy, the first ones.
            start: atoms of the structure in calls before this one; see `finish`.

        Yields:
            energies (n_central,), float64; dE/dr_ij (P, 3).
        """
        differentiate = self._by_loops if self._is_compiled else self._by_autograd
        arguments = (r_ij, idx_i, idx_j, numbers, n_central, start)
        results = zip(self._offsets, differentiate(*arguments), strict=True)
        for offsets, (energies, gradient) in results:
            yield energies[:n_central] + offsets[numbers[:n_central]], gradient

    def finish(self) -> None:
        """Say that `derivatives` has seen all atoms of a structure.

        Raises:
            ExtrapolationError: too many symmetry functions outside of the training range.
        """
        if self.monitor is not None:
            self.monitor.finish()

    def _by_loops(
        self, r_ij, idx_i, idx_j, numbers, n_central, start
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each model the energies (N,) without offsets, and dE/dr_ij (P, 3)."""
        pairs = self.backend.prepare(r_ij, idx_i, idx_j, numbers)
        values = self.backend.values_of(pairs)
        if self.monitor is not None:
            self.monitor.add(values[:n_central], numbers[:n_central], start)
        rows = self._rows[numbers]
        for networks in self._networks:
            energies, gradient = networks(rows, values)
            yield energies, self.backend.vjp_of(pairs, gradient)

    def _by_autograd(
        self, r_ij, idx_i, idx_j, numbers, n_central, start
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `_by_loops`."""
        r_ij, idx_i, idx_j, numbers = map(torch.from_numpy, (r_ij, idx_i, idx_j, numbers))
        r_ij = r_ij.to(self.dtype)
        with torch.no_grad():
            values = self.backend.values(r_ij, idx_i, idx_j, numbers)
        if self.monitor is not None:
            self.monitor.add(values[:n_central].numpy(), numbers[:n_central].numpy(), start)
        for parts in self.parts:
            leaf = values.detach().requires_grad_()
            scaled = parts.scaling(leaf, numbers)
            net = parts.networks.atomic_energies(scaled, numbers)  # (n_atoms,)
            (gradient,) = torch.autograd.grad(net.sum(), leaf)
            with torch.no_grad():
                gradient = self.backend.vjp(r_ij, idx_i, idx_j, numbers, gradient)
            yield _numpy(net), _numpy(gradient)


class BatchModel:
    """Any SchNetPack model that gives energy and forces.

    Args:
        model: in evaluation mode; stress is computed if `stress_key` is among its outputs.
        device: where the model is.
        dtype: precision of positions and cell.
        energy_key: name of the energy among the outputs.
        force_key: name of the forces.
        stress_key: name of the stress; None: none.
        transforms: applied to every structure after the pairs are known, for models that need more
            than pairs.
        additional_inputs: constant entries of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device,
        dtype: torch.dtype,
        energy_key: str,
        force_key: str,
        stress_key: str | None,
        transforms: Sequence[Callable] = (),
        additional_inputs: Mapping[str, torch.Tensor] | None = None,
    ):
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.energy_key, self.force_key, self.stress_key = energy_key, force_key, stress_key
        self.transforms = list(transforms)
        self.additional_inputs = dict(additional_inputs or {})

    def __call__(self, structure: Structure, pairs: Pairs) -> list[Prediction]:
        """A list of one prediction."""
        results = self.model(self._batch(structure, pairs))
        stress = None
        if structure.volume and self.stress_key in results:
            stress = _numpy(results[self.stress_key]).reshape(3, 3) * self._sign(structure.cell)
        energy = float(_numpy(results[self.energy_key]).sum())
        energies = None
        if keys.atomic_energies in results:
            energies = _numpy(results[keys.atomic_energies]).reshape(-1)
            # a module after the networks may have added to the energy, but not to its parts
            if abs(energies.sum() - energy) > 1e-5 * max(1.0, abs(energy)):
                energies = None
        return [Prediction(energy, _numpy(results[self.force_key]), stress, energies)]

    def _sign(self, cell: np.ndarray) -> float:
        """SchNetPack divides by the signed volume: the stress of a left-handed cell flips."""
        if any(isinstance(m, ForcesAndStress) for m in self.model.output_modules):
            return 1.0
        return float(np.sign(np.linalg.det(cell)))

    def _batch(self, structure: Structure, pairs: Pairs) -> dict[str, torch.Tensor]:
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
