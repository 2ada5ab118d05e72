"""SchNetPack's data module: data in memory, a reproducible split, stored descriptors."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import properties
from schnetpack.data import AtomsDataModule, SplittingStrategy, calculate_stats
from schnetpack.units import convert_units

from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.data.loader import BatchSource, EpochSampler, InMemoryLoader, as_batch
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.splitting import DEFAULT_SPLIT_FILE, DEFAULT_SPLIT_KEY, Partition
from schnetpack_softadapt.data.statistics import element_contributions
from schnetpack_softadapt.data.stored import StoredDescriptors
from schnetpack_softadapt.descriptors.elements import atomic_number, check_elements
from schnetpack_softadapt.errors import in_one_line

__all__ = ["SoftAdaptDataModule"]

log = logging.getLogger(__name__)


class SoftAdaptDataModule(AtomsDataModule):
    """Data module for any database in SchNetPack's format, read once and kept in memory.

    Differs from its parent class in what the arguments below say, and in these points: relative
    paths start where the command was given, not in the run directory; transforms run once per
    structure; energies stay float64 under `CastTo32`; every batch is copied out of one tensor per
    key; the order of training structures follows from seed and epoch, so that a resumed run sees
    the same batches as an uninterrupted one.

    Args:
        datapath: database, ending in `.db`.
        batch_size: structures per training batch.
        num_train, num_val, num_test, split_file, splitting, split_key, split_seed: see `Partition`.
        keep_float64: properties that casting transforms leave in float64. SchNetPack's own task
            needs an empty list with torch 2.4, whose MSELoss does not mix precisions.
        cache_transforms: False for transforms that are random.
        store: whether models that ask for it get their descriptors and derivatives from a store on
            disk instead of neighbour lists. "auto": yes, unless that is not possible.
        store_dtype: "float32" or "float64".
        store_dir: folder for stores; default `<datapath>.descriptors`. A complete new store
            replaces older ones of the same database.
        store_jobs: processes or threads that build a store; default all cores.
        num_workers: loader processes; 0 is fastest for data in memory.
        kwargs: further arguments of SchNetPack's AtomsDataModule.

    Attributes:
        keep_neighbors: whether batches with descriptors from a store carry neighbour lists too. A
            model sets it to False if it knows that none of its modules reads them.
    """

    keep_neighbors = True

    def __init__(
        self,
        datapath: str,
        batch_size: int = 10,
        num_train: int | float | None = 0.7,
        num_val: int | float | None = 0.2,
        num_test: int | float | None = 0.1,
        split_file: str | None = DEFAULT_SPLIT_FILE,
        *,
        splitting: str | SplittingStrategy | None = "auto",
        split_key: str = DEFAULT_SPLIT_KEY,
        split_seed: int = 0,
        keep_float64: Sequence[str] = (properties.energy,),
        cache_transforms: bool = True,
        store: bool | str = "auto",
        store_dtype: str = "float32",
        store_dir: str | None = None,
        store_jobs: int | None = None,
        num_workers: int = 0,
        **kwargs,
    ):
        if datapath is None:
            raise ValueError(
                "which data? Give data.datapath=my.db, as `spk-softadapt import` writes it"
            )
        _check_counts(batch_size=batch_size, num_workers=num_workers, **kwargs)
        _check_units(kwargs.get("property_units") or {}, kwargs.get("distance_unit"))
        if kwargs.get("load_properties") is not None:
            kwargs["load_properties"] = list(kwargs["load_properties"])
        if kwargs.get("data_workdir") is not None:
            log.info("data_workdir has no effect: the data are read once, into memory")
        super().__init__(
            str(user_path(datapath)),
            batch_size,
            num_train,
            num_val,
            num_test,
            split_file,
            num_workers=num_workers,
            **{**kwargs, "data_workdir": None},
        )
        self.partition = Partition(
            num_train, num_val, num_test, splitting or "auto", split_key, split_seed, split_file
        )
        if store not in (True, False, "auto"):
            raise ValueError(f"store={store!r}; choose auto, true or false")
        self.keep_float64 = tuple(keep_float64)
        self.cache_transforms = cache_transforms
        self.store = store
        self.store_dtype = store_dtype
        self.store_dir = store_dir
        self.store_jobs = store_jobs
        self._attached: tuple[str, bool] | None = None
        self._atomrefs = {}

    # setup

    @in_one_line
    def setup(self, stage: str | None = None) -> None:
        """Read the database and split it; once, later calls do nothing.

        Raises:
            FileNotFoundError: there is no database.
            ValueError: it is empty, lacks a property, or does not fit the split.
        """
        if self.dataset is not None:
            return
        try:
            self.dataset = InMemoryAtomsData(
                self.datapath,
                keep_float64=self.keep_float64,
                cache_transforms=self.cache_transforms,
                load_properties=self.load_properties,
                property_units=self.property_units,
                distance_unit=self.distance_unit,
            )
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no database at {self.datapath}; make one with"
                f" `spk-softadapt import FILE... --out {self.datapath}`"
            ) from None
        if self.train_idx is None:
            split = self.partition.find_or_make(self.dataset, self.datapath)
            self.train_idx, self.val_idx, self.test_idx = split.train, split.val, split.test
            self.num_train, self.num_val = len(split.train), len(split.val)
            self.num_test = len(split.test)
        self._train_dataset = self.dataset.subset(self.train_idx)
        self._val_dataset = self.dataset.subset(self.val_idx)
        self._test_dataset = self.dataset.subset(self.test_idx)
        self._setup_transforms()
        self._warn_of_unseen_elements()

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur anywhere in the database, ascending."""
        return np.unique(self.dataset.raw.values(properties.Z)).tolist()

    def check_elements(self, allowed: Iterable[int | str]) -> None:
        """Refuse data with elements that a model does not know.

        Raises:
            UnknownElementError: naming the elements and the first structure with one of them.
        """
        known = {atomic_number(e) for e in allowed}
        raw = self.dataset.raw
        unknown = ~np.isin(raw.values(properties.Z), list(known))
        first = np.searchsorted(raw.first(properties.Z), unknown.argmax(), side="right") - 1
        check_elements(self.elements, known, f"{self.datapath}, structure {first}")

    def _warn_of_unseen_elements(self) -> None:
        seen = self._elements_of(self.train_idx)
        for name, indices in (("validation", self.val_idx), ("test", self.test_idx)):
            unseen = sorted(self._elements_of(indices) - seen)
            if unseen:
                log.warning(
                    "%s occur(s) in the %s set but in no training structure",
                    ", ".join(chemical_symbols[z] for z in unseen),
                    name,
                )

    def _elements_of(self, indices: Sequence[int]) -> set[int]:
        return {z for k in indices for z in self.dataset.raw.rows(properties.Z, k).tolist()}

    # statistics that SchNetPack's transforms ask for

    def get_atomrefs(self, property: str, is_extensive: bool) -> dict[str, torch.Tensor]:
        """Contribution of each element (100,), float64, by minimum-norm least squares.

        The parent class inverts a matrix that is singular for fixed compositions, and fails for a
        single element.
        """
        key = (property, is_extensive)
        if key not in self._atomrefs:
            self._atomrefs[key] = element_contributions(
                self.train_dataset.untransformed(), property, is_extensive
            )
        return {property: self._atomrefs[key]}

    def get_stats(
        self, property: str, divide_by_atoms: bool, remove_atomref: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the training set.

        With `remove_atomref`, references that `get_atomrefs` fitted are subtracted where it did;
        the parent class forgets them, so that RemoveOffsets subtracts the mean twice.
        """
        key = (property, divide_by_atoms, remove_atomref)
        if key not in self._stats:
            references = dict(self.train_dataset.atomrefs) if remove_atomref else {}
            fitted = self._atomrefs.get((property, divide_by_atoms))
            if remove_atomref and fitted is not None:
                references[property] = fitted
            self._stats[key] = calculate_stats(
                self._loader(self.train_dataset.untransformed(), self.batch_size, 0),
                divide_by_atoms={property: divide_by_atoms},
                atomref=references or None,
            )[property]
        return self._stats[key]

    # descriptors from a store

    def attach_descriptors(self, layout) -> bool:
        """Let batches carry the descriptors of a layout and their derivatives; build the store.

        Models call this when they are set up. Neighbour lists are then made only where
        `keep_neighbors` says so.

        Args:
            layout: `descriptors.layout.Layout`.

        Returns:
            whether batches carry descriptors from now on.
        """
        if self.store is False:
            return False
        if self._attached == (layout.fingerprint, self.keep_neighbors):
            return True
        datasets = (self._train_dataset, self._val_dataset, self._test_dataset)
        if not self.cache_transforms or not all(d.keeps_geometry() for d in datasets):
            if self.store is True:
                raise ValueError(
                    "store: true, but the transforms change the structures (or are random:"
                    " cache_transforms: false); leave them out, or set store: false"
                )
            log.warning("the transforms change the structures: descriptors are not stored")
            return False
        from schnetpack_softadapt.descriptors.store.store import (
            DescriptorStore,  # compiled kernels, only where needed
        )

        folder = user_path(self.store_dir or f"{self.datapath}.descriptors")
        ranks = {}
        if self.trainer is not None and self.trainer.num_nodes > 1:
            # on one machine one rank builds and the others wait; several machines share the work
            ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        try:
            store = DescriptorStore.open_or_build(
                folder,
                self.dataset.structures(),
                layout,
                dtype=self.store_dtype,
                n_jobs=self.store_jobs,
                progress=True,
                database=self.datapath,
                **ranks,
            )
        except OSError as error:
            if self.store is True:
                raise
            log.warning("no descriptor store in %s (%s): training computes them", folder, error)
            return False
        stored = StoredDescriptors(store, self.keep_neighbors)
        for dataset in datasets:
            dataset.attach(stored)
        self._attached = layout.fingerprint, self.keep_neighbors
        return True

    # loaders

    def _loader(self, dataset: InMemoryAtomsData, batch_size: int, num_workers: int, **kwargs):
        return InMemoryLoader(
            BatchSource(dataset),
            batch_size=batch_size,
            collate_fn=as_batch,
            num_workers=num_workers,
            pin_memory=self._pin_memory,
            **kwargs,
        )

    def _with_store(self, loader: InMemoryLoader) -> InMemoryLoader:
        """Say where batches go: only within this process' memory can they share the store."""
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        loader.dataset.gather = loader.num_workers > 0 or self._pin_memory or device != "cpu"
        return loader

    def train_dataloader(self) -> InMemoryLoader:
        """Training batches, in an order that follows from the seed and the epoch."""
        if self._train_dataloader is None:
            data, size = self._train_dataset, self.batch_size
            kwargs = {"sampler": EpochSampler(data)}
            if self.train_sampler_cls is not None:
                sampler = (self.train_sampler_cls, self.train_sampler_args or {}, data)
                size, kwargs = 1, {"batch_sampler": self._setup_sampler(*sampler)}
            self._train_dataloader = self._loader(data, size, self.num_workers, **kwargs)
        return self._with_store(self._train_dataloader)

    def val_dataloader(self) -> InMemoryLoader:
        """Validation batches."""
        if self._val_dataloader is None:
            arguments = (self._val_dataset, self.val_batch_size, self.num_val_workers)
            self._val_dataloader = self._loader(*arguments)
        return self._with_store(self._val_dataloader)

    def test_dataloader(self) -> InMemoryLoader:
        """Test batches; none if no structures are left for testing."""
        if self._test_dataloader is None:
            arguments = (self._test_dataset, self.test_batch_size, self.num_test_workers)
            self._test_dataloader = self._loader(*arguments)
        return self._with_store(self._test_dataloader)


def _check_counts(**arguments) -> None:
    for name, value in arguments.items():
        least = {"size": 1, "workers": 0}.get(name.rpartition("_")[2])
        if least is None or value is None:
            continue
        if not isinstance(value, int) or value < least:
            raise ValueError(f"data.{name} is a whole number from {least} on, not {value!r}")


def _check_units(property_units: Mapping[str, str], distance_unit: str | None) -> None:
    for unit in (*property_units.values(), distance_unit or "Ang"):
        try:
            convert_units(unit, unit)
        except (AttributeError, Warning) as error:  # it looks names up in ase.units
            raise ValueError(
                f"data.property_units or data.distance_unit: {unit!r} cannot be read ({error});"
                " units are written as in eV, kcal/mol, eV/Ang, Ang, Bohr"
            ) from error
