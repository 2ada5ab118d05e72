"""Which structures train, validate and test: from a file where there is one, else drawn.

Split files are SchNetPack's (npz with train_idx, val_idx, test_idx), with what was asked for and
the fingerprint of the database beside.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from schnetpack import properties
from schnetpack.data import RandomSplit, SplittingStrategy

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.annotations import SUBSET, assigned, digest
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.quantities import SUBSETS

__all__ = [
    "Partition",
    "Split",
    "block_split",
    "grouped_split",
    "load_split",
    "random_split",
    "save_split",
    "schnetpack_split",
    "split_path",
    "split_sizes",
]

log = logging.getLogger(__name__)

DEFAULT_SPLIT_FILE = "split.npz"
DEFAULT_SPLIT_KEY = "strain_state"

# of a trajectory
LEAST_FRAMES = 10
N_COMPARED = 20  # frames
# to frames farther away: but not so far that a series of several phases looks like a trajectory
LEAST_LAG, LARGEST_LAG = 5, 20
ALIKE = 0.5  # distance of neighbours by that of other frames; 1 if all frames are independent
LEAST_DISTANCE = 0.01  # Ang; less is rounding, or atoms that follow the strain of their cell


# how many, and in which order


def seeded_order(n: int, seed: int) -> np.ndarray:
    """A permutation of n numbers, the same with every version of numpy.

    numpy guarantees the raw stream of a bit generator, but not what `permutation` makes of it.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def split_sizes(n_structures: int, *sizes: int | float | None) -> list[int]:
    """Absolute sizes of subsets given as fractions (floats up to 1), numbers, or None (the rest).

    Fractions that sum to one use every structure: rounding goes to the first subset.

    Raises:
        ValueError: more than one None, or more structures asked for than there are.
    """
    is_fraction = [isinstance(size, float) and 0 <= size <= 1 for size in sizes]
    result: list[int | None] = []
    for size, fraction in zip(sizes, is_fraction, strict=True):
        is_rest = size is None or size < 0
        number = int(size * n_structures + 1e-9) if fraction else size
        result.append(None if is_rest else int(number))
    if all(is_fraction) and abs(sum(sizes) - 1) < 1e-9:
        result[0] += n_structures - sum(result)
    if result.count(None) > 1:
        raise ValueError(f"only one of the subset sizes may be left open, got {sizes}")
    total = sum(s for s in result if s is not None)
    if total > n_structures:
        raise ValueError(
            f"subsets of {sizes} need {total} structures, but there are only {n_structures}"
        )
    return [n_structures - total if s is None else s for s in result]


# ways to split


def random_split(n_structures: int, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Structures drawn one by one, the same for the same seed on any machine."""
    order = seeded_order(n_structures, seed)
    return [sorted(subset.tolist()) for subset in np.split(order, np.cumsum(sizes))[: len(sizes)]]


def grouped_split(groups: np.ndarray, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Structures of one group stay in one subset.

    Perturbed copies of one strained cell, or frames of one trajectory, resemble each other so much
    that a random split tests on the training set. Groups are dealt out in random order, each to the
    subset that lacks most structures, so sizes come out right to about one group.

    Args:
        groups: (S,) label of the group of each structure.
        sizes: of the subsets, in structures.
        seed: of the order of groups.
    """
    missing = np.array(sizes)
    n_wanted = int((missing > 0).sum())
    uses_all = missing.sum() == len(groups)
    subsets: list[list[int]] = [[] for _ in sizes]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if len(members) < n_wanted:
        raise ValueError(
            f"{len(members)} group(s) to split by cannot fill {n_wanted} subsets;"
            " use data.splitting=random"
        )
    order = seeded_order(len(members), seed)
    for n_left, k in zip(range(len(order), 0, -1), order, strict=True):
        empty = [s for s in range(len(sizes)) if missing[s] > 0 and not subsets[s]]
        # the last groups go to subsets that would otherwise stay empty
        choices = empty if len(empty) == n_left else range(len(sizes))
        target = max(choices, key=lambda s: missing[s])
        if missing[target] > 0 or uses_all:
            subsets[target] += members[k].tolist()
            missing[target] -= len(members[k])
    return [sorted(subset) for subset in subsets]


def block_split(groups: np.ndarray, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Each trajectory is cut into one block of consecutive frames for each subset.

    Neighbouring frames resemble each other; here they meet at the ends of blocks only. If fewer
    structures are asked for than there are, the blocks still share all frames between them, and
    the structures are drawn from each block.

    Args:
        groups: (S,) label of the trajectory of each structure.
        sizes: of the subsets, in structures.
        seed: of the drawing.
    """
    time = np.empty(len(groups))  # from 0 to 1 in each trajectory
    for group in np.unique(groups):
        frames = np.flatnonzero(groups == group)
        time[frames] = (np.arange(len(frames)) + 0.5) / len(frames)
    # integers, rounded down: no block has fewer frames than are asked for
    ends = np.cumsum(sizes) * len(groups) // max(sum(sizes), 1)
    blocks = np.split(np.argsort(time, kind="stable"), ends[:-1])
    return [
        sorted(block[seeded_order(len(block), seed)[:size]].tolist())
        for block, size in zip(blocks, sizes, strict=True)
    ]


def schnetpack_split(strategy: SplittingStrategy, seed: int, dataset, *sizes) -> list[list[int]]:
    """Indices from a strategy of SchNetPack, which draws from torch's generator; that is kept.

    Sizes are made absolute as SchNetPack's data module does.
    """
    n = len(dataset)
    sizes = [int(s * n) if isinstance(s, float) and s <= 1 else s for s in sizes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subsets = strategy.split(dataset, *sizes)
    return [[int(k) for k in subset] for subset in subsets]


# the file


@dataclass
class Split:
    """Indices of structures of a database, for training, validation and test.

    Attributes:
        train, val, test: indices, counted from 0.
        request: what was asked for when the split was made (sizes, seed, strategy).
        fingerprint: of the database it belongs to, if that has one.
    """

    train: list[int]
    val: list[int]
    test: list[int]
    request: dict | None = None
    fingerprint: str | None = None


def split_path(database: str | Path) -> Path:
    """Where the split belonging to a database is kept: `my.db` has `my.split.npz`."""
    return Path(database).with_suffix(".split.npz")


def save_split(path: str | Path, split: Split, replace: bool = True) -> None:
    """Write a split file, atomically.

    Without `replace`, a file that is there stays, also one that another process just made.
    """
    arrays = {f"{name}_idx": np.array(getattr(split, name), dtype=np.int64) for name in SUBSETS}
    if split.request is not None:
        arrays["request"] = np.array(json.dumps(split.request, sort_keys=True))
    if split.fingerprint is not None:
        arrays["fingerprint"] = np.array(split.fingerprint)
    with replacing(path, overwrite=replace) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_split(path: str | Path, n_structures: int, fingerprint: str | None = None) -> Split:
    """Read a split file and check that it fits a database.

    Raises:
        ValueError: it is damaged, or was made for other data.
    """
    try:
        with np.load(path) as data:
            split = Split(*(data[f"{name}_idx"].tolist() for name in SUBSETS))
            split.request = json.loads(str(data["request"])) if "request" in data else None
            split.fingerprint = str(data["fingerprint"]) if "fingerprint" in data else None
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no split file ({error}); choose another with data.split_file=..."
        ) from error
    indices = [*split.train, *split.val, *split.test]
    problem = None
    if len(set(indices)) != len(indices):
        problem = "a structure stands in two subsets"
    elif indices and not (min(indices) >= 0 and max(indices) < n_structures):
        problem = f"it names structure {max(indices)} of {n_structures}"
    elif None not in (fingerprint, split.fingerprint) and split.fingerprint != fingerprint:
        problem = "its fingerprint is that of another database"
    if problem:
        raise ValueError(
            f"the split file {path} was made for other data: {problem}; choose another with"
            " data.split_file=..."
        )
    return split


# what a data module does


@dataclass
class Partition:
    """How to split a database.

    Attributes:
        num_train, num_val, num_test: sizes, as fractions (floats up to 1), numbers, or None: the
            rest. Where the split comes from a file, fractions have no effect, and smaller numbers
            take a part of its subsets, larger ones containing the smaller (learning curves).
        strategy: "auto": the split file beside the database, else the subsets that the database
            assigns structures to (`spk-softadapt set`), else by groups `split_key` if it has them,
            else random; "assigned": these subsets, in any case; "grouped", "blocks", "random" (see
            the functions), or any splitting strategy of SchNetPack: a new split of that kind.
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
        known = ("auto", "assigned", "grouped", "blocks", "random")
        if isinstance(self.strategy, str) and self.strategy not in known:
            raise ValueError(
                f"splitting={self.strategy!r} is not known; choose one of {', '.join(known)}"
            )
        self._sizes = (self.num_train, self.num_val, self.num_test)
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
                save_split(path, self._make(dataset, datapath), replace=False)
            split = load_split(path, len(dataset), dataset.metadata.get("fingerprint"))
            is_of_run = path.resolve().is_relative_to(Path.cwd().resolve())
            if is_of_run and split.request is not None:
                self._compare(split, path, dataset)
            else:
                split = self._from_users(split, f"the split file {path}", dataset)
        for name, words in SUBSETS.items():
            if name != "test" and not getattr(split, name):
                raise ValueError(
                    f"no structures left for {words}: {len(dataset)} structures with"
                    f" num_train={self.num_train}, num_val={self.num_val},"
                    f" num_test={self.num_test}; give numbers, such as data.num_train=8"
                    " data.num_val=1 data.num_test=1, or more structures"
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
        sizes = {f"num_{name}": size for name, size in zip(SUBSETS, self._sizes, strict=True)}
        return {**sizes, "splitting": name, "split_key": self.split_key, "split_seed": self.seed}

    def _compare(self, split: Split, path: Path, dataset) -> None:
        """A resumed run must go on with its own split, and the weights in the database."""
        now = {**self.request, "assignments_and_weights": digest(dataset.metadata)}
        changed = [
            f"{name}={old} (now {now[name]})"
            for name, old in split.request.items()
            if name in now and old != now[name]
        ]
        if changed:
            raise ValueError(
                f"{path.absolute()} holds this run's split, made with {', '.join(changed)}. A run"
                " is resumed with the values that it was started with; for another split start a"
                " new run, or remove the file"
            )

    def _make(self, dataset, datapath: str) -> Split:
        fingerprint = dataset.metadata.get("fingerprint")
        given = self._given_file(datapath)
        if given is not None:
            split = load_split(given, len(dataset), fingerprint)
            split = self._from_users(split, f"the split file {given}", dataset)
        elif self.strategy in ("auto", "assigned") and (subsets := assigned(dataset.metadata)):
            split = self._from_users(Split(**subsets), f"the assignments in {datapath}", dataset)
        else:
            kind = self._kind(dataset)
            if kind == "random":
                _warn_of_trajectories(dataset)
            split = Split(*self._draw(dataset, kind, *self._sizes))
        split.request = {**self.request, "assignments_and_weights": digest(dataset.metadata)}
        split.fingerprint = fingerprint
        return split

    def _given_file(self, datapath: str) -> Path | None:
        """A split that the user made: named in the config, or beside the database."""
        if self.strategy != "auto" or self.split_file is None:
            return None
        named = user_path(self.split_file)
        if self.split_file != DEFAULT_SPLIT_FILE and named.exists():
            return named
        beside = split_path(datapath)
        return beside if beside.exists() else None

    def _from_users(self, split: Split, origin: str, dataset) -> Split:
        """As many structures of each subset as asked for; all where a fraction is given."""
        log.info("split taken from %s", origin)
        subsets = []
        for name, size in zip(SUBSETS, self._sizes, strict=True):
            subset = getattr(split, name)
            if isinstance(size, int) and size >= 0:
                if size > len(subset):
                    raise ValueError(
                        f"num_{name}={size}, but {origin} has {len(subset)} structures for it"
                    )
                order = seeded_order(len(subset), self.seed)
                subset = sorted(subset[k] for k in order[:size])
            subsets.append(subset)
        train, val, test = subsets
        if train and not val:  # files were given for testing only
            trainable = dataset.subset(train)
            rest, chosen = self._draw(trainable, self._kind(trainable), None, self.num_val)
            log.info("%d of the training structures serve for validation", len(chosen))
            train, val = [train[k] for k in rest], [train[k] for k in chosen]
        return Split(train, val, test)

    def _kind(self, dataset) -> str:
        """grouped, blocks or random; "strategy" for others of SchNetPack."""
        if isinstance(self.strategy, SplittingStrategy):
            return "random" if isinstance(self.strategy, RandomSplit) else "strategy"
        known = dataset.metadata.get("groups_ids", {})
        if self.strategy == "assigned" and SUBSET not in known:
            raise ValueError(
                "data.splitting=assigned, but the database assigns no structures; do so with"
                " `spk-softadapt set DB assign test --group ...`"
            )
        if self.strategy not in ("auto", "assigned"):
            return self.strategy
        n_groups = len(set(known.get(self.split_key, ())))
        if n_groups >= len(SUBSETS):
            return "grouped"
        if n_groups:
            log.warning("only %d group(s) %r: the split is random", n_groups, self.split_key)
        return "random"

    def _draw(self, dataset, kind: str, *sizes) -> list[list[int]]:
        """A new split: indices of as many subsets as there are sizes."""
        if isinstance(self.strategy, SplittingStrategy):
            return schnetpack_split(self.strategy, self.seed, dataset, *sizes)
        n = len(dataset)
        sizes = split_sizes(n, *sizes)
        if kind == "random":
            return random_split(n, sizes, self.seed)
        if kind == "grouped":
            return grouped_split(self._groups(dataset, self.split_key), sizes, self.seed)
        key, known = self.split_key, dataset.metadata.get("groups_ids", {})
        if key == DEFAULT_SPLIT_KEY and key not in known:
            key = "group"
            if key not in known:
                return block_split(np.zeros(n), sizes, self.seed)
        return block_split(self._groups(dataset, key), sizes, self.seed)

    def _groups(self, dataset, key: str) -> np.ndarray:
        """Group (integer) of each structure."""
        known = dataset.metadata.get("groups_ids", {})
        if key not in known:
            raise ValueError(
                f"the database has no groups {key!r} to split by (it has"
                f" {', '.join(known) or 'none at all'}); choose one of them with"
                " data.split_key=..., or data.splitting=random"
            )
        return np.asarray(known[key])[list(dataset.indices)]


# frames of trajectories, which a random split should not part


def _warn_of_trajectories(dataset) -> None:
    found = list(_trajectories(dataset))
    if found:
        first, last, near, far = found[0]
        log.warning(
            "structures %d to %d%s look like frames of a trajectory: neighbours differ by %.3f Ang,"
            " others by %.3f Ang. After a random split the test set resembles the training set more"
            " than new structures do; data.splitting=blocks keeps them apart",
            first,
            last,
            f" and {len(found) - 1} more series" if len(found) > 1 else "",
            near,
            far,
        )


def _trajectories(dataset) -> Iterator[tuple[int, int, float, float]]:
    """Series in which neighbours resemble each other much more than frames farther apart do.

    A series are consecutive structures of the same atoms and group. Yields the indices of its ends
    in the database, and the median distances (Ang) of neighbours and of others.
    """
    raw, rng = dataset.raw, np.random.default_rng(0)
    same = [key for key in (properties.Z, keys.group) if key in raw]
    for _, members in groupby(
        dataset.indices, lambda k: [raw.rows(key, k).tobytes() for key in same]
    ):
        frames = np.array(list(members))
        n = len(frames)
        if n < LEAST_FRAMES:
            continue
        k = np.linspace(0, n - 2, N_COMPARED).astype(int)
        lag = rng.integers(LEAST_LAG, min(LARGEST_LAG, n // 2) + 1, N_COMPARED)
        near = _distances(raw, frames[k], frames[k + 1])
        far = _distances(raw, frames[k], frames[np.where(k + lag < n, k + lag, k - lag)])
        if np.median(far) > LEAST_DISTANCE and np.median(near / far.clip(1e-9)) < ALIKE:
            yield int(frames[0]), int(frames[-1]), float(np.median(near)), float(np.median(far))


def _distances(raw, a: Sequence[int], b: Sequence[int]) -> np.ndarray:
    """Root mean square displacements (Ang) between structures, without drift and strain."""
    cell_a, cell_b = (
        np.concatenate([raw.rows(properties.cell, k) for k in rows]) for rows in (a, b)
    )
    r_a, r_b = (np.stack([raw.rows(properties.R, k) for k in rows]) for rows in (a, b))
    # rows of a cell may be zero
    moved = r_b - r_a + r_b @ np.linalg.pinv(cell_b) @ (cell_a - cell_b)
    moved -= np.round(moved @ np.linalg.pinv(cell_a)) @ cell_a
    moved -= moved.mean(axis=1, keepdims=True)
    return np.sqrt((moved**2).sum(axis=2).mean(axis=1))
