"""Potentials of the atomic cluster expansion that LAMMPS runs (`.yace`, `.ace`; ML-PACE)."""

from schnetpack_softadapt.deploy.exchange.pace.read import read_pace
from schnetpack_softadapt.deploy.exchange.pace.write import write_pace

__all__ = ["read_pace", "write_pace"]
