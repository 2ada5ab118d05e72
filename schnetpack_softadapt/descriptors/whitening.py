"""Descriptors as coordinates of a space in which distances mean something."""

from dataclasses import dataclass

import numpy as np

from schnetpack_softadapt.descriptors.scaling import ABSOLUTE_SPREAD, RELATIVE_SPREAD

__all__ = ["Whitening"]


@dataclass(frozen=True)
class Whitening:
    """x = (G - mean) @ matrix: of the sample it was made of, all covariances of x are 1 or 0."""

    mean: np.ndarray  # (D,)
    matrix: np.ndarray  # (D, D), symmetric in columns divided by their spread

    @classmethod
    def of(cls, values: np.ndarray, floor: float = 1e-4) -> "Whitening":
        """From a sample.

        Args:
            values: (n, D); constant columns count nothing.
            floor: directions with a smaller part of the largest eigenvalue of the correlations are
                nearly combinations of the others, and are not blown up beyond this one.
        """
        mean, spread = values.mean(axis=0), values.std(axis=0)
        size = np.abs(values).max(axis=0)
        varies = spread > np.maximum(RELATIVE_SPREAD * size, ABSOLUTE_SPREAD)
        scale = np.where(varies, 1.0 / np.where(varies, spread, 1.0), 0.0)
        scaled = (values - mean) * scale
        eigenvalues, vectors = np.linalg.eigh(scaled.T @ scaled / len(values))
        least = max(floor * eigenvalues[-1], np.finfo(np.float64).tiny)
        factors = 1.0 / np.sqrt(np.maximum(eigenvalues, least))
        return cls(mean, scale[:, None] * ((vectors * factors) @ vectors.T))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """x (n, D) of G (n, D)."""
        return (values - self.mean) @ self.matrix
