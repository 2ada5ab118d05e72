"""SchNetPack's ASE database in memory: read once, transformed once, batches by slicing."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from schnetpack import properties
from schnetpack.data import ASEAtomsData
from schnetpack.transform import CastMap, WrapPositions, neighborlist
from tqdm import tqdm

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.annotations import CALCULATOR
from schnetpack_softadapt.data.database import UNITS, labels_of, open_database
from schnetpack_softadapt.data.descriptors import DescriptorSource
from schnetpack_softadapt.data.ragged import RaggedSamples
from schnetpack_softadapt.data.structures import Structure

__all__ = ["InMemoryAtomsData", "read_database", "without_neighbors"]

PROGRESS_DELAY_S = 3.0  # progress bars appear only for what takes longer
GEOMETRY_TOLERANCE = 1e-3  # Ang; float32 rounds positions to 1e-5

_progress = partial(
    tqdm,
    unit=" structures",
    delay=PROGRESS_DELAY_S,
    leave=False,
    disable=None,  # not into log files
)


def needs_neighbors(transform: torch.nn.Module) -> bool:
    """Whether a transform makes or edits a neighbour list, which a descriptor store replaces."""
    return isinstance(transform, neighborlist.NeighborListTransform) or (
        type(transform).__module__ == neighborlist.__name__
        and not isinstance(transform, WrapPositions)
    )


def without_neighbors(dataset):
    """The same structures, without the transforms that make neighbour lists, and descriptors."""
    light = dataset.subset(range(len(dataset)))
    light.transforms = [t for t in dataset.transforms if not needs_neighbors(t)]
    light.store = None
    return light


class InMemoryAtomsData(ASEAtomsData):
    """An ASE database of SchNetPack, held in memory as float64 tensors.

    Samples have the keys that SchNetPack's data set gives, and `group` (1,) when the metadata have
    groups. Subsets share the memory of the whole.

    Args:
        datapath: database file.
        keep_float64: properties that casting transforms leave alone; total energies have more
            digits than float32 holds.
        cache_transforms: apply the transforms once per structure and keep the results; False for
            transforms that are random.
        kwargs: of `schnetpack.data.ASEAtomsData`.

    Attributes:
        raw: the whole database, untransformed.
        store: descriptors that samples and batches get, see `attach`.
    """

    def __init__(
        self,
        datapath: str,
        keep_float64: Sequence[str] = (properties.energy,),
        cache_transforms: bool = True,
        **kwargs,
    ):
        self.datapath = datapath
        self._transformed: RaggedSamples | None = None
        self._metadata: dict | None = None
        self.keep_float64 = tuple(keep_float64)
        self.cache_transforms = cache_transforms
        self.store: DescriptorSource | None = None
        asked = {*(kwargs.get("load_properties") or ()), *(kwargs.get("property_units") or ())}
        missing = asked - set(self.available_properties)
        if missing:
            raise ValueError(
                f"{datapath} has no {', '.join(sorted(missing))};"
                f" it holds {', '.join(self.available_properties)}"
            )
        super().__init__(datapath, **kwargs)
        self.raw = RaggedSamples(self._read())

    def _read(self) -> Iterator[dict[str, torch.Tensor]]:
        """The samples of all rows, untransformed, float64."""
        groups = self.metadata.get("groups_ids", {}).get("group")
        length = self.distance_conversion
        with open_database(self.datapath) as database:
            n_rows = database.count()
            if n_rows == 0:
                raise ValueError(f"{self.datapath} holds no structures")
            rows = _progress(database.select(sort="id"), "reading the data", n_rows)
            for index, row in enumerate(rows):
                sample = {properties.idx: np.array([index])}
                for name in self.load_properties:
                    sample[name] = self._property(row, name, index)
                sample |= {
                    properties.n_atoms: np.array([len(row.numbers)]),
                    properties.Z: row.numbers.astype(np.int64),
                    properties.R: row.positions * length,
                    properties.cell: np.array(row.cell, dtype=np.float64)[None] * length,
                    properties.pbc: np.array(row.pbc, dtype=bool),
                }
                if groups is not None:
                    sample[keys.group] = np.array([groups[index]])
                yield {key: torch.from_numpy(value) for key, value in sample.items()}

    def _property(self, row, name: str, index: int) -> np.ndarray:
        """A label as it must be for batching; SchNetPack fails much later on any other shape."""
        if name not in row.data:
            raise ValueError(f"{self.datapath}, structure {index}: no {name!r}")
        value = np.atleast_1d(row.data[name]) * self.conversions[name]
        if name != properties.stress or value.shape == (1, 3, 3):
            return value
        if value.shape == (3, 3):
            return value[None]
        raise ValueError(
            f"{self.datapath}, structure {index}: stress of shape {value.shape}; a SchNetPack"
            " database holds (1, 3, 3): write it with `spk-softadapt import`"
        )

    # what the parent class reads from SQLite each time

    @property
    def metadata(self) -> dict:
        """Metadata of the database, read once."""
        if self._metadata is None:
            with open_database(self.datapath) as database:
                self._metadata = database.metadata
            for key in ("_property_unit_dict", "_distance_unit"):
                if key not in self._metadata:
                    raise ValueError(
                        f"{self.datapath} is an ASE database without SchNetPack's units; import"
                        " its structures with `spk-softadapt import`, or add units with"
                        " SchNetPack's `spkconvert`"
                    )
        # the parent class writes converted units into what it gets
        units = dict(self._metadata["_property_unit_dict"])
        return {**self._metadata, "_property_unit_dict": units}

    def _set_metadata(self, val: dict) -> None:
        super()._set_metadata(val)
        self._metadata = None

    @property
    def transforms(self):
        return self._transforms

    @transforms.setter
    def transforms(self, value):
        self._transforms = list(value or [])
        self._transformed = None

    def __len__(self):
        return len(self.raw) if self.subset_idx is None else len(self.subset_idx)

    @property
    def indices(self) -> Sequence[int]:
        """Index in the database of each structure of this set."""
        return range(len(self.raw)) if self.subset_idx is None else self.subset_idx

    def subset(self, subset_idx: Sequence[int]) -> "InMemoryAtomsData":
        """Some of the structures, by their indices in this set, without copying the data."""
        subset = copy.copy(self)
        subset.subset_idx = [self.indices[int(k)] for k in subset_idx]
        subset._transformed = None
        return subset

    def untransformed(self) -> "InMemoryAtomsData":
        """The same structures as the database has them, without descriptors."""
        result = self.subset(range(len(self)))
        result.transforms = []
        result.store = None
        return result

    # samples and batches

    def attach(self, store: DescriptorSource | None) -> None:
        """Take descriptors from a store from now on; it says whether neighbour lists are made."""
        self.store = store
        self._transformed = None

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        n_samples = len(self)
        if not -n_samples <= index < n_samples:
            raise IndexError(f"structure {index} of {n_samples}")
        index = int(index) % n_samples
        self.prepare()
        cached = self._transformed
        sample = self._transform(index) if cached is None else cached.sample(index)
        if self.store is not None:
            sample.update(self.store.sample(self.indices[index], sample[properties.R].dtype))
        return sample

    def iter_properties(self, indices=None, load_properties=None, load_structure=None, **kwargs):
        """Samples without transforms, as the parent class, but from memory."""
        if kwargs.get("load_metadata"):
            yield from super().iter_properties(indices, load_properties, load_structure, **kwargs)
            return
        names = set(self.load_properties if load_properties is None else load_properties)
        for index in range(len(self)) if indices is None else np.atleast_1d(indices):
            sample = self.raw.sample(self.indices[int(index)])
            yield {k: v for k, v in sample.items() if k.startswith("_") or k in names}

    def batch(self, indices: Iterable[int], gather: bool = False) -> dict[str, torch.Tensor]:
        """Batch of structures of this set, copied, as SchNetPack's loader would give it.

        With a store, `gather` copies the batch's part of its arrays instead of passing the whole.
        """
        self.prepare()
        samples = self._transformed
        if samples is None:
            samples = RaggedSamples(self._transform(int(k)) for k in indices)
            indices = range(len(samples))
        batch = samples.batch(indices)
        if self.store is not None:
            batch.update(self.store.batch(batch, gather))
        return batch

    def prepare(self) -> None:
        """Apply the transforms to all structures, once, unless they are random."""
        if self._transformed is None and self.cache_transforms:
            indices = _progress(range(len(self)), "preparing the data")
            self._transformed = RaggedSamples(map(self._transform, indices))

    def _transform(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.raw.sample(self.indices[index])
        skips_neighbors = self.store is not None and not self.store.keep_neighbors
        for transform in self.transforms:
            if skips_neighbors and needs_neighbors(transform):
                continue
            kept = {}
            if isinstance(transform, CastMap):
                kept = {key: sample.pop(key) for key in self.keep_float64 if key in sample}
            sample = transform(sample)
            sample.update(kept)
        return sample

    def keeps_geometry(self) -> bool:
        """Whether the transforms only shift structures as a whole or atoms by lattice vectors."""
        light = without_neighbors(self)
        for start in range(0, len(light), 1000):
            rows = range(start, min(start + 1000, len(light)))
            after = light.batch(rows)
            before = self.raw.batch([self.indices[k] for k in rows])
            if not all(torch.equal(before[k], after[k]) for k in (properties.Z, properties.pbc)):
                return False
            cell, idx_m = before[properties.cell], before[properties.idx_m]
            n_atoms = before[properties.n_atoms]
            moved = after[properties.R].double() - before[properties.R]  # (N, 3)
            moved -= moved[n_atoms.cumsum(0) - n_atoms][idx_m]
            # inverse of the periodic vectors alone where some are zero
            shifts = torch.einsum("na,nab->nb", moved, torch.linalg.pinv(cell)[idx_m]).round()
            moved -= torch.einsum("na,nab->nb", shifts, cell[idx_m])
            strained = after[properties.cell].double() - cell
            if max(moved.abs().max(), strained.abs().max()) > GEOMETRY_TOLERANCE:
                return False
        return True

    def structures(self) -> list[Structure]:
        """The structures with their labels as the database has them (after unit conversion)."""
        names = self.metadata.get("group_names", [])
        calculators = self.metadata.get("groups_ids", {}).get(CALCULATOR)
        geometry, found = (properties.Z, properties.R, properties.cell, properties.pbc), []
        for index in self.indices:
            values = {key: self.raw.rows(key, index).copy() for key in self.raw.keys}
            s = Structure(*(values[key] for key in geometry), **labels_of(values))
            s.info["index"] = index
            if calculators is not None and calculators[index] >= 0:
                s.info[CALCULATOR] = self.metadata["names"][CALCULATOR][calculators[index]]
            if len(names) and keys.group in values:
                s.group = names[values[keys.group][0]]
            found.append(s)
        return found


def read_database(path: str | Path) -> list[Structure]:
    """All structures of a database that `write_database` (or SchNetPack) wrote.

    Labels are expected in eV, Ang and their combinations; raises ValueError otherwise.
    """
    dataset = InMemoryAtomsData(str(path))
    units = {**{k: v for k, v in dataset.units.items() if k in UNITS}, "": dataset.distance_unit}
    for name, unit in units.items():
        if unit != UNITS.get(name, "Ang"):
            raise ValueError(f"{path}: {name or 'lengths'} in {unit}, not {UNITS.get(name, 'Ang')}")
    return dataset.structures()
