import pytest
import torch

from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS

# derivatives that are continuous at the cutoff
SMOOTHNESS = {"cosine": 1, "tanh3": 2, "exp": 9, "poly1": 1, "poly2": 2, "poly3": 3, "poly4": 4}


def derivatives(name, r, cutoff, order):
    r = r.clone().requires_grad_()
    f = CUTOFFS[name](r, cutoff)
    out = [f]
    for _ in range(order):
        (f,) = torch.autograd.grad(f.sum(), r, create_graph=True)
        out.append(f)
    return [x.detach() for x in out]


@pytest.mark.parametrize("name", CUTOFFS)
def test_known_values(name):
    r = torch.tensor([0.0, 2.5, 5.0, 6.0], dtype=torch.float64)
    f = CUTOFFS[name](r, 5.0)
    at_zero, at_half = {"tanh3": (0.76159415595576**3, 0.46211715726001**3)}.get(name, (1.0, 0.5))
    if name == "exp":
        at_half = 0.71653131057379  # exp(1 - 4/3)
    expected = torch.tensor([at_zero, at_half, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(f, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CUTOFFS)
def test_smooth_at_the_cutoff_and_zero_beyond(name):
    cutoff, step = 5.0, 1e-6
    r = torch.tensor([cutoff - step, cutoff, cutoff + step], dtype=torch.float64)
    smooth = SMOOTHNESS[name]
    for order, values in enumerate(derivatives(name, r, cutoff, min(smooth + 1, 6))):
        assert torch.all(values[1:] == 0)
        assert torch.all(torch.isfinite(values))
        # the first derivative that jumps is of order 0.1; the ones before fall with the step
        assert (abs(values[0]) < 1e-4) == (order <= smooth)


@pytest.mark.parametrize("name", CUTOFFS)
def test_gradcheck(name):
    r = torch.tensor([0.1, 1.0, 3.0, 4.5, 4.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: CUTOFFS[name](r, 5.0), r)
    assert torch.autograd.gradgradcheck(lambda r: CUTOFFS[name](r, 5.0), r)


@pytest.mark.parametrize("name", CUTOFFS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_next_to_the_cutoff(name, dtype):
    cutoff = torch.tensor(5.0, dtype=dtype)
    r = torch.stack([torch.nextafter(cutoff, torch.zeros_like(cutoff)), cutoff, cutoff - 1e-5])
    assert all(torch.all(torch.isfinite(x)) for x in derivatives(name, r, 5.0, 3))


@pytest.mark.parametrize("name", CUTOFFS)
def test_not_a_number_is_not_hidden(name):
    assert torch.isnan(CUTOFFS[name](torch.tensor([float("nan")]), 5.0)).all()
