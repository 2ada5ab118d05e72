"""Symmetry functions as one autograd function over any backend.

Forward G(r), backward the vector-Jacobian product, backward of that the Jacobian-vector product:
what forces, stress and training on them need. The second derivative by positions, d2G/dr2, is not
there; asked for it, autograd gets NaN, never a silent zero. Exact Hessians go through
`descriptors(..., backend="reference")`.
"""

import warnings
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceBackend
from schnetpack_softadapt.descriptors.second_derivative import asked_for, second_derivative

__all__ = ["BACKENDS", "DescriptorBackend", "choose_backend", "descriptors", "pair_descriptors"]

BACKENDS = ("auto", "kernels", "reference")


class DescriptorBackend(Protocol):
    """What stands behind `pair_descriptors`; shapes as there."""

    def values(self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor) -> Tensor:
        """Descriptors (N, D)."""

    def vjp(
        self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, grad_g: Tensor
    ) -> Tensor:
        """Sum over atoms and columns of grad_g dG/dr_ij, (P, 3)."""

    def jvp(
        self, r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, tangent: Tensor
    ) -> Tensor:
        """Sum over pairs of dG/dr_ij . tangent, (N, D)."""


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r_ij, idx_i, idx_j, numbers, backend):
        ctx.save_for_backward(r_ij, idx_i, idx_j, numbers)
        ctx.backend = backend
        return backend.values(r_ij, idx_i, idx_j, numbers)

    @staticmethod
    def backward(ctx, grad_g):
        grad_r = _Gradient.apply(grad_g, *ctx.saved_tensors, ctx.backend, asked_for)
        return grad_r, None, None, None, None


class _Gradient(torch.autograd.Function):
    """grad_g -> grad_g dG/dr, linear in grad_g."""

    @staticmethod
    def forward(ctx, grad_g, r_ij, idx_i, idx_j, numbers, backend, _):
        ctx.save_for_backward(r_ij, idx_i, idx_j, numbers)
        ctx.backend = backend
        return backend.vjp(r_ij, idx_i, idx_j, numbers, grad_g)

    @staticmethod
    def backward(ctx, tangent):
        r_ij = ctx.saved_tensors[0]
        grad_g = None
        if ctx.needs_input_grad[0]:
            grad_g = _Tangent.apply(tangent, *ctx.saved_tensors, ctx.backend, asked_for)
        grad_r = second_derivative(r_ij, ctx.needs_input_grad[1])
        return grad_g, grad_r, None, None, None, None, None


class _Tangent(torch.autograd.Function):
    """tangent -> dG/dr tangent, linear in tangent."""

    @staticmethod
    def forward(ctx, tangent, r_ij, idx_i, idx_j, numbers, backend, _):
        ctx.save_for_backward(r_ij, idx_i, idx_j, numbers)
        ctx.backend = backend
        return backend.jvp(r_ij, idx_i, idx_j, numbers, tangent)

    @staticmethod
    def backward(ctx, grad_g):
        r_ij = ctx.saved_tensors[0]
        tangent = None
        if ctx.needs_input_grad[0]:
            tangent = _Gradient.apply(grad_g, *ctx.saved_tensors, ctx.backend, asked_for)
        grad_r = second_derivative(r_ij, ctx.needs_input_grad[1])
        return tangent, grad_r, None, None, None, None, None


def pair_descriptors(
    r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, backend: DescriptorBackend
) -> Tensor:
    """Descriptors of every atom, with the derivatives that `backend` gives.

    Args:
        r_ij: (P, 3) vectors from atom i to its neighbour j, Ang, float32 or float64.
        idx_i: (P,) central atoms, in any order; every pair is listed in both directions.
        idx_j: (P,) neighbours.
        numbers: (N,) atomic numbers.
        backend: a `ReferenceBackend`, `KernelBackend` or anything with their methods.

    Returns:
        (N, D) descriptors; columns beyond an element's own are zero. Differentiable by `r_ij`
        once, and by what follows in between any number of times; d2G/dr2 comes out as NaN.
    """
    return _Values.apply(r_ij, idx_i, idx_j, numbers, backend)


@lru_cache(maxsize=32)
def _reference(layout: Layout) -> ReferenceBackend:
    return ReferenceBackend(layout)


@lru_cache(maxsize=32)
def _kernels(layout: Layout) -> DescriptorBackend:
    # imported here: numba takes a second to load, and only this choice needs it
    from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelBackend

    return KernelBackend(layout)


@lru_cache(maxsize=1)
def _warn_no_kernels(message: str) -> None:
    warnings.warn(
        f"the compiled symmetry functions cannot be used ({message}); using the slower reference"
        " backend. Remedy: pip install numba, and unset NUMBA_DISABLE_JIT",
        stacklevel=3,
    )


def choose_backend(layout: Layout, backend: str, device: torch.device) -> DescriptorBackend:
    """The backend of a name: "kernels", "reference", or "auto": kernels on the CPU.

    Raises:
        ValueError: an unknown name, or "kernels" for a device other than the CPU.
        ImportError: "kernels" without numba, or with NUMBA_DISABLE_JIT.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {BACKENDS}")
    if backend == "reference" or (backend == "auto" and device.type != "cpu"):
        return _reference(layout)
    if device.type != "cpu":
        raise ValueError(f"backend='kernels' runs on the CPU, not on {device}; use 'auto'")
    try:
        return _kernels(layout)
    except ImportError as error:
        if backend == "kernels":
            raise
        _warn_no_kernels(str(error))
        return _reference(layout)


def descriptors(
    r_ij: Tensor,
    idx_i: Tensor,
    idx_j: Tensor,
    numbers: Tensor,
    layout: Layout,
    backend: str = "auto",
) -> Tensor:
    """Symmetry functions (N, D) of every atom; arguments as for `pair_descriptors`.

    Args:
        backend: "auto" takes the fastest for the device and "kernels" the compiled CPU code; both
            give what energies, forces, stress and their training need, and NaN for d2G/dr2.
            "reference" is plain autograd: slower, and exact in every derivative.
    """
    chosen = choose_backend(layout, backend, r_ij.device)
    if backend == "reference":
        return chosen.values(r_ij, idx_i, idx_j, numbers)
    return pair_descriptors(r_ij, idx_i, idx_j, numbers, chosen)
