"""Volumes of cells, in one place for all that divide or multiply by them."""

import numpy as np

__all__ = ["MIN_VOLUME_ANG3", "stress_volumes", "volumes"]

#: a cell of less is flat: its lattice vectors are linearly dependent, or missing
MIN_VOLUME_ANG3 = 1e-6


def volumes(cells):
    """Volumes (...) of lattice vectors in rows (..., 3, 3), Ang^3; numpy or torch.

    Positive for cells of either handedness, 0 without lattice vectors, NaN for a cell with NaN.
    """
    return abs(np.linalg.det(cells) if isinstance(cells, np.ndarray) else cells.det())


def stress_volumes(cells, pbc):
    """Volumes (B,) that a stress is defined by, Ang^3; 0 where it has no meaning.

    Args:
        cells: (B, 3, 3) lattice vectors in rows, Ang; numpy or torch.
        pbc: (B, 3) or (3 B,) periodic along each of them; a structure that is periodic along none,
            or has a flat cell, has no stress.
    """
    volume = volumes(cells)
    flat = (volume < MIN_VOLUME_ANG3) | ~pbc.reshape(-1, 3).any(1)
    volume[flat] = 0.0
    return volume
