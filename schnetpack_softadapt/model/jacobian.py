"""Derivatives of energies, forces and stress by the parameters of per-element networks.

With the position Jacobian of the descriptors at hand (the descriptor store), the derivative of a
force component by all parameters needs no backward pass of its own. Force j along c is

    F_jc = -sum_i y'_i(v_ijc),   v_ijc = dG_i/dR_jc,

a sum of directional derivatives y'_i of the networks, and likewise the stress with the strain
derivative. The gradient of y' by the weights W_l, from the activations a and the adjoints d of the
layers and their tangents (marked by a prime) in the direction v, is

    dy'/dW_l = a_(l-1) (x) d'_l + a'_(l-1) (x) d_l

(B. A. Pearlmutter, Neural Comput. 6, 147, 1994: forward over reverse). Summed over the neighbours
these are small matrix products, some hundred times cheaper than one backward pass for each row.
Factors of the rows act on v, which is smaller than the Jacobian, and each row is written once,
where the optimizer reads it.

N atoms, B structures, D columns, P parameters, R rows of C components each, T terms in their sums.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from schnetpack import properties
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.store.batch import position_terms
from schnetpack_softadapt.model.atomwise import ACTIVATIONS, ElementalAtomwise, with_products
from schnetpack_softadapt.model.composition import Composition, UnsupportedModelError, take_apart
from schnetpack_softadapt.model.outer_sums import add_outer_sums, add_product_sums
from schnetpack_softadapt.model.response import ForcesAndStress, inverse_volume

__all__ = ["JacobianRows", "NetworkJacobian", "potential_jacobian"]


class JacobianRows(NamedTuple):
    """Rows of a Jacobian that are wanted, of one output."""

    key: str  # output key of energy, forces or stress
    places: Tensor  # (R,) structures, or atoms of forces; ascending, each at most once
    # (R, C) factors on the derivatives; where all of a row are zero nothing is computed
    factor: Tensor
    # the Voigt components (xx yy zz yz xz xy) of a stress; all if None
    columns: list[int] | None = None


class NetworkJacobian:
    """First derivatives of atomic energies, and of their directional derivatives, by parameters.

    Columns follow `parameters`: weights of all layers, then biases of all layers, flattened;
    those that are not trained have none.

    Args:
        x: (N, D) scaled descriptors.
        numbers: (N,) atomic numbers.
    """

    def __init__(self, networks: ElementalAtomwise, x: Tensor, numbers: Tensor):
        self.parameters = [*networks.weights, *networks.biases]
        self.n_parameters = sum(p.numel() for p in self.parameters if p.requires_grad)
        self.element = networks.index(numbers)  # (N,) row of the element
        scale = float(networks.scale)
        weights = [w.detach() for w in networks.weights]
        biases = [b.detach() for b in networks.biases]
        self._layers = []
        for k in range(len(networks.elements)):
            mine = (self.element == k).nonzero()[:, 0]
            layer = (_QuadraticLayer if networks.quadratic else _ElementLayers)(
                [w[k] for w in weights], [b[k] for b in biases], networks.activations, scale
            )
            layer.forward(x.detach().index_select(0, mine), mine, len(x))
            self._layers.append(layer)

    def add_energies(self, out: Tensor, centers: Tensor, rows: Tensor, factor: Tensor) -> None:
        """Add factor_t dE_i(t)/dtheta to the rows of a Jacobian.

        Args:
            out: (R, 1, P) contiguous.
            centers: (T,) atom i of each term.
            rows: (T,) row that it is added to, ascending.
            factor: (T, 1, 1).
        """
        for terms, layer, add in self._by_element(out, centers, rows):
            add(layer.gradient(layer.local[centers[terms]], factor[terms]))

    def add_tangents(self, out: Tensor, centers: Tensor, rows: Tensor, directions: Tensor) -> None:
        """Add the derivatives of dE_i(t)/dG_i(t) . v_t to the rows of a Jacobian.

        Args:
            out: (R, C, P) contiguous.
            centers, rows: as for `add_energies`.
            directions: (T, C, D) C directions in the scaled descriptors for each term.
        """
        for terms, layer, add in self._by_element(out, centers, rows):
            add(layer.tangent_gradient(layer.local[centers[terms]], directions[terms]))

    def _by_element(self, out: Tensor, centers: Tensor, rows: Tensor):
        """Terms and network of each element, and a function that adds its products to `out`."""
        element = self.element[centers]
        for k, layer in enumerate(self._layers):
            terms = (element == k).nonzero()[:, 0]
            if not len(terms):
                continue
            count = torch.bincount(rows[terms], minlength=len(out))
            first = torch.cat([count.new_zeros(1), count.cumsum(0)])

            def add(products, first=first, k=k):
                column = 0
                for parameter, pairs in zip(self.parameters, products, strict=True):
                    if not parameter.requires_grad:
                        continue
                    here = column + k * parameter[0].numel()
                    for pair in pairs:
                        if isinstance(pair, _OfProducts):
                            add_product_sums(first, pair.x, pair.v, out, here + pair.x.shape[1])
                        else:
                            add_outer_sums(first, *pair, out, here)
                    column += parameter.numel()

            yield terms, layer, add


class _OfProducts(NamedTuple):
    """Derivatives of `with_products` of x (T, D) in directions v (T, C, D), without its first D."""

    x: Tensor
    v: Tensor


#: factors (T, 1 or C, n_in) and (T, 1 or C, n_out) of the outer products of one parameter
_Products = list[tuple[Tensor, Tensor] | _OfProducts]


class _ElementLayers:
    """The network of one element: activations, adjoints, and gradients made of them."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor], activations, scale: float):
        self.weights, self.biases, self.activations = weights, biases, activations
        self.scale = scale
        self.n_hidden = len(weights) - 1

    def forward(self, x: Tensor, atoms: Tensor, n_atoms: int) -> None:
        """Activations a, adjoints d and what their tangents need, for the element's atoms."""
        self.local = torch.zeros(n_atoms, dtype=torch.long, device=x.device)
        self.local[atoms] = torch.arange(len(atoms), device=x.device)
        self.a = [x]
        slopes, curvatures = [], []
        for w, b, name in zip(self.weights, self.biases, self.activations, strict=False):
            value, slope, curvature = _activation(name, torch.addmm(b, self.a[-1], w))
            self.a.append(value)
            slopes.append(slope)
            curvatures.append(curvature)
        last = self.weights[-1][:, 0] * self.scale  # (n,)
        q = last.expand(len(x), -1)  # adjoint of a_l
        self.d, self.slope, self.bend = [], slopes, []
        for layer in reversed(range(self.n_hidden)):
            self.d.insert(0, q * slopes[layer])
            self.bend.insert(0, q * curvatures[layer])
            if layer > 0:
                q = self.d[0] @ self.weights[layer].T

    def gradient(self, atoms: Tensor, factor: Tensor) -> list[_Products]:
        """Products of weights, then biases, for y of atoms (T,) times factors (T, 1, 1)."""
        one = torch.ones_like(factor)
        d = [d[atoms][:, None] * factor for d in self.d]
        last = factor * self.scale
        weights = [[(a[atoms][:, None], right)] for a, right in zip(self.a, d, strict=False)]
        weights.append([(last, self.a[-1][atoms][:, None])])
        return [*weights, *([(one, right)] for right in [*d, last])]

    def tangent_gradient(self, atoms: Tensor, v: Tensor) -> list[_Products]:
        """Products of weights, then biases, for y'(v) of atoms (T,), directions v (T, C, D)."""
        a_tangent, z_tangent = [v], []
        slope = [s[atoms][:, None] for s in self.slope]
        for layer in range(self.n_hidden):
            z_tangent.append(a_tangent[-1] @ self.weights[layer])
            a_tangent.append(slope[layer] * z_tangent[-1])
        d_tangent: list[Tensor] = []
        for layer in reversed(range(self.n_hidden)):
            value = z_tangent[layer].mul_(self.bend[layer][atoms][:, None])
            if layer + 1 < self.n_hidden:
                value += slope[layer] * (d_tangent[0] @ self.weights[layer + 1].T)
            d_tangent.insert(0, value)
        one = v.new_ones(len(v), 1, 1)
        weights: list[_Products] = [
            [(self.a[k][atoms][:, None], d_tangent[k]), (a_tangent[k], self.d[k][atoms][:, None])]
            for k in range(self.n_hidden)
        ]
        weights.append([(one * self.scale, a_tangent[-1])])
        # a constant has no derivative
        return [*weights, *([(one, d)] for d in d_tangent), []]


class _QuadraticLayer(_ElementLayers):
    """A quadratic model of one element: no hidden layers, products of the descriptors beside them.

    The products of directions, which may be many times as wide, are never formed.
    """

    def forward(self, x: Tensor, atoms: Tensor, n_atoms: int) -> None:
        super().forward(with_products(x), atoms, n_atoms)
        self.x = x

    def tangent_gradient(self, atoms: Tensor, v: Tensor) -> list[_Products]:
        scale = v.new_full((len(v), 1, 1), self.scale)
        return [[(scale, v), _OfProducts(self.x[atoms], v * self.scale)], []]


def potential_jacobian(
    model,
    batch: Mapping[str, Tensor],
    wanted: Sequence[JacobianRows],
    room: Tensor | None = None,
) -> Tensor | None:
    """Derivatives of what a potential predicts by its parameters, from stored descriptors.

    Args:
        model: a `Composition` with `ForcesAndStress`.
        batch: as for the model's forward; it is left as it is.
        wanted: rows, of any outputs.
        room: an older result that is written over if it is large enough.

    Returns:
        (M, P), the rows of `wanted` in turn, C for each place: derivatives of energies in eV,
        forces in eV/Ang and stress in eV/Ang^3, times their factors, over the trainable parameters
        of the model in their order; zeros for a stress that is not wanted. None if the batch has no
        stored descriptors or the model is another.

    Raises:
        ValueError: as `response.inverse_volume`.
    """
    composition = _trained_networks(model)
    if composition is None or keys.descriptors not in batch or keys.store_dg_dr not in batch:
        return None
    networks, response, scaling = composition.networks, composition.response, composition.scaling
    add = {networks.output_key: _add_energies}
    if response is not None and response.calc_forces:
        add[response.force_key] = _add_forces
    if response is not None and response.calc_stress:
        add[response.stress_key] = _add_stress
    if not {rows.key for rows in wanted} <= set(add):
        return None
    numbers = batch[properties.Z]
    dtype = networks.weights[0].dtype
    with torch.no_grad():
        x = scaling(batch[keys.descriptors].to(dtype), numbers)
        scale = scaling.factor[scaling.index(numbers)].to(dtype)  # (N, D)
        jacobian = NetworkJacobian(networks, x, numbers)
        sizes = [rows.factor.numel() for rows in wanted]
        matrix = _zeros(sum(sizes), jacobian.n_parameters, x, room)
        for rows, part in zip(wanted, matrix.split(sizes), strict=True):
            out = part.view(*rows.factor.shape, -1)
            add[rows.key](jacobian, batch, rows, scale, out)
    return matrix


def _zeros(n_rows: int, n_columns: int, like: Tensor, room: Tensor | None) -> Tensor:
    n = n_rows * n_columns
    fits = room is not None and (room.dtype, room.device) == (like.dtype, like.device)
    if not fits or room.untyped_storage().nbytes() < n * room.element_size():
        return like.new_zeros(n_rows, n_columns)
    return room.as_strided((n_rows, n_columns), (n_columns, 1), 0).zero_()


def _add_energies(jacobian, batch, rows: JacobianRows, scale: Tensor, out: Tensor) -> None:
    atoms, row, factor = _atoms_of(rows.places, rows.factor.to(scale.dtype), batch)
    jacobian.add_energies(out, atoms, row, factor[:, :, None])


def _add_stress(jacobian, batch, rows: JacobianRows, scale: Tensor, out: Tensor) -> None:
    factor = rows.factor * inverse_volume(batch)[rows.places][:, None]
    atoms, row, factor = _atoms_of(rows.places, factor.to(scale.dtype), batch)
    stored = atoms if keys.store_rows not in batch else batch[keys.store_rows][atoms]
    v = batch[keys.store_dg_dstrain][stored]
    v = (v if rows.columns is None else v[:, rows.columns]).to(scale.dtype)
    v = v * scale[atoms][:, None]
    jacobian.add_tangents(out, atoms, row, v.mul_(factor[:, :, None]))


def _add_forces(jacobian, batch, rows: JacobianRows, scale: Tensor, out: Tensor) -> None:
    factor = rows.factor.to(scale.dtype)
    used = (factor != 0).any(dim=1).nonzero()[:, 0]
    terms = position_terms(rows.places[used], batch[properties.idx_m], batch)
    row = used[terms.rows]
    v = terms.derivatives.to(scale.dtype) * scale[terms.centers][:, None]
    jacobian.add_tangents(out, terms.centers, row, v.mul_(factor[row][:, :, None]).neg_())


def _atoms_of(structures: Tensor, factor: Tensor, batch) -> tuple[Tensor, Tensor, Tensor]:
    """Atoms (T,) of structures (R,) with factors (R, C) that are not all zero, the number of the
    structure (T,) and its factors (T, C)."""
    used = (factor != 0).any(dim=1)
    row_of = torch.full_like(batch[properties.n_atoms], -1)
    row_of[structures[used]] = used.nonzero()[:, 0]
    row = row_of[batch[properties.idx_m]]
    atoms = (row >= 0).nonzero()[:, 0]
    return atoms, row[atoms], factor[row[atoms]]


def _trained_networks(model) -> Composition | None:
    """The composition of a potential of which nothing but the networks is trained."""
    try:
        composition = take_apart(model, postprocessed=False, short_range=True)
    except UnsupportedModelError:
        return None
    if type(composition.response) not in (type(None), ForcesAndStress):
        return None
    mine = [*composition.networks.weights, *composition.networks.biases]
    mine = [p for p in mine if p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    if len(trained) != len(mine) or any(a is not b for a, b in zip(trained, mine, strict=True)):
        return None
    return composition


def _activation(name: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an activation, element by element."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = ACTIVATIONS[name](z)
        slope = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
        if not slope.requires_grad:  # a straight line
            return value.detach(), slope.detach(), torch.zeros_like(z)
        curvature = torch.autograd.grad(slope.sum(), z)[0]
    return value.detach(), slope.detach(), curvature
