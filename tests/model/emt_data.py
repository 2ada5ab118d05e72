"""EMT labels and data modules for the tests of `model`."""

from ase import Atoms
from ase.calculators.emt import EMT

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.data.structures import Structure

__all__ = ["data_module", "labelled"]


def labelled(atoms: Atoms) -> Structure:
    """The structure with EMT's energy, forces and stress."""
    atoms.calc = EMT()
    atoms.get_stress()
    return Structure.from_atoms(atoms)


def data_module(path, cutoff: float, train: int, val: int, test: int, cls=None, **kwargs):
    """After `setup`; with neighbour lists and without a split file, if nothing else is said."""
    sizes = {"num_train": train, "num_val": val, "num_test": test, "num_workers": 0}
    defaults = {"batch_size": 4, "split_file": None, "transforms": [NeighborList(cutoff)]}
    module = (cls or SoftAdaptDataModule)(str(path), **{**defaults, **sizes, **kwargs})
    module.setup()
    return module
