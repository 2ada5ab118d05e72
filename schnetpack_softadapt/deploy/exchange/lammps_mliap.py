"""Our kernels in LAMMPS: what `pair_style mliap unified potential.mliap` loads.

LAMMPS (package ML-IAP with Python) passes the pairs of its neighbour list that lie within the
cutoff, takes energies per atom and the derivative dE_i/dr_ij of each pair, and sums forces and
virial itself, on any number of ranks. `potential.mliap`, the file that LAMMPS unpickles, is four
lines of plain text: they call `load` of this module with the path of `potential.json`. On the way
nothing imports torch unless a descriptor has no compiled kernels.

The virial of an atom (`compute stress/atom`) is that of its pairs, half of r_ij (x) dE_i/dr_ij for
i and half for j: its sum over atoms is the virial, a single one is a convention.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from schnetpack_softadapt.deploy.exchange.text import AtomicEnergies, TextPotential

__all__ = [
    "EXTRAPOLATIONS",
    "PICKLE_NAME",
    "SPREAD",
    "LammpsPotential",
    "connect",
    "load",
    "pickle_text",
]

log = logging.getLogger(__name__)

PICKLE_NAME = "potential.mliap"

#: per-atom properties that are filled where the input defines them (`fix property/atom`)
EXTRAPOLATIONS, SPREAD = "d_extrapolations", "d_energy_std"

_potential: LammpsPotential | None = None


class LammpsPotential:
    """A text potential with the methods and attributes that ML-IAP asks of a unified model.

    Attributes:
        element_types: symbols, what `pair_coeff` maps the atom types to.
        rcutfac: half of the cutoff, since LAMMPS adds the radii (1) of two elements.
        lammps: a handle on the simulation, see `connect`.
        n_extrapolations: of this rank's atoms since the start.
    """

    def __init__(self, potential: TextPotential):
        self.potential = potential
        self.element_types = [chemical_symbols[z] for z in potential.elements]
        self.rcutfac = 0.5 * potential.cutoff
        self.ndescriptors = self.nparams = 1  # LAMMPS only makes room for them
        self.interface = None  # set by LAMMPS
        self.lammps = None
        self.n_extrapolations = 0
        self._rows = np.arange(len(potential.elements))

    def compute_descriptors(self, data) -> None:
        """Nothing: all is done by `compute_forces`."""

    def compute_gradients(self, data) -> None:
        """Nothing, as above."""

    def compute_forces(self, data) -> None:
        """Energies of the atoms, forces on them and their neighbours."""
        n, n_pairs = data.nlistatoms, data.npairs
        if n == 0:  # a rank without atoms; LAMMPS' arrays do not exist
            data.energy = 0.0
            return
        # an atom of each element, after those of the rank, stands for all neighbours of it
        rows = np.concatenate([data.ielems[:n], self._rows])
        if n_pairs:
            idx_i = np.repeat(np.arange(n), data.numneighs[:n])
            idx_j, r_ij = n + data.jelems.astype(np.int64), data.rij
        else:
            idx_i = idx_j = np.zeros(0, np.int64)
            r_ij = np.zeros((0, 3))
        result = self.potential(r_ij, idx_i, idx_j, rows, n)
        data.energy = result.energies.sum()
        data.eatoms = result.energies
        if n_pairs:
            data.update_pair_forces(result.gradient)
        self._report(data.iatoms[:n], result)

    def _report(self, atoms: np.ndarray, result: AtomicEnergies) -> None:
        n_outside = int(result.n_outside.sum())
        if n_outside and not self.n_extrapolations:
            log.warning(
                "%d descriptors of %d atoms are outside of the training range; the first of this"
                " rank, further ones are only counted (c_outside)",
                n_outside,
                np.count_nonzero(result.n_outside),
            )
        self.n_extrapolations += n_outside
        if self.lammps is None:
            return
        # they belong to the atoms and go with them from rank to rank: `compute reduce` sums all
        extract = self.lammps.numpy.extract_atom
        if n_outside and (counts := extract(EXTRAPOLATIONS)) is not None:
            counts[atoms] += result.n_outside
        if len(self.potential.members) > 1 and (spread := extract(SPREAD)) is not None:
            spread[atoms] = result.spread


def pickle_text(path: str) -> str:
    """The file that LAMMPS unpickles, in a pickle's text form: it stands for `load(path)`."""
    return f"c{__name__}\nload\n(V{path}\ntR."


def load(path: str) -> LammpsPotential:
    """The potential of a `potential.json`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no potential.
    """
    global _potential
    # one thread for each rank, unless the environment asks for more; before numba reads it
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from schnetpack_softadapt.deploy.exchange.text import TextPotential, read_text

    if not Path(path).exists():
        raise FileNotFoundError(
            f"there is no {path} in {os.getcwd()}: start LAMMPS in the folder of the potential, or"
            " write the path into potential.mliap, which is text"
        )
    _potential = LammpsPotential(TextPotential(read_text(path)))
    return _potential


def connect(pointer) -> None:
    """Let the potential fill per-atom properties of the simulation (LAMMPS' command `python`)."""
    from lammps import lammps

    _potential.lammps = lammps(ptr=pointer)
