"""SchNetPack's data module: data in memory, a reproducible split, stored descriptors."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import properties
from schnetpack.data import AtomsDataModule, SplittingStrategy
from schnetpack.units import convert_units

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data import annotations
from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.data.descriptors import ComputedSource, Geometries, StoreSource
from schnetpack_softadapt.data.loader import BatchSource, EpochSampler, InMemoryLoader, as_batch
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.provenance import mixed_settings
from schnetpack_softadapt.data.splitting import DEFAULT_SPLIT_FILE, DEFAULT_SPLIT_KEY, Partition
from schnetpack_softadapt.data.statistics import TrainingTargets, element_contributions
from schnetpack_softadapt.data.weights import SCHEMES, weights_of, weights_of_groups
from schnetpack_softadapt.descriptors.elements import atomic_number, check_elements
from schnetpack_softadapt.errors import in_one_line
from schnetpack_softadapt.quantities import ENERGY

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
            disk instead of neighbour lists. "auto": yes, unless that is not possible; what is not
            stored is computed anew for every batch. False: nothing is stored.
        store_budget: bytes that a new store may take, as a number or "20GB"; by default nine tenths
            of what is free on the disk. 0: none is made.
        store_dtype: "float32", "float64", "float16" or "auto": float32 if that is within the
            budget and fits into memory, else float16, see `DescriptorStore.open_or_build`.
        store_dir: folder for stores; default `<datapath>.descriptors`. A complete new store
            replaces older ones of the same database.
        store_jobs: processes or threads that build a store; default all cores.
        weights: weigh structures by a scheme of `data.weights`, "uniform", "energy" or "auto", or
            by group, as {Elastic: 10}. Weights in the database (`spk-softadapt set`) multiply
            them. Losses and what is fitted to the training set take them, errors never.
        exclude: structures that neither train nor validate, such as those whose labels look wrong:
            their numbers in the database, counted from 0 as the report does, or a text file of
            numbers. They stay in the test set.
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
        store_budget: int | float | str | None = None,
        store_dtype: str = "auto",
        store_dir: str | None = None,
        store_jobs: int | None = None,
        weights: str | Mapping[str, float] | None = None,
        exclude: Sequence[int] | str = (),
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
        self.store_budget = _bytes(store_budget)
        self.store_dtype = store_dtype
        self.store_dir = store_dir
        self.store_jobs = store_jobs
        if isinstance(weights, str) and weights not in SCHEMES:
            raise ValueError(
                f"data.weights is null, {', '.join(SCHEMES)}, or weights by group, not {weights!r}"
            )
        self.weights = weights or None
        self.exclude = exclude
        self._attached: tuple[str, bool] | None = None
        self._atomrefs = {}
        self._raw_targets: TrainingTargets | None = None

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
        self.dataset = InMemoryAtomsData(
            self.datapath,
            keep_float64=self.keep_float64,
            cache_transforms=self.cache_transforms,
            load_properties=self.load_properties,
            property_units=self.property_units,
            distance_unit=self.distance_unit,
        )
        if self.train_idx is None:
            split = self.partition.find_or_make(self.dataset, self.datapath)
            self.train_idx, self.val_idx, self.test_idx = split.train, split.val, split.test
            self.num_train, self.num_val = len(split.train), len(split.val)
            self.num_test = len(split.test)
        self._leave_out()
        self._weigh()
        self._warn_of_mixed_settings()
        self._train_dataset = self.dataset.subset(self.train_idx)
        self._val_dataset = self.dataset.subset(self.val_idx)
        self._test_dataset = self.dataset.subset(self.test_idx)
        self._setup_transforms()
        self._warn_of_unseen_elements()

    def _leave_out(self) -> None:
        """Take `exclude` out of training and validation."""
        excluded = _numbers_in(self.exclude)
        unknown = [k for k in excluded if not 0 <= k < len(self.dataset)]
        if unknown:
            raise ValueError(
                f"data.exclude names structure {unknown[0]}; {self.datapath} has"
                f" {len(self.dataset)}, counted from 0"
            )
        if not excluded:
            return
        gone = {}
        for name in ("train", "val"):
            before = getattr(self, f"{name}_idx")
            left = [k for k in before if k not in excluded]
            if not left:
                raise ValueError(f"data.exclude leaves no structure in the {name} set")
            gone[name] = len(before) - len(left)
            setattr(self, f"{name}_idx", left)
            setattr(self, f"num_{name}", len(left))
        log.info(
            "data.exclude: %(train)d structures left out of training, %(val)d of validation", gone
        )

    def _weigh(self) -> None:
        """Weights by a scheme or by group, times those in the database's metadata."""
        given = self.dataset.metadata.get("weights")
        own = {keys.structure_weight, keys.forces_weight} & set(self.dataset.raw.keys)
        if self.weights is not None and not (self.weights == "auto" and own):
            self._weigh_by_scheme(own)
        if given is None:
            return
        given = np.asarray(given, dtype=np.float64)
        raw, key = self.dataset.raw, keys.structure_weight
        if key in raw:
            given = given * raw.values(key).reshape(-1)
        mean = given[self.train_idx].mean()
        if not mean:
            raise ValueError(f"{self.datapath} gives all structures of the training set no weight")
        self.dataset.raw = raw.joined({key: given / mean})
        log.info("structures are weighted as %s says", self.datapath)

    def _weigh_by_scheme(self, own: set[str]) -> None:
        if own:
            raise ValueError(
                f"data.weights={self.weights}, but {self.datapath} has weights of its own"
                f" ({', '.join(sorted(own))}); leave one of them out"
            )
        train, raw = np.asarray(self.train_idx), self.dataset.raw
        if isinstance(self.weights, Mapping):
            table = annotations.annotations(self.dataset.metadata, len(raw), self.datapath)
            structure = weights_of_groups(self.weights, table.group.to_numpy(), train)
            forces = np.ones(len(raw.values(properties.Z)))
        else:
            unit = self.dataset.units.get(properties.energy, ENERGY.unit)
            targets = TrainingTargets.from_dataset(self.dataset)
            found = weights_of(self.weights, targets, train, convert_units(unit, ENERGY.unit))
            if found is None:  # "auto" sees no need
                return
            structure, forces = found
        self.dataset.raw = raw.joined(
            {keys.structure_weight: structure, keys.forces_weight: forces[:, None]}
        )
        low, high = structure[self.train_idx].min(), structure[self.train_idx].max()
        log.info(
            "data.weights=%s: structures of the training set weigh %.2g to %.2g (mean 1); errors"
            " are without weights",
            self.weights,
            low,
            high,
        )

    def _warn_of_mixed_settings(self) -> None:
        raw, metadata = self.dataset.raw, self.dataset.metadata
        if annotations.CALCULATOR in metadata.get("groups_ids", {}):
            table = annotations.annotations(metadata, len(raw), self.datapath)
            cells = raw.values(properties.cell)
            for text in mixed_settings(table.calculator.tolist(), table.source.tolist(), cells):
                log.warning("%s: %s", self.datapath, text)

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

    def _targets(self) -> TrainingTargets:
        """Training set as the database has it."""
        if self._raw_targets is None:
            dataset = self.train_dataset.untransformed()
            self._raw_targets = TrainingTargets.from_dataset(dataset)
        return self._raw_targets

    def get_atomrefs(self, property: str, is_extensive: bool) -> dict[str, torch.Tensor]:
        """Contribution of each element (100,), float64, by minimum-norm least squares.

        The parent class inverts a matrix that is singular for fixed compositions, and fails for a
        single element.
        """
        key = (property, is_extensive)
        if key not in self._atomrefs:
            self._atomrefs[key] = element_contributions(self._targets(), property, is_extensive)
        return {property: self._atomrefs[key]}

    def get_stats(
        self, property: str, divide_by_atoms: bool, remove_atomref: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the training set.

        With `remove_atomref`, references that `get_atomrefs` fitted are subtracted where it did;
        the parent class forgets them, so that RemoveOffsets subtracts the mean twice.
        """
        targets = self._targets()
        values = torch.from_numpy(targets.labels[property].astype(np.float64).reshape(-1))
        if remove_atomref:
            references = {**self.train_dataset.atomrefs}
            if (property, divide_by_atoms) in self._atomrefs:
                references[property] = self._atomrefs[property, divide_by_atoms]
            if property in references:
                per_element = references[property].double()[targets.elements]
                values = values - torch.from_numpy(targets.compositions) @ per_element
        if divide_by_atoms:
            values = values / torch.from_numpy(targets.n_atoms)
        return values.mean(), values.std(correction=0)

    # descriptors from a store

    def attach_descriptors(self, descriptor) -> bool:
        """Let batches carry the values of a descriptor and its derivatives; build the store.

        Models call this when they are set up. Neighbour lists are then made only where
        `keep_neighbors` says so.

        Args:
            descriptor: a `descriptors.protocol.Descriptor`.

        Returns:
            whether batches carry descriptors from now on.
        """
        task = getattr(self.trainer, "lightning_module", None)
        first_order = getattr(task, "automatic_optimization", None)
        # second-order steps and linear models want derivatives of each structure in any case
        if self.store is False and first_order is not False:
            return False
        if self._attached == (descriptor.fingerprint, self.keep_neighbors):
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
        source = None if self.store is False else self._stored(descriptor)
        if source is None:
            source = ComputedSource(
                Geometries(self.dataset.raw),
                descriptor,
                self.keep_neighbors,
                "float64" if self.store_dtype == "float64" else "float32",
                # first-order steps by autograd need two products with the derivatives, not these
                jacobian=self.keep_neighbors or not first_order,
            )
        for dataset in datasets:
            dataset.attach(source)
        self._attached = descriptor.fingerprint, self.keep_neighbors
        return True

    def _stored(self, descriptor) -> StoreSource | None:
        """The store, built if there is none; None if the disk or its budget do not hold it."""
        from schnetpack_softadapt.descriptors.store.store import (
            DescriptorStore,  # compiled kernels, only where needed
        )

        folder = user_path(self.store_dir or f"{self.datapath}.descriptors")
        try:
            store = DescriptorStore.open_or_build(
                folder,
                Geometries(self.dataset.raw),
                descriptor,
                dtype=self.store_dtype,
                n_jobs=self.store_jobs,
                progress=True,
                database=self.datapath,
                budget=self.store_budget,
            )
            return StoreSource(store, self.keep_neighbors)
        except OSError as error:
            if self.store is True:
                raise
            log.warning("descriptors are computed anew for every batch: %s", error)
            return None

    # loaders

    def _loader(self, subset: str, batch_size: int, num_workers: int, **kwargs) -> InMemoryLoader:
        loader = getattr(self, f"_{subset}_dataloader")
        if loader is None:
            loader = InMemoryLoader(
                BatchSource(getattr(self, f"_{subset}_dataset")),
                batch_size=batch_size,
                collate_fn=as_batch,
                num_workers=num_workers,
                pin_memory=self._pin_memory,
                **kwargs,
            )
            setattr(self, f"_{subset}_dataloader", loader)
        # only within this process' memory can batches share the store
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        loader.dataset.gather = loader.num_workers > 0 or self._pin_memory or device != "cpu"
        return loader

    def train_dataloader(self) -> InMemoryLoader:
        """Training batches, in an order that follows from the seed and the epoch."""
        data = self._train_dataset
        if self.train_sampler_cls is None:
            order = {"batch_size": self.batch_size, "sampler": EpochSampler(data)}
        else:
            arguments = self.train_sampler_args or {}
            batches = self._setup_sampler(self.train_sampler_cls, arguments, data)
            order = {"batch_size": 1, "batch_sampler": batches}
        return self._loader("train", num_workers=self.num_workers, **order)

    def val_dataloader(self) -> InMemoryLoader:
        return self._loader("val", self.val_batch_size, self.num_val_workers)

    def test_dataloader(self) -> InMemoryLoader:
        """Test batches; none if no structures are left for testing."""
        return self._loader("test", self.test_batch_size, self.num_test_workers)


def _numbers_in(exclude: Sequence[int] | str) -> set[int]:
    """Numbers of structures, from a list or a text file of them."""
    if isinstance(exclude, str):
        path = user_path(exclude)
        try:
            exclude = path.read_text(encoding="utf-8").replace(",", " ").split()
        except OSError as error:
            raise ValueError(f"data.exclude={path} cannot be read: {error}") from error
    try:
        return {int(k) for k in exclude or ()}
    except ValueError as error:
        raise ValueError(f"data.exclude holds something that is no number: {error}") from error


def _check_counts(**arguments) -> None:
    for name, value in arguments.items():
        least = {"size": 1, "workers": 0}.get(name.rpartition("_")[2])
        if least is None or value is None:
            continue
        if not isinstance(value, int) or value < least:
            raise ValueError(f"data.{name} is a whole number from {least} on, not {value!r}")


def _bytes(size: int | float | str | None) -> int | None:
    """A number of bytes, such as 3e9 or "20GB"."""
    if size is None:
        return None
    text = str(size).strip()
    found = re.fullmatch(r"(\d+\.?\d*(?:e\+?\d+)?)\s*([kmgt]?)b?", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"data.store_budget={size!r}: give a number of bytes, or one such as 20GB")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))


def _check_units(property_units: Mapping[str, str], distance_unit: str | None) -> None:
    for unit in (*property_units.values(), distance_unit or "Ang"):
        try:
            convert_units(unit, unit)
        except (AttributeError, Warning) as error:  # it looks names up in ase.units
            raise ValueError(
                f"data.property_units or data.distance_unit: {unit!r} cannot be read ({error});"
                " units are written as in eV, kcal/mol, eV/Ang, Ang, Bohr"
            ) from error
