"""Our models in torch-sim: `SoftAdaptModel(run.folder)` is a `ModelInterface` of it.

All systems of a state go through the model as one batch, on its device; pair lists are made on the
CPU. Needs `pip install torch-sim-atomistic`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from schnetpack.interfaces import AtomsConverter
from torch import Tensor, nn
from torch_sim.models.interface import ModelInterface

from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

__all__ = ["SoftAdaptModel"]


class SoftAdaptModel(ModelInterface):
    """Energy, forces and, of models that have it, stress of many systems; the mean of a committee.

    Args:
        model, device, dtype: as for `SoftAdaptCalculator`.

    Raises:
        ValueError: a model in other units than eV and Ang, or what `SoftAdaptCalculator` refuses.
    """

    def __init__(
        self,
        model: str | Path | nn.Module | Sequence,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
    ):
        super().__init__()
        calculator = SoftAdaptCalculator(model, device=device, dtype=dtype)
        if (calculator.energy_conversion, calculator.position_conversion) != (1.0, 1.0):
            raise ValueError("torch-sim works in eV and Ang, this model does not")
        self.models = nn.ModuleList(calculator.models)
        self._keys = calculator._keys
        self._device, self._dtype = calculator.device, calculator.dtype
        self._compute_forces = True
        self._compute_stress = calculator.stress_key is not None
        self._converter = AtomsConverter(
            NeighborList(calculator.cutoff), device=self._device, dtype=self._dtype
        )

    def forward(self, state, **kwargs) -> dict[str, Tensor]:
        """Energy (n_systems,), forces (n_atoms, 3), stress (n_systems, 3, 3) of a `SimState`."""
        numbers, positions = state.atomic_numbers.cpu(), state.positions.detach().cpu()
        cells, idx_m = state.row_vector_cell.detach().cpu().numpy(), state.system_idx.cpu()
        pbc = torch.as_tensor(state.pbc).cpu().numpy()
        batch = self._converter(
            [
                Atoms(numbers[idx_m == m], positions[idx_m == m].numpy(), cell=cell, pbc=pbc)
                for m, cell in enumerate(cells)
            ]
        )
        found = []
        for model, keys in zip(self.models, self._keys, strict=True):
            outputs = model(dict(batch))
            found.append({name: outputs[key] for name, key in keys.items() if key is not None})
        mean = {name: torch.stack([f[name] for f in found]).mean(0).detach() for name in found[0]}
        return {name: value.to(self._dtype) for name, value in mean.items()}
