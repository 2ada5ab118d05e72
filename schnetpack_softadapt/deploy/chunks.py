"""Large structures in chunks of central atoms: memory per pair for one chunk only.

The energy is a sum over atoms, and a symmetry function sees no more of a neighbour than its vector
and its element. So the atoms of a chunk, with one atom of each element to stand for all neighbours,
are a small structure of their own; only forces and virial are sums over the chunks.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from schnetpack_softadapt.deploy.evaluate import ComposedModels, Prediction, Structure
from schnetpack_softadapt.deploy.skin import check_finite
from schnetpack_softadapt.neighbors.pair_list import LinkedCells

__all__ = ["evaluate_in_chunks"]


def evaluate_in_chunks(
    evaluators: Sequence[ComposedModels],
    structure: Structure,
    cutoff: float,
    atoms_per_chunk: int,
    length_unit: float = 1.0,
) -> list[Prediction]:
    """What the evaluators give for a structure with all of its pairs, to rounding.

    The neighbours of each chunk are searched anew at each call: a list of all pairs to keep is what
    does not fit.

    Args:
        evaluators: the models.
        structure: in Ang.
        cutoff: the largest of the models, Ang.
        atoms_per_chunk: central atoms evaluated at a time.
        length_unit: the models' unit of length, Ang.

    Returns:
        one prediction for each model of each evaluator, in the models' units.

    Raises:
        ValueError: positions or cell are not finite, or a periodic direction has no vector.
        ExtrapolationError: too many symmetry functions outside of the training range.
    """
    check_finite(structure.positions, structure.cell[structure.pbc])
    cells = LinkedCells(structure.positions, structure.cell, structure.pbc, cutoff)
    numbers, n_atoms = structure.numbers, len(structure.numbers)
    elements, element_of = np.unique(numbers, return_inverse=True)
    sums = [[_Sums(n_atoms) for _ in evaluator.parts] for evaluator in evaluators]
    for start in range(0, n_atoms, atoms_per_chunk):
        stop = min(start + atoms_per_chunk, n_atoms)
        n_central = stop - start
        idx_i, idx_j, r_ij = cells.pairs(start, stop)
        idx_i -= start
        r_ij /= length_unit
        z = np.concatenate([numbers[start:stop], elements])
        chunk = (r_ij, idx_i, n_central + element_of[idx_j], z, n_central, start)
        for evaluator, of_models in zip(evaluators, sums, strict=True):
            derivatives = evaluator.derivatives(*chunk)
            for one, (energies, gradient) in zip(of_models, derivatives, strict=True):
                one.energies[start:stop] = energies
                _add_forces(start, idx_i, idx_j, r_ij, gradient, one.forces, one.virial)
    for evaluator in evaluators:
        evaluator.finish()
    volume = structure.volume / length_unit**3
    return [one.prediction(volume) for of_models in sums for one in of_models]


class _Sums:
    """Results of one model so far: energies (N,), forces (N, 3), virial dE/dstrain (3, 3)."""

    def __init__(self, n_atoms: int):
        self.energies = np.zeros(n_atoms)
        self.forces = np.zeros((n_atoms, 3))
        self.virial = np.zeros((3, 3))

    def prediction(self, volume: float) -> Prediction:
        stress = self.virial / volume if volume else None
        return Prediction(float(self.energies.sum()), self.forces, stress, self.energies)


@njit(cache=True, nogil=True)
def _add_forces(start, idx_i, idx_j, r_ij, gradient, forces, virial):
    """Add what follows from gradient = dE/dr_ij (P, 3); idx_i counts from atom `start`."""
    total = np.zeros((3, 3))  # of the chunk alone: fewer terms, less rounding
    for p in range(len(idx_i)):
        i, j = start + idx_i[p], idx_j[p]
        for k in range(3):
            forces[i, k] += gradient[p, k]
            forces[j, k] -= gradient[p, k]
            for l in range(3):
                total[k, l] += gradient[p, k] * r_ij[p, l]
    virial += 0.5 * (total + total.T)
