"""Forces and stress as derivatives of the energy."""

import numpy as np
import torch
from schnetpack import atomistic, properties
from torch.autograd import grad

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.neighbors.cells import stress_volumes

__all__ = ["ForcesAndStress", "inverse_volume"]


class ForcesAndStress(atomistic.Forces):
    """SchNetPack's `Forces` with a stress that is right where the stock one is not.

    forces = -dE/dR in eV/Ang; stress = (1/V) dE/dstrain in eV/Ang^3, shape (n_structures, 3, 3),
    positive = tension. Differences from `schnetpack.atomistic.Forces`: V is the absolute volume
    (the stock sign flips with the handedness of the cell), the tensor is symmetric and contiguous
    (torchmetrics fails on the stock strides), and a structure that has no stress, because it has no
    cell or no periodic direction, is refused instead of giving nan or inf. Structures marked in the
    batch as having no stress label (`stress_mask` 0) are let through; their stress is zero.

    `schnetpack.atomistic.Strain` must stand before `PairwiseDistances` among the input modules.

    Args:
        calc_forces: compute forces; "auto" does so unless the training data have none.
        calc_stress: compute stress; "auto" likewise.
        energy_key: key of the energy.
        force_key: key of the forces.
        stress_key: key of the stress.
    """

    reads_neighbors = False

    def __init__(
        self,
        calc_forces: bool | str = True,
        calc_stress: bool | str = False,
        energy_key: str = properties.energy,
        force_key: str = properties.forces,
        stress_key: str = properties.stress,
    ):
        for flag in (calc_forces, calc_stress):
            if flag not in (True, False, "auto"):
                raise ValueError(f"calc_forces and calc_stress are true, false or auto, not {flag}")
        self.follows_data = (calc_forces == "auto", calc_stress == "auto")
        super().__init__(bool(calc_forces), bool(calc_stress), energy_key, force_key, stress_key)

    def follow(self, has_forces: bool, has_stress: bool) -> None:
        """Switch off what is "auto" and has no labels in the training data."""
        self.calc_forces &= has_forces or not self.follows_data[0]
        self.calc_stress &= has_stress or not self.follows_data[1]
        self.model_outputs, self.required_derivatives = [], []
        if self.calc_forces:
            self.model_outputs.append(self.force_key)
            self.required_derivatives.append(properties.R)
        if self.calc_stress:
            self.model_outputs.append(self.stress_key)
            self.required_derivatives.append(properties.strain)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write forces (n_atoms, 3) and stress (n_structures, 3, 3).

        Raises:
            ValueError: stress of a structure without a cell (not checked on a GPU, where the
                result is nan), or `Strain` is missing among the input modules.
        """
        energy = inputs[self.energy_key]
        if self.calc_stress and properties.strain not in inputs:
            raise ValueError(
                "stress needs the module schnetpack.atomistic.Strain before PairwiseDistances"
                " among the model's input_modules"
            )
        leaves = [inputs[name] for name in self.required_derivatives]
        if not leaves:
            return inputs
        if energy.requires_grad:
            grads = grad(energy.sum(), leaves, create_graph=self.training, allow_unused=True)
        else:  # no atom has a neighbour: the energy is constant
            grads = [None] * len(leaves)
        grads = [
            torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
        ]
        if self.calc_forces:
            inputs[self.force_key] = -grads[0]
        if self.calc_stress:
            inputs[self.stress_key] = _stress(grads[-1], inputs)
        return inputs


def _stress(virial: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """dE/dstrain over the volume, (n_structures, 3, 3); refuses structures without a volume."""
    inverse = inverse_volume(inputs).to(virial.dtype)[:, None, None]
    return (0.5 * (virial + virial.transpose(1, 2)) * inverse).contiguous()


def inverse_volume(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """1/V of each structure (n_structures,), 1/Ang^3, float64; 0 where no stress is wanted.

    Raises:
        ValueError: a structure without a volume (not checked on a GPU, where the result is nan).
    """
    cell, pbc = inputs[properties.cell].detach().double(), inputs[properties.pbc].reshape(-1, 3)
    mask = inputs.get(keys.stress_mask)
    if cell.device.type != "cpu":
        volume = stress_volumes(cell, pbc)
        inverse = torch.where(volume > 0, volume.reciprocal(), torch.nan)
        return inverse if mask is None else torch.where(mask.reshape(-1) > 0, inverse, 0.0)
    # numpy: for few structures a fraction of what torch's operators cost
    volume = stress_volumes(cell.numpy(), pbc.numpy())
    wanted = np.ones(len(volume), bool) if mask is None else mask.numpy().reshape(-1) > 0
    missing = wanted & ~(volume > 0)  # also of NaN
    if missing.any():
        index = int(missing.argmax())
        raise ValueError(
            f"stress of structure {index} of the batch is not defined: it has no periodic cell"
            f" with a volume (cell {cell[index].tolist()} Ang, pbc {pbc[index].tolist()}). Give it"
            " a cell, or compute energy and forces only."
        )
    return torch.from_numpy(np.divide(1.0, volume, out=np.zeros(len(volume)), where=wanted))
