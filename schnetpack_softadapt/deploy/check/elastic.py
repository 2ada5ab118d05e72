"""Elastic constants in the axes that tables use, with the symmetry of the crystal.

C_ij = d sigma_i / d e_j at relaxed positions, Voigt order xx yy zz yz xz xy, with e_4 = 2 eps_yz.
The standard axes are those of spglib's conventional cell: x along a, y in the plane of a and b; so
z is along c in all but monoclinic and triclinic crystals. Turned into them, C is averaged over the
crystal's point group, of which numerical errors know nothing.
"""

import numpy as np
import spglib
from ase import Atoms, units
from ase.optimize import BFGS

from schnetpack_softadapt.deploy.check.structure import progress, strained, why_not_bulk
from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_OF_FULL, VOIGT_ROWS

__all__ = ["check_elastic", "mean_moduli"]

# Voigt's index of a pair of axes, and the pair of an index
_INDEX = np.array(VOIGT_OF_FULL).reshape(3, 3)
_FIRST, _SECOND = np.array(VOIGT_ROWS), np.array(VOIGT_COLUMNS)


def check_elastic(
    atoms: Atoms, delta: float = 2e-3, fmax: float = 1e-4, symprec: float = 0.01
) -> dict:
    """Elastic constants of a relaxed crystal, by central differences of the stress.

    Args:
        atoms: with a calculator, relaxed.
        delta: strain of either sign.
        fmax: largest force in the relaxation of the positions, eV/Ang.
        symprec: how far atoms may stand from where the symmetry wants them, Ang.
    """
    reason = why_not_bulk(atoms)
    if reason is not None:
        return {"skipped": reason}
    measured = _constants(atoms, delta, fmax)
    crystal = spglib.get_symmetry_dataset(
        (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=symprec
    )
    if crystal is None:
        raise ValueError("the symmetry is not found: are there atoms on top of each other?")
    standard = _rotated(measured, crystal.std_rotation_matrix[None])
    operations = spglib.get_symmetry_from_database(crystal.hall_number)["rotations"]
    axes = crystal.std_lattice.T  # columns
    constants = _rotated(standard, axes @ operations @ np.linalg.inv(axes))
    eigenvalues = np.linalg.eigvalsh(constants)
    return {
        "space_group": f"{crystal.international} ({crystal.number})",
        "axes": "x along a, y in the plane of a and b of the conventional cell",
        "elastic_constants_GPa": constants.tolist(),
        "symmetry_error_GPa": float(np.abs(standard - constants).max()),
        **mean_moduli(constants),
        "eigenvalues_GPa": eigenvalues.tolist(),
        # Born's criterion
        "ok": bool(eigenvalues.min() > 0),
    }


def _constants(atoms: Atoms, delta: float, fmax: float) -> np.ndarray:
    """C (6, 6) in the axes of the structure, GPa."""
    constants = np.zeros((6, 6))
    for step in progress(range(12), "elastic constants"):
        component, sign = step // 2, 1 - 2 * (step % 2)
        changed = strained(atoms, component, sign * delta)
        BFGS(changed, logfile=None).run(fmax=fmax, steps=200)
        constants[:, component] += sign * changed.get_stress() / (2 * delta * units.GPa)
    return 0.5 * (constants + constants.T)


def _rotated(constants: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """C (6, 6) after rotations (R, 3, 3) of the crystal, the mean over them."""
    tensor = constants[_INDEX[:, :, None, None], _INDEX]  # (3, 3, 3, 3)
    tensor = np.repeat(tensor[None], len(rotations), axis=0)
    for _ in range(4):  # each turns the first axis and puts it last
        tensor = np.einsum("rai,rijkl->rjkla", rotations, tensor)
    return tensor.mean(axis=0)[_FIRST[:, None], _SECOND[:, None], _FIRST, _SECOND]


def mean_moduli(constants: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Bulk and shear modulus of a polycrystal: Voigt's upper, Reuss' lower bound, Hill's mean.

    Args:
        constants: C (6, 6), GPa, in any axes.

    Returns:
        `bulk_modulus_GPa` and `shear_modulus_GPa`, each with `voigt`, `reuss`, `hill`; None where
        an unstable crystal has none.
    """

    def sums(matrix: np.ndarray) -> tuple[float, float, float]:
        """11 + 22 + 33, 12 + 13 + 23, 44 + 55 + 66."""
        upper = np.triu(matrix[:3, :3], 1).sum()
        return float(np.trace(matrix[:3, :3])), float(upper), float(np.trace(matrix[3:, 3:]))

    normal, off, shear = sums(constants)
    voigt = (normal + 2 * off) / 9, (normal - off + 3 * shear) / 15
    reuss = hill = (None, None)
    if np.linalg.eigvalsh(constants).min() > 0:
        normal, off, shear = sums(np.linalg.inv(constants))
        reuss = 1 / (normal + 2 * off), 15 / (4 * (normal - off) + 3 * shear)
        hill = tuple(0.5 * (v + r) for v, r in zip(voigt, reuss, strict=True))
    return {
        f"{name}_modulus_GPa": {"voigt": voigt[k], "reuss": reuss[k], "hill": hill[k]}
        for k, name in enumerate(("bulk", "shear"))
    }
