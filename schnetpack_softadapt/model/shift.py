"""What a fit to the training set explains, a network need not learn: energies of the elements, the
size of what is left."""

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import properties
from schnetpack.transform import Transform

from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["ElementShift", "EnergyScale", "sum_over_structures"]

log = logging.getLogger(__name__)


def sum_over_structures(values: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sums of atomic values (n_atoms, ...) over each structure, (n_structures, ...)."""
    n_structures = inputs[properties.n_atoms].shape[0]  # idx_m[-1] + 1 would stop a GPU
    total = values.new_zeros((n_structures, *values.shape[1:]))
    return total.index_add(0, inputs[properties.idx_m], values)


class ElementShift(Transform):
    """Adds a constant energy per atom of each element, E = E_model + sum_i shift(Z_i).

    The shifts are fitted to the training energies as the model sees them, so that the module goes
    together with SchNetPack's RemoveOffsets and AddOffsets. The fit is the least-squares solution
    of minimum norm, because compositions are often linearly dependent (every structure MoTe2, or a
    single element) and the normal equations singular. Shifts and the resulting energy are float64
    whatever the model's precision: energies per atom of all-electron codes have more digits than
    float32.

    Args:
        output_key: key of the energy (n_structures,) in eV.
        shifts: energy per atom in eV by chemical symbol; fitted when not given.
    """

    reads_neighbors = False
    is_preprocessor = False
    is_postprocessor = True
    shift: torch.Tensor  # (119,) eV

    def __init__(
        self,
        output_key: str = properties.energy,
        shifts: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.output_key = output_key
        self.target_key = output_key  # of the labels; another where this is one of several terms
        self.model_outputs = [output_key]
        self.fit_shifts = shifts is None
        values = torch.zeros(len(chemical_symbols), dtype=torch.float64)
        for symbol, energy in (shifts or {}).items():
            values[atomic_number(symbol)] = energy
        self.register_buffer("shift", values)

    def datamodule(self, value) -> None:
        """Fit the shifts on the training structures of a data module (called before training)."""
        if not self.fit_shifts:
            return
        elements, shifts = composition_fit(training_targets(value).named(energy=self.target_key))
        self.shift.zero_()
        for number, energy in zip(elements, shifts, strict=True):
            self.shift[int(number)] = float(energy)
        text = ", ".join(
            f"{chemical_symbols[int(z)]} {float(e):.6g}"
            for z, e in zip(elements, shifts, strict=True)
        )
        log.info("energy per atom from a minimum-norm fit to the training set (eV): %s", text)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add the shifts to the energy, which becomes float64."""
        shifts = sum_over_structures(self.shift[inputs[properties.Z]], inputs)
        inputs[self.output_key] = inputs[self.output_key].double() + shifts
        return inputs

    def _apply(self, fn, recurse=True):
        # `model.to(torch.float32)` must not round the shifts
        shift = self.shift
        super()._apply(fn, recurse)
        self.shift = shift.to(device=self.shift.device)
        return self


class EnergyScale(Transform):
    """Multiplies the energy of a network, E = scale * E_model; before ElementShift.

    Networks start with outputs of order one per atom, whatever the unit and the material. Where the
    energies of the training set vary by much less, an untrained model is off by many times their
    spread, and training first has to unlearn that.

    Args:
        output_key: key of the energy (n_structures,).
        scale: in the unit of the energy; when not given it is fitted to the training set: the
            spread of the energies about `composition_fit`, divided by sqrt(n_atoms).
    """

    is_preprocessor = False
    is_postprocessor = True
    scale: torch.Tensor  # ()

    def __init__(self, output_key: str = properties.energy, scale: float | None = None):
        super().__init__()
        self.output_key = output_key
        self.model_outputs = [output_key]
        self.fit_scale = scale is None
        self.register_buffer("scale", torch.tensor(1.0 if scale is None else float(scale)))

    def datamodule(self, value) -> None:
        """Fit the scale on the training structures of a data module (called before training)."""
        if self.fit_scale:
            spread = atomic_energy_spread(training_targets(value).named(energy=self.output_key))
            if spread > 1e-6:  # equal labels say nothing about the scale
                self.scale.fill_(spread)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scale the energy."""
        inputs[self.output_key] = self.scale * inputs[self.output_key]
        return inputs


def atomic_energy_spread(targets) -> float:
    """Root mean square of an atomic energy of which n independent ones sum to the spread seen."""
    _, shifts = composition_fit(targets)
    spread = targets.energy - targets.compositions @ shifts
    return math.sqrt(float(np.average(spread**2 / targets.n_atoms, weights=targets.weight)))
