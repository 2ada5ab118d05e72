"""The short way of a potential on the CPU: pair list, descriptors, networks, derivative by pairs.

SchNetPack's way through `Strain`, `PairwiseDistances`, representation, networks and autograd is
right for any model, but its operators cost more than the descriptors of a small structure. With
dE/dr_p, the vector-Jacobian product of the descriptors, which needs no graph,

    F_i = sum_p(i = i_p) dE/dr_p - sum_p(i = j_p) dE/dr_p,      V stress = sum_p dE/dr_p (x) r_p

(`neighbors.pair_sums`). Calculator and direct evaluation of a batch both go this way.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from schnetpack_softadapt.model.compiled_networks import CompiledNetworks
from schnetpack_softadapt.model.composition import Composition

__all__ = ["PairEvaluator"]


class PairEvaluator:
    """Models with the same descriptor, which is computed once for all of them.

    Their parameters are copied, and all is computed in float64.

    Args:
        models: on the CPU, taken apart.
        watch: called with the descriptors (n, D) and atomic numbers (n,) of some atoms, and the
            number of atoms that came before.
    """

    def __init__(
        self,
        models: Sequence[Composition],
        watch: Callable[[np.ndarray, np.ndarray, int], None] | None = None,
    ):
        first = models[0]
        self.n_models = len(models)
        self.engine = first.descriptor.engine("cpu", first.representation.backend)
        self._watch = watch
        self._networks = [CompiledNetworks(m.networks, m.scaling) for m in models]
        self._offsets = [m.offsets.numpy() for m in models]
        self._fades = [getattr(m.networks, "fade", None) for m in models]
        self._baselines = [m.baseline for m in models]
        self._rows = first.scaling.index.rows.numpy()  # by atomic number; the same for all models

    def __call__(
        self,
        r_ij: np.ndarray,
        idx_i: np.ndarray,
        idx_j: np.ndarray,
        numbers: np.ndarray,
        n_central: int,
        start: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Atomic energies, and their sum's derivative by the pair vectors, model after model.

        Args:
            r_ij, idx_i, idx_j: (P, 3), (P,), (P,) pairs of the central atoms.
            numbers: (N,) atomic numbers; of neighbours that are not central only this is seen.
            n_central: atoms that have an energy, the first ones.
            start: atoms of the structure in calls before this one.

        Yields:
            energies (n_central,); dE/dr_ij (P, 3).
        """
        pairs = self.engine.prepare(r_ij, idx_i, idx_j, numbers)
        values = np.asarray(self.engine.values(pairs))
        n_others, of_pairs = len(numbers) - n_central, (r_ij, idx_i, idx_j, numbers)
        if n_others:
            values, numbers = values[:n_central], numbers[:n_central]
        if self._watch is not None:
            self._watch(values, numbers, start)
        rows = self._rows[numbers]
        parts = zip(self._networks, self._offsets, self._fades, self._baselines, strict=True)
        for networks, offsets, fade, baseline in parts:
            energies, gradient = networks(rows, values)
            faded = None if fade is None else fade.of_pairs(*of_pairs, energies)
            if faded is not None:
                energies, factor, by_pairs = faded
                gradient *= factor[:, None]
            energies += offsets[numbers]
            if n_others:
                gradient = np.pad(gradient, ((0, n_others), (0, 0)))
            by_vectors = np.asarray(self.engine.vjp(pairs, torch.from_numpy(gradient)))
            if faded is not None:
                by_vectors += by_pairs
            if baseline is not None:
                baseline.add_pairs(*of_pairs, energies, by_vectors)
            yield energies, by_vectors
