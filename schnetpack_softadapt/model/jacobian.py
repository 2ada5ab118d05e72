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

N atoms, B structures, D columns, P parameters, R rows of a Jacobian, T terms in their sums.
"""

from collections.abc import Mapping

import torch
from schnetpack import properties
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.store.batch import position_terms
from schnetpack_softadapt.model.atomwise import ACTIVATIONS, ElementalAtomwise
from schnetpack_softadapt.model.composition import Composition, UnsupportedModelError, take_apart
from schnetpack_softadapt.model.response import ForcesAndStress, inverse_volume

__all__ = ["NetworkJacobian", "potential_jacobian"]

# floats that one chunk of tangents may hold: stays in the cache, and bounds the memory
_CHUNK = 4_000_000


class NetworkJacobian:
    """First derivatives of atomic energies, and of their directional derivatives, by parameters.

    Columns follow `parameters`: weights of all layers, then biases of all layers, flattened.

    Args:
        networks: built networks, all of whose parameters are trainable.
        x: (N, D) scaled descriptors.
        numbers: (N,) atomic numbers.
    """

    def __init__(self, networks: ElementalAtomwise, x: Tensor, numbers: Tensor):
        self.networks = networks
        self.parameters = [*networks.weights, *networks.biases]
        self.n_parameters = sum(p.numel() for p in self.parameters)
        self.element = networks.index(numbers)  # (N,) row of the element
        self.scale = float(networks.scale)
        weights = [w.detach() for w in networks.weights]
        biases = [b.detach() for b in networks.biases]
        self._layers = []
        for k in range(len(networks.elements)):
            mine = (self.element == k).nonzero()[:, 0]
            layer = _ElementLayers(
                [w[k] for w in weights], [b[k] for b in biases], networks.activations, self.scale
            )
            layer.forward(x.detach().index_select(0, mine), mine, len(x))
            self._layers.append(layer)

    def energies(self, rows: Tensor, n_rows: int) -> Tensor:
        """Gradients of sums of atomic energies.

        Args:
            rows: (N,) the sum each atom belongs to, ascending.
            n_rows: number of sums.

        Returns:
            (n_rows, P) in eV.
        """
        out = self._new(n_rows, 1)
        for k, layer in enumerate(self._layers):
            mine = layer.atoms
            table, slots, width = _table(rows[mine], n_rows)
            local = _scatter(layer.local[mine], table, slots, n_rows, width)
            there = _scatter(torch.ones_like(mine), table, slots, n_rows, width)
            self._store(out, k, layer.gradient(local, there.to(out.dtype)))
        return out[:, 0]

    def tangents(self, centers: Tensor, rows: Tensor, directions: Tensor, n_rows: int) -> Tensor:
        """Gradients of sums of directional derivatives, sum_t dE_i(t)/dG_i(t) . v_t.

        Args:
            centers: (T,) atom of each term.
            rows: (T,) row of the Jacobian that each term is added to, ascending.
            directions: (T, C, D) C directions in the scaled descriptors for each term.
            n_rows: number of rows.

        Returns:
            (n_rows, C, P).
        """
        n_components = directions.shape[1]
        out = self._new(n_rows, n_components)
        element = self.element[centers]
        for k, layer in enumerate(self._layers):
            terms = (element == k).nonzero()[:, 0] if len(self._layers) > 1 else None
            row = rows if terms is None else rows[terms]
            if not len(row):
                continue
            table, slots, width = _table(row, n_rows)
            center = centers if terms is None else centers[terms]
            local = _scatter(layer.local[center], table, slots, n_rows, width)
            v = directions if terms is None else directions[terms]
            # padded terms have the direction zero and so add nothing
            v = _scatter(v, table, slots, n_rows, width)  # (R, K, C, D)
            step = max(1, _CHUNK // (width * n_components * layer.widest))
            for first in range(0, n_rows, step):
                part = slice(first, first + step)
                self._store(out[part], k, layer.tangent_gradient(local[part], v[part]))
        return out

    def _new(self, n_rows: int, n_components: int) -> Tensor:
        return self.parameters[0].new_zeros(n_rows, n_components, self.n_parameters)

    def _store(self, out: Tensor, element: int, gradients: list[Tensor]) -> None:
        """Put the gradients (R, C, n) of one element's weights, then biases, in their columns."""
        first = 0
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            size = parameter[0].numel()
            begin = first + element * size
            out[:, :, begin : begin + size] = gradient.reshape(*out.shape[:2], size)
            first += parameter.numel()


class _ElementLayers:
    """The network of one element: activations, adjoints, and gradients made of them."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor], activations, scale: float):
        self.weights, self.biases, self.activations = weights, biases, activations
        self.scale = scale
        self.n_hidden = len(weights) - 1
        self.widest = max(max(w.shape) for w in weights)

    def forward(self, x: Tensor, atoms: Tensor, n_atoms: int) -> None:
        """Activations a, adjoints d and what their tangents need, for the element's atoms."""
        self.atoms = atoms
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
            q = self.d[0] @ self.weights[layer].T

    def gradient(self, local: Tensor, there: Tensor) -> list[Tensor]:
        """Gradients (R, 1, n) of sums over atoms `local` (R, K), `there` (R, K) 1 or 0."""
        weights, biases = [], []
        for layer in range(self.n_hidden):
            d = self.d[layer][local] * there[:, :, None]
            weights.append(torch.bmm(self.a[layer][local].transpose(1, 2), d)[:, None])
            biases.append(d.sum(dim=1)[:, None])
        last = (self.a[-1][local] * there[:, :, None]).sum(dim=1)
        weights.append(last[:, None] * self.scale)
        biases.append(there.sum(dim=1)[:, None, None] * self.scale)
        return [*weights, *biases]

    def tangent_gradient(self, local: Tensor, v: Tensor) -> list[Tensor]:
        """Gradients (R, C, n) of sum_k y'(v) over atoms `local` (R, K), directions (R, K, C, D)."""
        n_rows, n_terms, n_components = v.shape[:3]
        shape = (n_rows, n_terms, n_components, -1)
        tangent = v.reshape(-1, v.shape[3])
        a_tangent, z_tangent = [tangent], []
        for layer in range(self.n_hidden):
            z_tangent.append((tangent @ self.weights[layer]).view(shape))
            tangent = self.slope[layer][local][:, :, None] * z_tangent[-1]
            tangent = tangent.reshape(-1, tangent.shape[3])
            a_tangent.append(tangent)
        d_tangent: list[Tensor] = [v] * self.n_hidden
        for layer in reversed(range(self.n_hidden)):
            value = self.bend[layer][local][:, :, None] * z_tangent[layer]
            if layer + 1 < self.n_hidden:
                back = d_tangent[layer + 1].reshape(-1, self.weights[layer + 1].shape[1])
                back = (back @ self.weights[layer + 1].T).view(shape)
                value = value + self.slope[layer][local][:, :, None] * back
            d_tangent[layer] = value
        weights, biases = [], []
        for layer, (n_in, n_out) in enumerate(w.shape for w in self.weights[:-1]):
            a = self.a[layer][local].transpose(1, 2)  # (R, n_in, K)
            one = torch.bmm(a, d_tangent[layer].reshape(n_rows, n_terms, -1))
            one = one.view(n_rows, n_in, n_components, n_out).transpose(1, 2)
            two = a_tangent[layer].view(n_rows, n_terms, -1).transpose(1, 2)
            two = torch.bmm(two, self.d[layer][local]).view(n_rows, n_components, n_in, n_out)
            weights.append(one + two)
            biases.append(d_tangent[layer].sum(dim=1))
        weights.append(a_tangent[-1].view(shape).sum(dim=1) * self.scale)
        biases.append(v.new_zeros(n_rows, n_components, 1))  # a constant has no derivative
        return [*weights, *biases]


def potential_jacobian(
    model, batch: Mapping[str, Tensor], atoms: Tensor
) -> dict[str, Tensor] | None:
    """Derivatives of what a potential predicts by its parameters, from stored descriptors.

    Args:
        model: a `Composition` with `ForcesAndStress`.
        batch: as for the model's forward; it is left as it is.
        atoms: (R,) atoms whose forces are differentiated.

    Returns:
        By output key: energies (B, 1, P) in eV, forces (R, 3, P) in eV/Ang, stress (B, 6, P) in
        eV/Ang^3 and Voigt order xx yy zz yz xz xy, over the trainable parameters of the model in
        their order; zeros for a stress that is not wanted. None if the batch has no stored
        descriptors or the model is another.

    Raises:
        ValueError: as `response.inverse_volume`.
    """
    composition = _trained_networks(model)
    if composition is None or keys.descriptors not in batch or keys.store_dg_dr not in batch:
        return None
    networks, response, scaling = composition.networks, composition.response, composition.scaling
    numbers, idx_m = batch[properties.Z], batch[properties.idx_m]
    dtype = networks.weights[0].dtype
    with torch.no_grad():
        x = scaling(batch[keys.descriptors], numbers).to(dtype)
        factor = scaling.factor[scaling.index(numbers)].to(dtype)  # (N, D)
        jacobian = NetworkJacobian(networks, x, numbers)
        n_structures = len(batch[properties.n_atoms])
        result = {networks.output_key: jacobian.energies(idx_m, n_structures)[:, None]}
        if response is not None and response.calc_forces:
            terms = position_terms(atoms, idx_m, batch)
            v = terms.derivatives.to(dtype) * factor[terms.centers][:, None]
            rows = jacobian.tangents(terms.centers, terms.rows, v, len(atoms))
            result[response.force_key] = rows.neg_()
        if response is not None and response.calc_stress:
            stored = batch[keys.store_dg_dstrain]
            if keys.store_rows in batch:
                stored = stored.index_select(0, batch[keys.store_rows])
            centers = torch.arange(len(x), device=x.device)
            v = stored.to(dtype) * factor[:, None]
            rows = jacobian.tangents(centers, idx_m, v, n_structures)
            rows *= inverse_volume(batch).to(dtype)[:, None, None]
            result[response.stress_key] = rows
    return result


def _trained_networks(model) -> Composition | None:
    """The composition of a potential of which nothing but the networks is trained."""
    try:
        composition = take_apart(model, postprocessed=False, short_range=True)
    except UnsupportedModelError:
        return None
    if type(composition.response) not in (type(None), ForcesAndStress):
        return None
    mine = [*composition.networks.weights, *composition.networks.biases]
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


def _table(rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor, int]:
    """Places (row, slot) of terms sorted by row in a padded table, and its width."""
    count = torch.bincount(rows, minlength=n_rows)
    first = count.cumsum(0) - count
    slot = torch.arange(len(rows), device=rows.device) - first[rows]
    return rows, slot, max(1, int(count.max())) if len(rows) else 1


def _scatter(values: Tensor, rows: Tensor, slots: Tensor, n_rows: int, width: int) -> Tensor:
    out = values.new_zeros(n_rows, width, *values.shape[1:])
    out[rows, slots] = values
    return out
