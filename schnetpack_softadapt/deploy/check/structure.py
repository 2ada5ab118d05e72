"""What the checks share: changed copies, the directions of a crystal, progress bars."""

from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_strain
from tqdm import tqdm

from schnetpack_softadapt.data.dataset import PROGRESS_DELAY_S

__all__ = ["bulk_directions", "copy_of", "displaced", "progress", "strained", "why_not_bulk"]

#: Ang; an empty layer of this height is no part of a crystal
_VACUUM = 5.0


def copy_of(atoms: Atoms) -> Atoms:
    """The structure with its calculator, without constraints."""
    copied = atoms.copy()
    copied.calc = atoms.calc
    copied.set_constraint()
    return copied


def displaced(atoms: Atoms, i: int, k: int, x: float) -> Atoms:
    """A copy with coordinate k of atom i moved by x, Ang."""
    moved = copy_of(atoms)
    moved.positions[i, k] += x
    return moved


def strained(atoms: Atoms, component: int, x: float) -> Atoms:
    """A copy with one strain in Voigt order; shears are 2 eps_xy, whose derivative is sigma_xy."""
    deformation = voigt_6_to_full_3x3_strain(x * np.eye(6)[component])
    changed = copy_of(atoms)
    changed.set_cell(atoms.cell @ deformation, scale_atoms=True)
    return changed


def bulk_directions(atoms: Atoms) -> np.ndarray:
    """(3,) whether the structure goes on along each lattice vector: periodic, without a vacuum.

    Slabs and molecules are often given as periodic in all directions, with some vacuum.
    """
    found = atoms.pbc & atoms.cell.any(axis=1)
    scaled = atoms.get_scaled_positions() % 1.0
    heights = 1.0 / np.linalg.norm(atoms.cell.complete().reciprocal(), axis=1)
    for k in np.flatnonzero(found):
        x = np.sort(scaled[:, k])
        found[k] = np.diff(x, append=x[0] + 1.0).max() * heights[k] < _VACUUM
    return found


def why_not_bulk(atoms: Atoms) -> str | None:
    """Why a check of bulk crystals makes no sense for a structure; None where it does."""
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return "needs a cell that is periodic in all directions"
    empty = [v for v, bulk in zip("abc", bulk_directions(atoms), strict=True) if not bulk]
    return f"needs a bulk crystal: there is vacuum along {', '.join(empty)}" if empty else None


def progress(steps: Iterable | None, what: str) -> tqdm:
    """The same steps with a progress bar where they take long; None: steps that are told to it."""
    return tqdm(steps, desc=what, delay=PROGRESS_DELAY_S, leave=False, disable=None)
