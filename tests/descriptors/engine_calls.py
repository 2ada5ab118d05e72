"""Engines whose methods take the pair list itself, and pair lists for them."""

import brute_force as bf
import torch

from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelEngine
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceEngine
from schnetpack_softadapt.descriptors.autograd import pair_descriptors
from schnetpack_softadapt.descriptors.protocol import Engine

__all__ = [
    "EngineCalls",
    "KernelCalls",
    "ReferenceCalls",
    "descriptors",
    "tensors",
    "values_of",
]


class EngineCalls:
    """`engine.values(engine.prepare(*pairs))` as `values(*pairs)`, and so on."""

    def __init__(self, engine: Engine):
        self.engine, self.descriptor = engine, engine.descriptor

    def prepare(self, r_ij, idx_i, idx_j, numbers):
        return self.engine.prepare(r_ij, idx_i, idx_j, numbers)

    def values(self, *pairs):
        return self.engine.values(self.prepare(*pairs))

    def vjp(self, *pairs_and_grad):
        return self.engine.vjp(self.prepare(*pairs_and_grad[:-1]), pairs_and_grad[-1])

    def jvp(self, *pairs_and_tangent):
        return self.engine.jvp(self.prepare(*pairs_and_tangent[:-1]), pairs_and_tangent[-1])

    def jacobian(self, *pairs, **kwargs):
        return self.engine.jacobian(self.prepare(*pairs), **kwargs)


def KernelCalls(layout):
    return EngineCalls(KernelEngine(layout))


def ReferenceCalls(layout, *args):
    return EngineCalls(ReferenceEngine(layout, *args))


def descriptors(r_ij, idx_i, idx_j, numbers, layout, backend="auto"):
    """What a representation computes, differentiable by r_ij."""
    return pair_descriptors(r_ij, idx_i, idx_j, numbers, layout.engine(r_ij.device, backend))


def tensors(r_ij, idx_i, idx_j, numbers, dtype=torch.float64):
    return (
        torch.as_tensor(r_ij, dtype=dtype),
        torch.as_tensor(idx_i),
        torch.as_tensor(idx_j),
        torch.tensor(numbers),
    )


def values_of(backend, positions, cell, pbc, numbers):
    pairs = bf.pairs_of(positions, cell, pbc, backend.descriptor.cutoff)
    return backend.values(*tensors(*pairs, numbers)).detach().numpy()
