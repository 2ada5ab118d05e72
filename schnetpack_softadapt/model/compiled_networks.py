"""Atomic energies and their gradient by the descriptors from compiled loops, without autograd.

What torch spends on a network this small is not arithmetic: some thirty operators of a few
microseconds each, more than the network of a hundred atoms costs. Results are those of
`ElementalAtomwise` and autograd to the rounding of float64, whatever the model's precision.

Atoms of one element are done `BLOCK` at a time with the atom as the fast index, so that a layer is
a sum of rows times single weights, which vectorises for any width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels import loops
from schnetpack_softadapt.descriptors.acsf.kernels.loops import LOOP, SCALAR, STAGE, exponential
from schnetpack_softadapt.descriptors.compiled import as_array, call, stamp_sources

if TYPE_CHECKING:
    from schnetpack_softadapt.descriptors.scaling import Scaling
    from schnetpack_softadapt.model.atomwise import ElementalAtomwise

__all__ = ["ACTIVATION_CODES", "CompiledNetworks"]

_FLOAT = np.dtype(np.float64)

#: activations by number: all those of `model.atomwise`
ACTIVATION_CODES = {
    "identity": 0,
    "tanh": 1,
    "sigmoid": 2,
    "silu": 3,
    "gaussian": 4,
    "softplus": 5,
    "cos": 6,
    "gelu": 7,
    "finnis_sinclair": 8,  # of all units of a layer but the first, which is linear
}

BLOCK = 32

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1.0 / math.sqrt(2.0 * math.pi)


@njit(**LOOP)
def _fill(value, out, n):
    for t in range(n):
        out[t] = value


@njit(**LOOP)
def _add_row(a, x, out, n):
    for t in range(n):
        out[t] += a * x[t]


@njit(**LOOP)
def _add_rows(a, b, c, d, x, out, n):
    for t in range(n):
        low = a * x[t] + b * x[BLOCK + t]
        high = c * x[2 * BLOCK + t] + d * x[3 * BLOCK + t]
        out[t] += low + high


@njit(**STAGE)
def _multiply(weights, row_stride, column_stride, n_rows, n_columns, x, out, n):
    """Add sum_i weights[i * row_stride + o * column_stride] x[i] to each of n_columns rows o."""
    whole = n_rows & ~3
    for o in range(n_columns):
        w = weights[o * column_stride :]
        row = out[o * BLOCK :]
        for i in range(0, whole, 4):
            k = i * row_stride
            _add_rows(
                w[k],
                w[k + row_stride],
                w[k + 2 * row_stride],
                w[k + 3 * row_stride],
                x[i * BLOCK :],
                row,
                n,
            )
        for i in range(whole, n_rows):
            _add_row(w[i * row_stride], x[i * BLOCK :], row, n)


@njit(**LOOP)
def _tanh(x, slope, n):
    for t in range(n):
        e = exponential(-2.0 * abs(x[t]))
        y = math.copysign((1.0 - e) / (1.0 + e), x[t])
        x[t] = y
        slope[t] = 1.0 - y * y


@njit(**SCALAR)
def _sigmoid(x):
    e = exponential(-abs(x))
    s = 1.0 / (1.0 + e)
    return s if x >= 0.0 else e * s


@njit(**SCALAR)
def _activate(code, x, slope, n):
    """Replace x by f(x) and write f'(x)."""
    if code == 0:
        _fill(1.0, slope, n)
    elif code == 1:
        _tanh(x, slope, n)
    else:
        for t in range(n):
            z = x[t]
            if code == 2:
                s = _sigmoid(z)
                x[t], slope[t] = s, s * (1.0 - s)
            elif code == 3:
                s = _sigmoid(z)
                x[t], slope[t] = z * s, s * (1.0 + z * (1.0 - s))
            elif code == 4:
                y = math.exp(-0.5 * z * z)
                x[t], slope[t] = y, -z * y
            elif code == 5:
                # torch goes over to the asymptote at 20
                if z > 20.0:
                    slope[t] = 1.0
                else:
                    x[t], slope[t] = math.log1p(math.exp(z)), _sigmoid(z)
            elif code == 6:
                x[t], slope[t] = math.cos(z), -math.sin(z)
            elif code == 8:
                e = math.exp(-abs(z))
                root = math.sqrt(abs(z) + 0.25 * e)
                x[t] = math.copysign(root - 0.5 * e, z)
                slope[t] = 0.5 * (1.0 - 0.25 * e) / root + 0.5 * e
            else:
                phi = 0.5 * (1.0 + math.erf(z * _SQRT_HALF))
                x[t], slope[t] = z * phi, phi + z * _DENSITY_AT_0 * math.exp(-0.5 * z * z)


@njit(**LOOP)
def _scale_rows(factor, out, n):
    for t in range(n):
        out[t] *= factor[t]


@njit(**LOOP)
def _multiply_rows(a, x, y, out, n):
    for t in range(n):
        out[t] = a * x[t] * y[t]


@njit(**LOOP)
def _add_products(x, y, out, n):
    for t in range(n):
        out[t] += x[t] * y[t]


@njit(**STAGE)
def _append_products(x, d, n):
    """After d rows x_k their products, in the order of `atomwise.with_products`."""
    m = d
    for k in range(d):
        for l in range(k, d):
            factor = 0.5 if k == l else 1.0
            _multiply_rows(factor, x[k * BLOCK :], x[l * BLOCK :], x[m * BLOCK :], n)
            m += 1


@njit(**STAGE)
def _fold_products(x, grad, d, n):
    """Add to d rows of derivatives by x_k what they are by way of the products after them."""
    m = d
    for k in range(d):
        for l in range(k, d):
            _add_products(grad[m * BLOCK :], x[l * BLOCK :], grad[k * BLOCK :], n)
            if l > k:
                _add_products(grad[m * BLOCK :], x[k * BLOCK :], grad[l * BLOCK :], n)
            m += 1


@njit(nogil=True, cache=True)
def _networks(
    rows,
    g,
    shift,
    factor,
    widths,
    activations,
    parameters,
    scale,
    start,
    stop,
    energies,
    gradient,
):
    """Write energies (N,) of atoms start to stop, and their derivatives (N, D) by g.

    Args:
        rows: (N,) element of each atom, a row of the tables below.
        g: (N, D) descriptors without scaling.
        shift, factor: (n_elements, D), x = (g - shift) * factor is what the networks read.
        widths: (n_layers + 1,) the first is D, or more where products are read, the last 1.
        activations: (n_layers - 1,) see `ACTIVATION_CODES`.
        parameters: of each layer the weights (n_elements, n_in, n_out) and biases (n_elements,
            n_out), flat, one after the other.
        scale: factor on the outputs.
    """
    n_layers = len(widths) - 1
    n_elements, n_in = shift.shape
    room = widths.max() * BLOCK
    # the padding of a block is computed along with it, so it must be finite from the start
    values = np.zeros((n_layers + 1, room))
    slopes = np.zeros((n_layers + 1, room))
    upper, lower = np.empty(room), np.empty(room)
    atoms = np.empty(BLOCK, np.int64)
    for e in range(n_elements):
        last = start
        while last < stop:
            count = 0
            while last < stop and count < BLOCK:
                if rows[last] == e:
                    atoms[count] = last
                    count += 1
                last += 1
            if count == 0:
                continue
            n = (count + 7) & ~7  # whole vector registers
            x = values[0]
            for t in range(count):
                for c in range(n_in):
                    x[c * BLOCK + t] = (g[atoms[t], c] - shift[e, c]) * factor[e, c]
            if widths[0] > n_in:
                _append_products(x, n_in, n)
            at = 0
            for layer in range(n_layers):
                n_rows, n_columns = widths[layer], widths[layer + 1]
                weights = parameters[at + e * n_rows * n_columns :]
                at += n_elements * n_rows * n_columns
                out, slope = values[layer + 1], slopes[layer + 1]
                for o in range(n_columns):
                    _fill(parameters[at + e * n_columns + o], out[o * BLOCK :], n)
                at += n_elements * n_columns
                _multiply(weights, n_columns, 1, n_rows, n_columns, values[layer], out, n)
                if layer < n_layers - 1:
                    code = activations[layer]
                    for o in range(n_columns):
                        k = o * BLOCK
                        _activate(0 if code == 8 and o == 0 else code, out[k:], slope[k:], n)
            for t in range(count):
                energies[atoms[t]] = scale * values[n_layers, t]
            _fill(scale, upper, n)
            for layer in range(n_layers - 1, -1, -1):
                n_rows, n_columns = widths[layer], widths[layer + 1]
                at -= n_elements * (n_rows + 1) * n_columns
                weights = parameters[at + e * n_rows * n_columns :]
                for i in range(n_rows):
                    _fill(0.0, lower[i * BLOCK :], n)
                _multiply(weights, 1, n_columns, n_columns, n_rows, upper, lower, n)
                if layer > 0:
                    for i in range(n_rows):
                        k = i * BLOCK
                        _scale_rows(slopes[layer, k:], lower[k:], n)
                upper, lower = lower, upper
            if widths[0] > n_in:
                _fold_products(x, upper, n_in, n)
            for t in range(count):
                for c in range(n_in):
                    gradient[atoms[t], c] = upper[c * BLOCK + t] * factor[e, c]


stamp_sources([_networks], [loops.__file__, __file__])


class CompiledNetworks:
    """The networks of all elements with their present parameters, which are copied.

    Args:
        modules: built networks on the CPU.
        scaling: what stands between descriptors and networks, of the same elements and columns.
    """

    def __init__(self, modules: ElementalAtomwise, scaling: Scaling):
        # both in the order of the layers; `ParameterList` itself takes longer than the network
        self._set(
            [w.detach().numpy() for w in modules.weights._parameters.values()],
            [b.detach().numpy() for b in modules.biases._parameters.values()],
            modules.activations,
            as_array(scaling.shift, _FLOAT),
            as_array(scaling.factor, _FLOAT),
            modules.scale.item(),
        )

    @classmethod
    def from_arrays(
        cls,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        activations: Sequence[str],
        shift: np.ndarray,
        factor: np.ndarray,
        scale: float,
    ) -> CompiledNetworks:
        """The same without modules, and so without torch.

        Args:
            weights: (n_elements, n_in, n_out) of each layer; the last has one output. The first
                has D inputs, or D + D (D + 1) / 2 where it reads products, too.
            biases: (n_elements, n_out) of each layer.
            activations: names in `ACTIVATION_CODES`, of all layers but the last.
            shift, factor: (n_elements, D) scaling of the descriptors.
            scale: factor on the outputs, eV.
        """
        networks = cls.__new__(cls)
        networks._set(weights, biases, tuple(activations), shift, factor, scale)
        return networks

    def _set(self, weights, biases, activations, shift, factor, scale) -> None:
        flat = [x.ravel() for pair in zip(weights, biases, strict=True) for x in pair]
        widths = (weights[0].shape[1], *[w.shape[2] for w in weights])
        tables = _tables(widths, activations)
        self._arguments = (shift, factor, *tables, np.concatenate(flat, dtype=_FLOAT), scale)

    def __call__(self, rows: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Network outputs times `scale`, and their derivatives by the descriptors.

        Args:
            rows: (N,) row of each atom among the elements, int64.
            g: (N, D) descriptors without scaling, float64.

        Returns:
            energies (N,) eV without shifts, gradient (N, D).
        """
        energies, gradient = np.empty(len(g)), np.empty(g.shape)
        call(_networks, rows, g, *self._arguments, 0, len(g), energies, gradient)
        return energies, gradient


@lru_cache(maxsize=32)
def _tables(widths: tuple[int, ...], activations: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(widths), np.array([ACTIVATION_CODES[name] for name in activations], np.int64)
