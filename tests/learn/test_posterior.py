"""The uncertainty of linear models against its definition."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.snap import read_snap
from schnetpack_softadapt.learn.posterior import Posterior, PosteriorCalculator, root_and_scale


@pytest.mark.parametrize("n", [6, 21], ids=["linear", "quadratic"])
def test_rows_are_derivatives_of_the_forces(n, tmp_path):
    rng, lines = np.random.default_rng(0), [f"2 {n}"]
    for x, weight in (("Cu", 1.0), ("Au", 0.8)):
        lines += [f"{x} 0.5 {weight}", *map(str, rng.normal(0, 0.01, n).tolist())]
    (tmp_path / "m.snapcoeff").write_text("\n".join(lines) + "\n")
    flag = f"quadraticflag {int(n > 6)}"
    (tmp_path / "m.snapparam").write_text(f"twojmax 2\nrcutfac 4.5\n{flag}\n")
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
    atoms.symbols[3] = "Au"
    atoms.positions += rng.normal(0, 0.1, (4, 3))
    x = Posterior(tmp_path).rows(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    model = read_snap(tmp_path / "m.snapcoeff")
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert x.shape == (12, 2 * n)
    for k in (0, 1, n - 2, n, 2 * n - 3, 2 * n - 1):
        with torch.no_grad():
            unit = torch.eye(2 * n, dtype=torch.float64)[k].split([2 * n - 2, 2])
            for p, part in zip(parameters, unit, strict=True):
                p.copy_(part.view_as(p))
        calculator = SoftAdaptCalculator(model)
        calculator.calculate(atoms)
        np.testing.assert_allclose(x[:, k], calculator.results["forces"].ravel(), atol=1e-10)
    # standard deviations follow from any root
    root = rng.normal(size=(2 * n, 2 * n))
    np.savez(tmp_path / "posterior.npz", root=root, scale=0.3)
    calculator = PosteriorCalculator(tmp_path)
    calculator.calculate(atoms)
    variance = 0.09 * np.einsum("ij,jk,ik->i", x, root @ root.T, x)
    np.testing.assert_allclose(calculator.results["forces_std"].ravel() ** 2, variance)


def test_scale_by_leaving_structures_out():
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(6, 8)) * np.logspace(0, -2, 8) for _ in range(5)]
    labels = [rng.normal(size=6) for _ in rows]
    ridge = 1e-7 * np.diag((np.concatenate(rows) ** 2).sum(0))

    def solved(which):
        normal = ridge + sum(rows[k].T @ rows[k] for k in which)
        return np.linalg.solve(normal, sum(rows[k].T @ labels[k] for k in which)), normal

    coefficients, normal = solved(range(5))
    errors = [b - x @ coefficients for x, b in zip(rows, labels, strict=True)]
    root, scale = root_and_scale(rows, errors)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(normal), rtol=1e-6)
    ratios = []
    for k in range(5):
        coefficients, normal = solved([m for m in range(5) if m != k])
        variance = np.einsum("ij,jk,ik->i", rows[k], np.linalg.inv(normal), rows[k])
        ratios.append(np.sum((labels[k] - rows[k] @ coefficients) ** 2) / variance.sum())
    assert scale == pytest.approx(np.exp(np.log(ratios).mean()) ** 0.5, rel=1e-6)
