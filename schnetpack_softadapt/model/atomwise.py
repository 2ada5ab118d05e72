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

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.model.fade import Fade
from schnetpack_softadapt.model.hidden_widths import hidden_widths
from schnetpack_softadapt.model.shift import ElementShift, atomic_energy_spread, sum_over_structures

__all__ = ["ACTIVATIONS", "ElementalAtomwise", "with_products"]

log = logging.getLogger(__name__)

# atoms that a GPU evaluates with one copy of the weights: many more than the copy costs
_TILE = 64


def _finnis_sinclair(x: torch.Tensor) -> torch.Tensor:
    """The first of densities x (..., P) as it is, of the others

        F(rho) = sign(rho) (sqrt(|rho| + e / 4) - e / 2),   e = exp(-|rho|),

    the square root with a finite slope, 5/4, at 0: the form of Y. Lysogorskiy et al., npj Comput.
    Mater. 7, 97 (2021) for the exponent 1/2.
    """
    rho = x[..., 1:]
    sign = torch.where(rho < 0, -1.0, 1.0).to(rho)
    size = sign * rho  # unlike abs with a slope at 0
    e = torch.exp(-size)
    return torch.cat([x[..., :1], sign * (torch.sqrt(size + 0.25 * e) - 0.5 * e)], -1)


#: smooth functions only: forces need a continuous first derivative
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gaussian": lambda x: torch.exp(-0.5 * x * x),
    "cos": torch.cos,
    "finnis_sinclair": _finnis_sinclair,
    "identity": lambda x: x,
}


def with_products(x: torch.Tensor) -> torch.Tensor:
    """x (..., n), and after it x_0^2 / 2, x_0 x_1, ..., x_1^2 / 2, ...: (..., n + n (n + 1) / 2).

    Coefficients A_kl of the products are then the upper triangle of a symmetric matrix A, and their
    sum is x A x / 2.
    """
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    half = torch.where(first == second, 0.5, 1.0).to(x)
    return torch.cat([x, half * x[..., first] * x[..., second]], dim=-1)


class ElementalAtomwise(Transform):
    """Energy as the sum of atomic energies, E = sum_i [scale * NN_Z(i)(G_i) + shift_Z(i)].

    J. Behler and M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007), equation 1: a feed-forward
    network for each element reads the atom's descriptors. The weights of all elements are stacked,
    so that a batch costs one matrix product per layer however many elements there are, and no
    loop over atoms or elements.

    `scale` (eV) is the root mean square force of the training set times 1 Ang (without forces, the
    spread of the energies), so that weights of order one give forces of the right size in every
    material and in every unit of energy. It is a constant, not a trainable parameter.

    Without hidden layers this is a linear model, and a quadratic one with `quadratic`: what least
    squares solve in one step (`training.optimizers.LeastSquares`).

    With n_hidden=[P] and the activation "finnis_sinclair" it is the model of P densities of the
    atomic cluster expansion (Y. Lysogorskiy et al., npj Comput. Mater. 7, 97, 2021, equation 3),

        E_i = sum_p w_p F_p(rho_p) + constant,   rho_p = sum_k c_pk G_k,   F_1(rho) = rho.

    The densities of an atom alone are zero: they have no constants, and `DescriptorPotential`
    leaves the shift out of the scaling of the descriptors.

    Args:
        n_in: number of descriptors, one number or one per element (symbol); when not given it is
            taken from the representation before training (see `build`).
        elements: symbols or atomic numbers; when not given, those of the training set.
        n_hidden: widths of the hidden layers, or a name such as "A2" by which they follow from the
            number of descriptors, see `hidden_widths`.
        activation: name in `ACTIVATIONS`.
        output_key: key of the energy (n_structures,), eV, float64.
        per_atom_output_key: if given, key under which energies per atom (n_atoms, 1) are written;
            they sum to the energy.
        fit_shifts: fit the shifts on the training set; with False they stay as given.
        shifts: energy per atom (eV) by symbol, instead of a fit.
        fit_scale: set `scale` from the training set; with False it stays 1 eV.
        quadratic: also read the products of the descriptors, see `with_products`.
        dtype: of the weights, such as "float64", which the coefficients of nearly dependent
            descriptors need; torch's default type if None.

    Raises:
        ValueError: an unknown activation, a layer without neurons, products before hidden layers.

    Attributes:
        fade: how the networks end at distances below those of the data, None: they do not.
    """

    reads_neighbors = False
    is_preprocessor = False
    is_postprocessor = False
    scale: torch.Tensor  # () eV

    def __init__(
        self,
        n_in: int | Mapping[str, int] | None = None,
        elements: Sequence[int | str] | None = None,
        n_hidden: Sequence[int] | str = (30, 30),
        activation: str = "tanh",
        output_key: str = properties.energy,
        per_atom_output_key: str | None = None,
        fit_shifts: bool = True,
        shifts: Mapping[str, float] | None = None,
        fit_scale: bool = True,
        quadratic: bool = False,
        dtype: str | None = None,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose from {list(ACTIVATIONS)}")
        self._widths = n_hidden if isinstance(n_hidden, str) else None
        if self._widths is not None:
            n_hidden = hidden_widths(self._widths, 1)  # only their number is known before `build`
        if any(int(n) < 1 for n in n_hidden):
            raise ValueError(f"hidden layers need at least one neuron, got n_hidden={n_hidden}")
        if quadratic and len(n_hidden):
            raise ValueError(
                f"quadratic models have no hidden layers, but n_hidden={list(n_hidden)}"
            )
        self.n_hidden = tuple(int(n) for n in n_hidden)
        self.quadratic = bool(quadratic)
        self.dtype = torch.get_default_dtype() if dtype is None else getattr(torch, dtype)
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
        self.fade: Fade | None = None
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
    def has_densities(self) -> bool:
        """Whether the layers are densities, which vanish with the descriptors."""
        return "finnis_sinclair" in self.activations

    @property
    def is_built(self) -> bool:
        """Whether the networks exist."""
        return self.index is not None

    def build(self, elements: Sequence[int | str], n_in: int | Mapping[int | str, int]) -> None:
        """Create the networks with random weights; zeros in linear and quadratic models.

        Elements with fewer descriptors than the largest have zero weights in the padded columns,
        which stay zero: the padded descriptors are zero and so are the gradients.

        Args:
            n_in: number of descriptors, for all elements or by element.
        """
        index = ElementIndex(elements)
        if isinstance(n_in, Mapping):
            by_number = {atomic_number(key): int(n) for key, n in n_in.items()}
            missing = set(index.elements) - set(by_number)
            if missing:
                raise ValueError(f"n_in lacks the elements with atomic numbers {sorted(missing)}")
            sizes = [by_number[number] for number in index.elements]
        else:
            sizes = [int(n_in)] * len(index)
        n_columns = max(sizes)
        if self._widths is not None:
            self.n_hidden = hidden_widths(self._widths, n_columns)
        n_read = n_columns + n_columns * (n_columns + 1) // 2 if self.quadratic else n_columns
        widths = [n_read, *self.n_hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (n_rows, n_cols) in enumerate(pairwise(widths)):
            weight = torch.zeros(len(index), n_rows, n_cols, dtype=self.dtype)
            for k, size in enumerate(sizes if self.n_hidden else ()):
                fan_in = size if layer == 0 else n_rows
                # variance 1 / fan_in keeps tanh units in their linear range (LeCun et al. 1998)
                weight[k, :fan_in] = torch.randn(fan_in, n_cols) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(weight))
            bias = torch.zeros(len(index), 1, n_cols, dtype=self.dtype)
            is_free = layer == len(self.n_hidden) or not self.has_densities
            self.biases.append(nn.Parameter(bias, requires_grad=is_free))
        self.index = index
        self.n_in = dict(zip(index.elements, sizes, strict=True))
        self.n_columns = n_columns

    def datamodule(self, value) -> None:
        """Fit `scale` on the training structures; the shifts fit themselves the same way."""
        if not self.fit_scale:
            return
        targets = training_targets(value).named(self.shifts.target_key, self.force_key)
        if targets.forces is not None and len(targets.forces):
            scale = math.sqrt(float((targets.forces**2).mean()))
        else:
            scale = atomic_energy_spread(targets)
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
        if self.fade is not None and not self.training:
            # the data have no pairs where it would matter in training
            energies = self.fade(energies, inputs)
        inputs[self.output_key] = sum_over_structures(energies.double(), inputs)
        if self.per_atom_output_key is not None:
            shifts = self.shifts.shift[numbers]
            inputs[self.per_atom_output_key] = (energies.double() + shifts)[:, None]
        return self.shifts(inputs)

    def atomic_energies(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Network outputs times `scale` for descriptors `x` (n_atoms, n_in); (n_atoms,) eV."""
        rows = self.index(numbers)
        x = x.to(self.weights[0].dtype)
        n_atoms, n_elements = x.shape[0], len(self.index)
        if n_elements == 1:
            y = self._networks(x[None])[0, :, 0]  # (n_atoms,)
        else:
            # on a GPU reading the number of atoms of an element would stop the host
            size = None if rows.device.type == "cpu" else _TILE
            slot, shape, element = _tiles(rows.clamp_max(n_elements - 1), n_elements, size)
            packed = x.new_zeros(shape[0] * shape[1], x.shape[1]).index_copy(0, slot, x)
            y = self._networks(packed.view(*shape, x.shape[1]), element).flatten()[slot]
        if rows.device.type != "cpu" and n_atoms:
            # an unknown element must not pass for a known one; on the CPU ElementIndex has raised
            y = torch.where(rows == n_elements, torch.nan, y)
        return y * self.scale

    def _networks(self, x: torch.Tensor, element: torch.Tensor | None = None) -> torch.Tensor:
        """Networks of elements (n,) on x (n, m, n_in), of all elements if not given; (n, m, 1)."""
        if self.quadratic:
            x = with_products(x)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if element is not None:
                weight, bias = weight[element], bias[element]
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = ACTIVATIONS[self.activations[layer]](x)
        return x


def _tiles(
    rows: torch.Tensor, n_elements: int, size: int | None
) -> tuple[torch.Tensor, tuple[int, int], torch.Tensor | None]:
    """Places of the atoms in tiles of one element each, padded.

    Args:
        rows: (n_atoms,) element of each atom, 0 to n_elements - 1.
        size: atoms of a tile; None for one tile per element, as long as the largest needs to be.

    Returns:
        (slot (n_atoms,), (n_tiles, size), element): an atom is the (slot % size)-th of tile slot //
        size; `element` (n_tiles,) is None where tile k is that of element k.
    """
    counts = torch.zeros(n_elements, dtype=torch.long, device=rows.device)
    counts.index_add_(0, rows, torch.ones_like(rows))
    order = torch.argsort(rows, stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(rows)  # of an atom among those of its element
    rank[order] = torch.arange(len(rows), device=rows.device) - first[rows[order]]
    if size is None:
        size = int(counts.max()) if len(rows) else 0
        return rows * size + rank, (n_elements, size), None
    n_tiles = (counts + size - 1) // size  # (n_elements,)
    ends = n_tiles.cumsum(0)
    # as many tiles as there could be: their sum is known to the device only
    tiles = torch.arange(len(rows) // size + n_elements, device=rows.device)
    element = torch.searchsorted(ends, tiles, right=True).clamp_max(n_elements - 1)
    return (ends - n_tiles)[rows] * size + rank, (len(tiles), size), element
