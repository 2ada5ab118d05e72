import pytest
import torch

from schnetpack_softadapt.descriptors.acsf.functions import (
    angular_factors,
    cosine_of_angle,
    gaussians,
    lengths,
    powers,
)


def test_powers_of_rounding_errors():
    """A base that should be zero comes out as -1e-16; no derivative may be NaN."""
    exponents = [1, 1.3, 2, 2.5, 3, 4, 16]
    base = torch.tensor([-1e-16, 0.0, 1e-16, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    values = powers(base, exponents)
    expected = torch.stack([base.detach().clamp(min=0) ** e for e in exponents])
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-15)
    derivative = values.sum()
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), base, create_graph=True)
        assert torch.all(torch.isfinite(derivative))
    # d/dx of x^1, x^2, ... at zero: of the first power only
    (slope,) = torch.autograd.grad(powers(base, [1, 2, 3]).sum(), base)
    assert slope[1] == 1.0


def test_angular_factors_do_not_overflow_in_float32():
    cosine = torch.tensor([1.0, -1.0, 0.0])
    factors = angular_factors(cosine, [(200.0, 1.0), (2.0, -1.0)])
    expected = torch.tensor([[2.0, 0.0, 2.0 ** (1 - 200)], [0.0, 2.0, 0.5]])
    torch.testing.assert_close(factors, expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_second_derivative_of_collinear_atoms(sign):
    """cos(theta) near 0 and 180 degrees: -+1 per radian squared, also where rounding passes 1."""
    r_ij = torch.tensor([[1.7, 0.3, -0.9]], dtype=torch.float64)
    across = torch.tensor([[0.3, -1.7, 0.0]], dtype=torch.float64)
    across = across / across.norm()
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    r_ik = sign * 1.3 * r_ij + t * 1.3 * r_ij.norm() * across
    cosine = cosine_of_angle(r_ij, r_ik, lengths(r_ij), lengths(r_ik))
    (first,) = torch.autograd.grad(cosine.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    torch.testing.assert_close(first.item(), 0.0)
    torch.testing.assert_close(second.item(), -sign)


def test_gaussians_of_several_distances():
    r = [torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.5])]
    widths = [(0.5, 0.0), (0.5, 1.0), (2.0, 0.0)]
    expected = [
        [torch.exp(torch.tensor(-eta * sum((d[n].item() - r_s) ** 2 for d in r))) for n in range(2)]
        for eta, r_s in widths
    ]
    torch.testing.assert_close(gaussians(r, widths), torch.tensor(expected))


def test_length_of_zero_has_finite_derivatives():
    v = torch.zeros(1, 3, requires_grad=True)
    (first,) = torch.autograd.grad(lengths(v).sum(), v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), v)
    assert torch.all(torch.isfinite(first))
    assert torch.all(torch.isfinite(second))
