"""One small network per chemical element, evaluated for all elements at once."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from schnetpack import properties
from schnetpack.transform import Transform
from torch import nn
from torch.nn import functional

from .. import properties as keys
from ..data.statistics import composition_fit, training_targets
from .elements import ElementIndex, to_atomic_numbers
from .shift import ElementShift, sum_over_structures

__all__ = ["ACTIVATIONS", "ElementalAtomwise"]

log = logging.getLogger(__name__)

#: smooth functions only: forces need a continuous first derivative
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gaussian": lambda x: torch.exp(-0.5 * x * x),
    "cos": torch.cos,
    "identity": lambda x: x,
}


class ElementalAtomwise(Transform):
    """Energy as the sum of atomic energies, E = sum_i [scale * NN_Z(i)(G_i) + shift_Z(i)].

    J. Behler and M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007), equation 1: a feed-forward
    network for each element reads the atom's descriptors. The weights of all elements are stacked,
    so that a batch costs one matrix product per layer however many elements there are, and no
    loop over atoms or elements.

    `scale` (eV) is the root mean square force of the training set times 1 Ang (without forces, the
    spread of the energies), so that weights of order one give forces of the right size in every
    material and in every unit of energy. It is a constant, not a trainable parameter.

    Args:
        n_in: number of descriptors, one number or one per element (symbol); when not given it is
            taken from the representation before training (see `build`).
        elements: symbols or atomic numbers; when not given, those of the training set.
        n_hidden: widths of the hidden layers.
        activation: name in `ACTIVATIONS`.
        output_key: key of the energy (n_structures,), eV, float64.
        per_atom_output_key: if given, key under which energies per atom (n_atoms, 1) are written;
            they sum to the energy.
        fit_shifts: fit the shifts on the training set; with False they stay as given.
        shifts: energy per atom (eV) by symbol, instead of a fit.
        fit_scale: set `scale` from the training set; with False it stays 1 eV.
    """

    is_preprocessor = False
    is_postprocessor = False
    scale: torch.Tensor  # () eV

    def __init__(
        self,
        n_in: int | Mapping[str, int] | None = None,
        elements: Sequence[int | str] | None = None,
        n_hidden: Sequence[int] = (30, 30),
        activation: str = "tanh",
        output_key: str = properties.energy,
        per_atom_output_key: str | None = None,
        fit_shifts: bool = True,
        shifts: Mapping[str, float] | None = None,
        fit_scale: bool = True,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose from {list(ACTIVATIONS)}")
        if any(int(n) < 1 for n in n_hidden):
            raise ValueError(f"hidden layers need at least one neuron, got n_hidden={n_hidden}")
        self.n_hidden = tuple(int(n) for n in n_hidden)
        # one name, or one per layer (imported potentials may mix them); the last layer is linear
        self.activations = (activation,) * len(self.n_hidden)
        self.output_key = output_key
        self.force_key = properties.forces  # of the forces that `scale` is taken from
        self.per_atom_output_key = per_atom_output_key
        self.model_outputs = [output_key]
        if per_atom_output_key is not None:
            self.model_outputs.append(per_atom_output_key)
        self.fit_scale = fit_scale
        self.shifts = ElementShift(output_key, shifts)
        self.shifts.fit_shifts = fit_shifts and shifts is None
        self.register_buffer("scale", torch.ones(()))
        self.index: ElementIndex | None = None
        self.weights = nn.ParameterList()  # of (n_elements, n_in, n_out)
        self.biases = nn.ParameterList()  # of (n_elements, 1, n_out)
        if n_in is not None and elements is not None:
            self.build(elements, n_in)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers, ascending; empty before `build`."""
        return () if self.index is None else self.index.elements

    @property
    def is_built(self) -> bool:
        """Whether the networks exist."""
        return self.index is not None

    def build(self, elements: Sequence[int | str], n_in: int | Mapping[int | str, int]) -> None:
        """Create the networks with random weights.

        Elements with fewer descriptors than the largest have zero weights in the padded columns,
        which stay zero: the padded descriptors are zero and so are the gradients.

        Args:
            elements: symbols or atomic numbers.
            n_in: number of descriptors, for all elements or by element.
        """
        index = ElementIndex(elements)
        if isinstance(n_in, Mapping):
            by_number = {to_atomic_numbers([key])[0]: int(n) for key, n in n_in.items()}
            missing = set(index.elements) - set(by_number)
            if missing:
                raise ValueError(f"n_in lacks the elements with atomic numbers {sorted(missing)}")
            sizes = [by_number[number] for number in index.elements]
        else:
            sizes = [int(n_in)] * len(index)
        widths = [max(sizes), *self.n_hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (n_rows, n_cols) in enumerate(pairwise(widths)):
            weight = torch.zeros(len(index), n_rows, n_cols)
            for k, size in enumerate(sizes):
                fan_in = size if layer == 0 else n_rows
                # variance 1 / fan_in keeps tanh units in their linear range (LeCun et al. 1998)
                weight[k, :fan_in] = torch.randn(fan_in, n_cols) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(len(index), 1, n_cols)))
        self.index = index
        self.n_in = dict(zip(index.elements, sizes, strict=True))

    def datamodule(self, value) -> None:
        """Fit `scale` on the training structures; the shifts fit themselves the same way."""
        if not self.fit_scale:
            return
        targets = training_targets(value).named(self.output_key, self.force_key)
        if targets.forces is not None and len(targets.forces):
            scale = math.sqrt(float((targets.forces**2).mean()))
        else:
            _, shifts = composition_fit(targets)
            spread = targets.energy - targets.compositions @ shifts
            # n independent atomic energies of this size sum to the spread seen
            scale = math.sqrt(float((spread**2 / targets.n_atoms).mean()))
        if scale > 1e-6:  # all-zero labels say nothing about the scale
            self.scale.fill_(scale)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write the energy (n_structures,) and, if asked, energies per atom (n_atoms, 1)."""
        if self.index is None:
            raise RuntimeError(
                "the networks have not been built: give `elements` and `n_in`, or call"
                " `initialize_transforms(datamodule)` of the model first (training does so)"
            )
        numbers = inputs[properties.Z]
        energies = self.atomic_energies(inputs[keys.scalar_representation], numbers)
        inputs[self.output_key] = sum_over_structures(energies.double(), inputs)
        if self.per_atom_output_key is not None:
            shifts = self.shifts.shift[numbers]
            inputs[self.per_atom_output_key] = (energies.double() + shifts)[:, None]
        return self.shifts(inputs)

    def atomic_energies(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Network outputs times `scale` for descriptors `x` (n_atoms, n_in); (n_atoms,) eV."""
        rows = self.index(numbers)
        n_atoms, n_elements = x.shape[0], len(self.index)
        if n_elements == 1:
            y = self._networks(x[None])[0, :, 0]  # (n_atoms,)
        else:
            slot, n_slots = _slots(rows, n_elements)
            packed = x.new_zeros(n_elements * n_slots, x.shape[1]).index_copy(0, slot, x)
            y = self._networks(packed.view(n_elements, n_slots, x.shape[1])).flatten()[slot]
        if rows.device.type != "cpu" and n_atoms:
            # an unknown element must not pass for a known one; on the CPU ElementIndex has raised
            y = torch.where(rows < 0, torch.nan, y)
        return y * self.scale

    def _networks(self, x: torch.Tensor) -> torch.Tensor:
        """All networks on x (n_elements, n, n_in); (n_elements, n, 1)."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = ACTIVATIONS[self.activations[layer]](x)
        return x


def _slots(rows: torch.Tensor, n_elements: int) -> tuple[torch.Tensor, int]:
    """Places of the atoms in a padded (n_elements, n_slots) table, and n_slots.

    On the CPU the table is as wide as the most frequent element; on a GPU reading that number
    would stop the host, so it is as wide as the batch.
    """
    known = rows.clamp_min(0)
    counts = torch.zeros(n_elements, dtype=torch.long, device=rows.device)
    counts.index_add_(0, known, torch.ones_like(known))
    n_slots = int(counts.max()) if rows.device.type == "cpu" and rows.numel() else rows.shape[0]
    order = torch.argsort(known, stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(known)
    rank[order] = torch.arange(rows.shape[0], device=rows.device) - first[known[order]]
    return known * n_slots + rank, n_slots
