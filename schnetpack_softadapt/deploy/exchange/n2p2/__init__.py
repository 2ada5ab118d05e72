"""Potentials in the files of n2p2 and RuNNer, which LAMMPS reads too."""

from schnetpack_softadapt.deploy.exchange.n2p2.model import read_potential, write_potential

__all__ = ["read_potential", "write_potential"]
