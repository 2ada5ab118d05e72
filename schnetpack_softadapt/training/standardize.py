"""Scales that make losses free of units, system size and composition.

A total energy or virial is a sum of N local contributions, so its spread grows with sqrt(N), not
with N. With mu_Z and sigma_Z the mean and spread of an atomic energy of element Z, eta_Z the spread
of a force component on element Z, and tau the spread of the virial per sqrt(atom),

    E' = (E - sum_i mu_Zi) / sqrt(sum_i sigma_Zi^2)
    F'_i = F_i / eta_Zi
    W' = V sigma / (sqrt(N) tau)

have unit variance over the training set. Errors are divided by the same scales, so the means drop
out of the loss.
"""

import logging

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import nn

from schnetpack_softadapt.data.statistics import TrainingTargets, composition_fit
from schnetpack_softadapt.quantities import full_to_voigt

__all__ = ["Standardization", "energy_variances", "force_scales", "virial_scale"]

log = logging.getLogger(__name__)

N_NUMBERS = len(chemical_symbols)


def energy_variances(
    compositions: np.ndarray,  # (S, n_elements) atoms of each element
    residuals: np.ndarray,  # (S,) energies after the composition fit
    weights: np.ndarray | None = None,  # (S,) of the structures, all alike if None
) -> np.ndarray | None:
    """Variances sigma_Z^2 of atomic energies, from total energies less the composition fit.

    Maximum likelihood of independent normal residuals with variance sum_Z n_Z sigma_Z^2, with one
    atom's worth of prior for equal variances. The prior makes the estimate unique where
    compositions are linearly dependent, and positive always. Multiplicative updates
    (majorise-minimise) raise the posterior in every step and never leave the positive side.

    Returns:
        (n_elements,) variances in the squared unit of the energy; None if the residuals have no
        spread, as when there are not more structures than fitted parameters.
    """
    n = np.asarray(compositions, dtype=np.float64)
    y = np.asarray(residuals, dtype=np.float64)
    free = len(y) - np.linalg.matrix_rank(n)
    if free < 1:
        return None
    squares = y**2 * (len(y) / free)  # the fit has taken up some of the spread
    w = _mean_one(weights, len(y))
    mean = float(np.mean(w * squares / n.sum(axis=1)))
    if not mean > 0:
        return None
    v = np.full(n.shape[1], mean)
    for _ in range(2000):
        total = n @ v
        up = n.T @ (w * squares / total**2) + mean / v**2
        down = n.T @ (w / total) + 1.0 / v
        step = np.sqrt(up / down)
        v = v * step
        if np.max(np.abs(step - 1.0)) < 1e-8:
            break
    return v


def force_scales(
    numbers: np.ndarray,  # (N,) atomic numbers
    forces: np.ndarray,  # (N, 3)
    elements: np.ndarray,  # (n_elements,) atomic numbers asked for
    weights: np.ndarray | None = None,  # (N,) of the forces on the atoms, all alike if None
) -> np.ndarray | None:
    """Spread eta_Z of a force component on each element, (n_elements,); None if all are zero.

    Forces have mean zero. One atom's worth of prior for the spread over all elements keeps elements
    whose forces vanish by symmetry, or that occur once, at a finite scale.
    """
    squares = (np.asarray(forces, dtype=np.float64) ** 2).mean(axis=1)
    w = _mean_one(weights, len(squares))
    overall = np.mean(w * squares) if len(squares) else 0.0
    if not overall > 0:
        return None
    of = [numbers == z for z in elements]
    return np.sqrt([((w * squares)[s].sum() + overall) / (w[s].sum() + 1) for s in of])


def virial_scale(
    compositions: np.ndarray,  # (S, n_elements), structures that have a stress only
    stress: np.ndarray,  # (S, 3, 3)
    volume: np.ndarray,  # (S,)
    weights: np.ndarray | None = None,  # (S,) of the structures, all alike if None
) -> float | None:
    """Spread tau of V sigma / sqrt(N) about an isotropic virial per atom of each element.

    In the unit of the energy; None if there is no spread.
    """
    n = np.asarray(compositions, dtype=np.float64)
    n_atoms = n.sum(axis=1)
    virial = full_to_voigt(np.asarray(stress, dtype=np.float64)) * volume[:, None]
    # rows multiplied by this have equal variance
    w = _mean_one(weights, len(n))
    root = np.sqrt(w / n_atoms)
    pressure = virial[:, :3].mean(axis=1)
    mean, *_ = np.linalg.lstsq(n * root[:, None], pressure * root, rcond=None)
    residual = virial.copy()
    residual[:, :3] -= (n @ mean)[:, None]
    free = residual.size - np.linalg.matrix_rank(n)
    variance = float(((residual * root[:, None]) ** 2).sum() / max(free, 1))
    # a fit through every point leaves rounding, not spread
    rounding = float(np.finfo(np.float64).eps * np.abs(virial).max()) ** 2 * 100
    return float(np.sqrt(variance)) if variance > rounding else None


class Standardization(nn.Module):
    """The scales of a training set, as buffers that go into checkpoints.

    Tables are indexed by atomic number, so that their shape is the same before and after the fit.
    Elements that the training set lacks have the scale of the whole set.
    """

    energy_variance: torch.Tensor  # (119,) sigma_Z^2
    force_scale: torch.Tensor  # (119,) eta_Z
    stress_scale: torch.Tensor  # () tau
    fitted: torch.Tensor  # () bool

    def __init__(self):
        super().__init__()
        self.register_buffer("energy_variance", torch.ones(N_NUMBERS, dtype=torch.float64))
        self.register_buffer("force_scale", torch.ones(N_NUMBERS, dtype=torch.float64))
        self.register_buffer("stress_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(self, targets: TrainingTargets) -> None:
        """Estimate all scales from a training set; a quantity without spread keeps its unit."""
        elements = torch.as_tensor(targets.elements, dtype=torch.long)

        def set_table(table: torch.Tensor, overall: float, values: np.ndarray | None) -> None:
            table.fill_(overall)
            if values is not None:
                table[elements] = torch.as_tensor(values, dtype=table.dtype, device=table.device)

        variances = forces = tau = None
        if targets.energy is not None:
            variances = _energy_scales(targets)
            if variances is None:
                _warn("energies", "energy differences")
        if targets.forces is not None:
            forces = force_scales(
                targets.numbers, targets.forces, targets.elements, targets.atom_weight
            )
            if forces is None:
                _warn("forces", "forces that are not zero")
        if targets.stress is not None and targets.stress_mask.any():
            use = targets.stress_mask
            tau = virial_scale(
                targets.compositions[use],
                targets.stress[use],
                targets.volumes[use],
                targets.weight[use],
            )
            if tau is None:
                _warn("stresses", "stress differences")
        counts = targets.weight @ targets.compositions
        mean_variance = 1.0 if variances is None else counts @ variances / counts.sum()
        mean_force = (
            1.0
            if forces is None
            else np.sqrt(np.average((targets.forces**2).mean(axis=1), weights=targets.atom_weight))
        )
        set_table(self.energy_variance, mean_variance, variances)
        set_table(self.force_scale, mean_force, forces)
        self.stress_scale.fill_(1.0 if tau is None else tau)
        self.fitted.fill_(True)

    def energy_spread(self, numbers: torch.Tensor, idx_m: torch.Tensor, n: int) -> torch.Tensor:
        """sqrt(sum_i sigma_Zi^2) of each structure, (n,), from atoms (N,) and their structures."""
        variance = self.energy_variance.new_zeros(n)
        return variance.index_add(0, idx_m, self.energy_variance[numbers]).sqrt()


def _mean_one(weights: np.ndarray | None, n: int) -> np.ndarray:
    """Weights (n,) whose mean is 1; all 1 if None."""
    return np.ones(n) if weights is None else weights / np.mean(weights)


def _energy_scales(targets: TrainingTargets) -> np.ndarray | None:
    """sigma_Z^2 of the elements, None if energies have no spread."""
    _, means = composition_fit(targets)
    residuals = targets.energy - targets.compositions @ means
    # the fit leaves rounding of this order in energies that it explains entirely
    rounding = 1e-12 * (1.0 + np.abs(means).max())
    if np.abs(residuals / targets.n_atoms).max() <= rounding:
        return None
    return energy_variances(targets.compositions, residuals, targets.weight)


def _warn(what: str, remedy: str) -> None:
    log.warning(
        "the %s of the training set have no spread to standardise by; their loss stays in the"
        " units of the data (add structures with %s)",
        what,
        remedy,
    )
