"""Atomic energies and their gradient by the descriptors from compiled loops, without autograd.

What torch spends on a network this small is not arithmetic: some thirty operators of a few
microseconds each, more than the network of a hundred atoms costs. Results are those of
`ElementalAtomwise` and autograd to the rounding of float64, whatever the model's precision.
"""

from functools import lru_cache

import numpy as np

from schnetpack_softadapt.descriptors.acsf.kernels.engine import as_array, call
from schnetpack_softadapt.descriptors.acsf.kernels.networks import ACTIVATION_CODES, networks
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.model.atomwise import ElementalAtomwise

__all__ = ["CompiledNetworks", "can_compile"]

_FLOAT = np.dtype(np.float64)


def can_compile(modules: ElementalAtomwise, scaling: Scaling) -> bool:
    """Whether `CompiledNetworks` knows the activations, and both modules have the same elements."""
    return (
        modules.is_built
        and modules.elements == scaling.elements
        and ACTIVATION_CODES.keys() >= set(modules.activations)
        and max(modules.n_in.values()) == scaling.shift.shape[1]
    )


class CompiledNetworks:
    """The networks of all elements with their present parameters, which are copied.

    Args:
        modules: networks on the CPU for which `can_compile` holds.
        scaling: what stands between descriptors and networks.
    """

    def __init__(self, modules: ElementalAtomwise, scaling: Scaling):
        # both in the order of the layers; `ParameterList` itself takes longer than the network
        weights = list(modules.weights._parameters.values())
        biases = modules.biases._parameters.values()
        layers = zip(weights, biases, strict=True)
        flat = [x.detach().numpy().ravel() for pair in layers for x in pair]
        widths = (scaling.shift.shape[1], *[w.shape[2] for w in weights])
        self._arguments = (
            as_array(scaling.shift, _FLOAT),
            as_array(scaling.factor, _FLOAT),
            *_tables(widths, modules.activations),
            np.concatenate(flat, dtype=_FLOAT),
            modules.scale.item(),
        )

    def __call__(self, rows: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Network outputs times `scale`, and their derivatives by the descriptors.

        Args:
            rows: (N,) row of each atom among the elements, int64.
            g: (N, D) descriptors without scaling, float64.

        Returns:
            energies (N,) eV without shifts, gradient (N, D).
        """
        energies, gradient = np.empty(len(g)), np.empty(g.shape)
        call(networks, rows, g, *self._arguments, 0, len(g), energies, gradient)
        return energies, gradient


@lru_cache(maxsize=32)
def _tables(widths: tuple[int, ...], activations: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(widths), np.array([ACTIVATION_CODES[name] for name in activations], np.int64)
