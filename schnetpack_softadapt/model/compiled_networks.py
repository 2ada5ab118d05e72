"""Atomic energies and their gradient by the descriptors from compiled loops, without autograd.

What torch spends on a network this small is not arithmetic: some thirty operators of a few
microseconds each, more than the network of a hundred atoms costs. Results are those of
`ElementalAtomwise` and autograd to the rounding of float64, whatever the model's precision.
"""

from functools import lru_cache

import numpy as np

from ..descriptors.kernel_networks import ACTIVATION_CODES, networks
from ..descriptors.kernels import as_array, call
from ..descriptors.scaling import Scaling
from .atomwise import ElementalAtomwise

__all__ = ["atomic_energies", "can_compile"]

_FLOAT = np.dtype(np.float64)


def can_compile(modules: ElementalAtomwise, scaling: Scaling) -> bool:
    """Whether `atomic_energies` knows the activations, and both modules have the same elements."""
    return (
        modules.is_built
        and modules.elements == scaling.elements
        and ACTIVATION_CODES.keys() >= set(modules.activations)
        and max(modules.n_in.values()) == scaling.shift.shape[1]
    )


def atomic_energies(
    modules: ElementalAtomwise, scaling: Scaling, rows: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Network outputs times `scale`, and their derivatives by the descriptors.

    The parameters are read anew at each call, since training changes them in place.

    Args:
        modules: networks on the CPU for which `can_compile` holds.
        scaling: what stands between descriptors and networks.
        rows: (N,) row of each atom among the elements, int64.
        g: (N, D) descriptors without scaling, float64.

    Returns:
        energies (N,) eV without shifts, gradient (N, D).
    """
    # both in the order of the layers; `ParameterList` itself takes longer than the network
    weights = list(modules.weights._parameters.values())
    biases = modules.biases._parameters.values()
    flat = [x.detach().numpy().ravel() for pair in zip(weights, biases, strict=True) for x in pair]
    widths, codes = _tables((g.shape[1], *[w.shape[2] for w in weights]), modules.activations)
    energies, gradient = np.empty(len(g)), np.empty(g.shape)
    call(
        networks,
        rows,
        g,
        as_array(scaling.shift, _FLOAT),
        as_array(scaling.factor, _FLOAT),
        widths,
        codes,
        np.concatenate(flat, dtype=_FLOAT),
        modules.scale.item(),
        0,
        len(g),
        energies,
        gradient,
    )
    return energies, gradient


@lru_cache(maxsize=32)
def _tables(widths: tuple[int, ...], activations: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(widths), np.array([ACTIVATION_CODES[name] for name in activations], np.int64)
