"""Which structures train, validate and test: from a file where there is one, else drawn."""

import logging
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from schnetpack.data import RandomSplit, SplittingStrategy

from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.split_file import SUBSETS, Split, load_split, save_split, split_path
from schnetpack_softadapt.data.splitting import (
    BlockSplit,
    GroupedSplit,
    SeededRandomSplit,
    seeded_order,
    split_with_seed,
)
from schnetpack_softadapt.data.trajectories import trajectories

__all__ = ["Partition"]

log = logging.getLogger(__name__)

DEFAULT_SPLIT_FILE = "split.npz"
DEFAULT_SPLIT_KEY = "strain_state"


@dataclass
class Partition:
    """How to split a database.

    Attributes:
        num_train, num_val, num_test: sizes, as fractions (floats up to 1), numbers, or None: the
            rest. Where the split comes from a file, fractions have no effect, and smaller numbers
            take a part of its subsets, larger ones containing the smaller (learning curves).
        strategy: "auto": the split file beside the database, else by groups `split_key` if the
            database has them, else random; "grouped", "blocks" (see `BlockSplit`), "random", or any
            splitting strategy of SchNetPack: a new split of that kind.
        split_key: which of the metadata's `groups_ids` the grouped split keeps together, and the
            blocks take for trajectories; these are the `group`s if the database has no other.
        seed: of the split; independent of the seed of the training.
        split_file: where the run keeps its split, relative to the run directory, and finds it again
            when it is resumed. None: nowhere. A file outside of the run directory, or one that was
            not written by this package, is the user's: it is read, whatever the strategy, and never
            changed; if there is none at an absolute path, the new split is kept there.
    """

    num_train: int | float | None
    num_val: int | float | None
    num_test: int | float | None
    strategy: str | SplittingStrategy = "auto"
    split_key: str = DEFAULT_SPLIT_KEY
    seed: int = 0
    split_file: str | None = DEFAULT_SPLIT_FILE

    def __post_init__(self):
        known = ("auto", "grouped", "blocks", "random")
        if isinstance(self.strategy, str) and self.strategy not in known:
            raise ValueError(
                f"splitting={self.strategy!r} is not known; choose one of {', '.join(known)}"
            )
        for name, size in zip(SUBSETS, self._sizes, strict=True):
            fits = isinstance(size, Real) and (size <= 1 or float(size).is_integer())
            if size is not None and not fits:
                raise ValueError(
                    f"num_{name} is a number of structures, a fraction up to 1.0 of them, or null"
                    f" for the rest, not {size!r}"
                )

    def find_or_make(self, dataset, datapath: str) -> Split:
        """The split of a data set; several processes at once get the same one.

        Raises:
            ValueError: a split file does not fit the data or what is asked for, or a subset that
                is needed would be empty.
        """
        if self.split_file is None:
            split = self._make(dataset, datapath)
        else:
            path = Path(self.split_file)
            if not path.exists():
                split = self._make(dataset, datapath)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_split(path, split, replace=False)
            split = self._load(path, dataset)
            is_of_run = path.resolve().is_relative_to(Path.cwd().resolve())
            if is_of_run and split.request is not None:
                self._compare(split, path)
            else:
                split = self._from_users(split, path, dataset)
        for name in ("train", "val"):
            if not getattr(split, name):
                raise ValueError(
                    f"no structures left for {'training' if name == 'train' else 'validation'}:"
                    f" {len(dataset)} structures with num_train={self.num_train},"
                    f" num_val={self.num_val}, num_test={self.num_test}"
                )
        sizes = ", ".join(f"{len(getattr(split, name))} {name}" for name in SUBSETS)
        log.info("split of %d structures: %s", len(dataset), sizes)
        if not split.test:
            log.warning(
                "no structures are left for testing: num_train and num_val take all of them;"
                " the test phase will be empty"
            )
        return split

    @property
    def request(self) -> dict:
        """What is asked for, as it is kept in the split file."""
        name = self.strategy if isinstance(self.strategy, str) else type(self.strategy).__name__
        return {
            "num_train": self.num_train,
            "num_val": self.num_val,
            "num_test": self.num_test,
            "splitting": name,
            "split_key": self.split_key,
            "split_seed": self.seed,
        }

    def _load(self, path: Path, dataset) -> Split:
        return load_split(path, len(dataset), dataset.metadata.get("fingerprint"))

    def _compare(self, split: Split, path: Path) -> None:
        """A resumed run must go on with its own split."""
        changed = {
            name: (old, self.request[name])
            for name, old in split.request.items()
            if name in self.request and old != self.request[name]
        }
        if changed:
            text = ", ".join(f"{k}={old} (now {new})" for k, (old, new) in changed.items())
            raise ValueError(
                f"{path.absolute()} holds this run's split, made with {text}. A run is resumed with"
                " the values that it was started with; for another split start a new run, or"
                " remove the file"
            )

    @property
    def _sizes(self) -> tuple:
        return self.num_train, self.num_val, self.num_test

    def _make(self, dataset, datapath: str) -> Split:
        given = self._given_file(datapath)
        if given is not None:
            split = self._from_users(self._load(given, dataset), given, dataset)
        else:
            strategy = self._strategy(dataset)
            if isinstance(strategy, (RandomSplit, SeededRandomSplit)):
                _warn_of_trajectories(dataset)
            split = Split(*split_with_seed(strategy, self.seed, dataset, *self._sizes))
        split.request = self.request
        split.fingerprint = dataset.metadata.get("fingerprint")
        return split

    def _given_file(self, datapath: str) -> Path | None:
        """A split that the user made: named in the config, or beside the database."""
        if self.strategy != "auto":
            return None
        if self.split_file not in (None, DEFAULT_SPLIT_FILE):
            named = user_path(self.split_file)
            if named.exists():
                return named
        beside = split_path(datapath)
        return beside if self.split_file is not None and beside.exists() else None

    def _from_users(self, split: Split, path: Path, dataset) -> Split:
        """As many structures of each subset as asked for; all where a fraction is given."""
        log.info("split taken from %s", path)
        parts = []
        for name, size in zip(SUBSETS, self._sizes, strict=True):
            part = getattr(split, name)
            if isinstance(size, int) and size >= 0:
                if size > len(part):
                    raise ValueError(
                        f"num_{name}={size}, but the split file {path} has {len(part)} structures"
                        " for it"
                    )
                order = seeded_order(len(part), self.seed)
                part = sorted(np.array(part, dtype=int)[order[:size]].tolist())
            parts.append(part)
        split = Split(*parts)
        return split if split.val else self._take_validation(split, dataset)

    def _take_validation(self, split: Split, dataset) -> Split:
        """Validation structures from the training set, when files were given for testing only."""
        if not split.train:
            return split
        subset = dataset.subset(split.train)
        strategy = self._strategy(subset)
        train, val = split_with_seed(strategy, self.seed, subset, None, self.num_val)
        log.info("%d of the training structures serve for validation", len(val))
        return Split([split.train[k] for k in train], [split.train[k] for k in val], split.test)

    def _strategy(self, dataset) -> SplittingStrategy:
        if isinstance(self.strategy, SplittingStrategy):
            return self.strategy
        groups_ids = dataset.metadata.get("groups_ids", {})
        if self.strategy == "blocks":
            given = self.split_key in groups_ids or self.split_key != DEFAULT_SPLIT_KEY
            key = self.split_key if given else "group" if "group" in groups_ids else None
            return BlockSplit(key, self.seed)
        labels = groups_ids.get(self.split_key)
        if self.strategy == "grouped" or (self.strategy == "auto" and labels is not None):
            if self.strategy == "grouped" or len(set(labels)) >= len(SUBSETS):
                return GroupedSplit(self.split_key, self.seed)
            log.warning(
                "only %d group(s) %r: the split is random", len(set(labels)), self.split_key
            )
        return SeededRandomSplit(self.seed)


def _warn_of_trajectories(dataset) -> None:
    found = list(trajectories(dataset.raw, dataset.indices))
    if found:
        first = found[0]
        log.warning(
            "structures %d to %d%s look like frames of a trajectory: neighbours differ by %.3f Ang,"
            " others by %.3f Ang. After a random split the test set resembles the training set more"
            " than new structures do; data.splitting=blocks keeps them apart",
            dataset.indices[first.begin],
            dataset.indices[first.end - 1],
            f" and {len(found) - 1} more series" if len(found) > 1 else "",
            first.near,
            first.far,
        )
