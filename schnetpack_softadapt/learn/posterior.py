"""How well a linear model knows the forces of a structure, from what it was fitted to.

The derivatives of the forces by the coefficients are rows X (3N, P) of a structure, which need no
labels. With A = sum X^T X + ridge over the training structures the coefficients have the covariance
s^2 A^-1 (C. M. Bishop, Pattern Recognition and Machine Learning, 2006, 3.3), and the forces

    s^2 X A^-1 X^T.

x A^-1 x is what D-optimal designs are made by: E. V. Podryabinkin, A. V. Shapeev, Comput. Mater.
Sci. 140, 171 (2017); Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).

The errors of a model that has not the form of the truth are no independent noise, and s^2 from the
residuals is too small by a factor of tens. So each training structure is left out in turn, which
changes its residuals e and the variances h of its forces to

    (1 - H)^-1 e   and   diag((1 - H)^-1 H),   H = X A^-1 X^T,

and s^2 is the geometric mean over the structures of |e|^2 / sum h. Energies and stresses, few rows
beside those of forces, are left out: of perfect crystals the model knows more than this says.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.loading import load_potential
from schnetpack_softadapt.deploy.predict import calculated
from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.model.composition import take_apart
from schnetpack_softadapt.model.jacobian import NetworkJacobian
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["Posterior", "PosteriorCalculator", "root_and_scale", "write_posterior"]

FILE = "posterior.npz"
# of A with columns of length 1, as in the fit
_RIDGE = 1e-7
_TINY = 1e-12  # of structures whose forces are zero by symmetry


class Posterior:
    """Rows of structures for a linear model.

    Args:
        model: path of its run.

    Raises:
        ValueError: the model is not linear in its coefficients.
    """

    def __init__(self, model: str | Path):
        self.parts = take_apart(load_potential(model), short_range=True)
        if self.parts.networks.n_hidden:
            raise ValueError(f"{model} is not linear: its uncertainty needs a committee")
        self.engine = self.parts.descriptor.engine("cpu")

    def rows(self, numbers, positions, cell, pbc) -> np.ndarray:
        """dF/dtheta (3N, P) of a structure, eV/Ang."""
        idx_i, idx_j, r_ij, _ = neighbor_pairs(positions, cell, pbc, self.parts.descriptor.cutoff)
        numbers = torch.as_tensor(np.asarray(numbers, np.int64))
        found = self.engine.jacobian(self.engine.prepare(r_ij, idx_i, idx_j, numbers.numpy()))
        scaling, every = self.parts.scaling, np.arange(len(numbers))
        networks = NetworkJacobian(
            self.parts.networks, scaling(torch.from_numpy(found.values), numbers), numbers
        )
        # an atom's own derivative: minus the sum of those by its neighbours
        centers = np.repeat(every, np.diff(found.block_first))
        blocks = torch.from_numpy(found.dg_dr)
        own = blocks.new_zeros(len(every), *blocks.shape[1:])
        own.index_add_(0, torch.from_numpy(centers), blocks)
        by = np.concatenate([found.block_atom, every])
        order = np.argsort(by, kind="stable")
        centers = np.concatenate([centers, every])[order]
        factor = scaling.factor[scaling.index(numbers)].numpy()[centers]
        directions = np.concatenate([-found.dg_dr, own.numpy()])[order] * factor[:, None]
        out = torch.zeros(len(numbers), 3, networks.n_parameters, dtype=torch.float64)
        networks.add_tangents(
            out, *map(torch.from_numpy, (centers, by[order].astype(np.int64), directions))
        )
        return out.reshape(len(numbers) * 3, -1).numpy()


def root_and_scale(
    rows: Sequence[np.ndarray], errors: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Root L (P, P) of A^-1 = L L^T, and s, from the X (3N, P) and e (3N,) of the structures."""
    normal = sum(x.T @ x for x in rows)
    length = np.sqrt(np.diag(normal))
    length[length == 0.0] = 1.0  # constants have no forces
    normal = normal / np.outer(length, length) + _RIDGE * np.eye(len(length))
    root = np.linalg.inv(np.linalg.cholesky(normal)).T / length[:, None]
    ratios = []
    for x, e in zip(rows, errors, strict=True):
        x = x @ root
        left = np.linalg.inv(np.eye(len(x)) - x @ x.T)
        # (1 - H)^-1 H = (1 - H)^-1 - 1
        ratios.append((np.sum((left @ e) ** 2) + _TINY) / (np.trace(left) - len(x) + _TINY))
    return root, float(np.exp(np.log(ratios).mean() / 2))


def write_posterior(model: str | Path, structures: Sequence[Structure]) -> None:
    """Put what `root_and_scale` gives into the folder of the model.

    Args:
        model: path of its run.
        structures: that it was fitted to, with forces.
    """
    posterior, calculator = Posterior(model), SoftAdaptCalculator(str(model))
    rows = [posterior.rows(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
    found = (result["forces"] for result in calculated(structures, calculator))
    errors = [(s.forces - f).ravel() for s, f in zip(structures, found, strict=True)]
    root, scale = root_and_scale(rows, errors)
    with replacing(Path(model) / FILE) as temporary, open(temporary, "wb") as file:
        np.savez(file, root=root, scale=scale)


class PosteriorCalculator(SoftAdaptCalculator):
    """The model of a run, with the standard deviation of its forces (N, 3) as `forces_std`, eV/Ang.

    Args:
        model: run beside whose model `write_posterior` has left its file.
        kwargs: of `SoftAdaptCalculator`.
    """

    def __init__(self, model: str | Path, **kwargs):
        super().__init__(str(model), **kwargs)
        self.posterior = Posterior(model)
        with np.load(Path(model) / FILE) as file:
            self.root, self.scale = file["root"], float(file["scale"])

    def whitened(self, atoms: Atoms) -> np.ndarray:
        """Rows X L (3N, P): of the square of a length, the leverage, s^2 is the variance."""
        cell = atoms.cell.array
        return self.posterior.rows(atoms.numbers, atoms.positions, cell, atoms.pbc) @ self.root

    def calculate(self, atoms=None, *args, **kwargs) -> None:
        """As of the base class."""
        super().calculate(atoms, *args, **kwargs)
        leverage = (self.whitened(self.atoms) ** 2).sum(1)
        self.results["forces_std"] = self.scale * np.sqrt(leverage).reshape(-1, 3)
