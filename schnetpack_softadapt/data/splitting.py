"""Training, validation and test sets: seeded, at random, by group or in blocks of frames."""

import numpy as np
import torch
from schnetpack.data import SplittingStrategy

__all__ = [
    "BlockSplit",
    "GroupedSplit",
    "SeededRandomSplit",
    "seeded_order",
    "split_sizes",
    "split_with_seed",
]


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
    result: list[int | None] = []
    for size in sizes:
        if size is None or size < 0:
            result.append(None)
        elif isinstance(size, float) and size <= 1:
            result.append(int(size * n_structures + 1e-9))
        else:
            result.append(int(size))
    fractions = [s for s in sizes if isinstance(s, float) and 0 <= s <= 1]
    if len(fractions) == len(sizes) and abs(sum(fractions) - 1) < 1e-9:
        result[0] += n_structures - sum(result)
    if result.count(None) > 1:
        raise ValueError(f"only one of the subset sizes may be left open, got {sizes}")
    total = sum(s for s in result if s is not None)
    if total > n_structures:
        raise ValueError(
            f"subsets of {sizes} need {total} structures, but there are only {n_structures}"
        )
    return [n_structures - total if s is None else s for s in result]


class SeededRandomSplit(SplittingStrategy):
    """Structures drawn one by one, the same for the same seed on any machine."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def split(self, dataset, *sizes) -> list[list[int]]:
        """Indices (lists) of each subset; sizes as in `split_sizes`."""
        sizes = split_sizes(len(dataset), *sizes)
        order = seeded_order(len(dataset), self.seed)
        ends = np.cumsum(sizes)
        return [sorted(order[e - s : e].tolist()) for e, s in zip(ends, sizes, strict=True)]


class GroupedSplit(SplittingStrategy):
    """Structures of one group stay in one subset.

    Perturbed copies of one strained cell, or frames of one trajectory, resemble each other so much
    that a random split tests on the training set. Groups are dealt out in random order, each to the
    subset that lacks most structures, so sizes come out right to about one group.

    Args:
        key: name of the groups in the database's metadata, `groups_ids[key]`, one integer per
            structure (the format of SchNetPack's GroupSplit).
        seed: of the order of groups.
    """

    def __init__(self, key: str = "strain_state", seed: int = 0):
        self.key = key
        self.seed = seed

    def split(self, dataset, *sizes) -> list[list[int]]:
        """Indices (lists) of each subset; sizes are in structures, as in `split_sizes`."""
        groups = _groups(dataset, self.key)
        missing = np.array(split_sizes(len(dataset), *sizes))
        n_wanted = int((missing > 0).sum())
        uses_all = missing.sum() == len(dataset)
        subsets: list[list[int]] = [[] for _ in sizes]
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        if len(members) < n_wanted:
            raise ValueError(
                f"{len(members)} group(s) {self.key!r} cannot fill {n_wanted} subsets;"
                " use data.splitting=random"
            )
        order = seeded_order(len(members), self.seed)
        for n_left, k in zip(range(len(order), 0, -1), order, strict=True):
            empty = [s for s in range(len(sizes)) if missing[s] > 0 and not subsets[s]]
            # the last groups go to subsets that would otherwise stay empty
            choices = empty if len(empty) == n_left else range(len(sizes))
            target = max(choices, key=lambda s: missing[s])
            if missing[target] <= 0 and not uses_all:
                continue
            subsets[target] += members[k].tolist()
            missing[target] -= len(members[k])
        return [sorted(subset) for subset in subsets]


class BlockSplit(SplittingStrategy):
    """Each trajectory is cut into one block of consecutive frames for each subset.

    Neighbouring frames resemble each other; here they meet at the ends of blocks only. If fewer
    structures are asked for than there are, the blocks still share all frames between them, and
    the structures are drawn from each block.

    Args:
        key: of the groups that are trajectories, as for `GroupedSplit`; None: all structures are
            frames of one.
        seed: of the drawing.
    """

    def __init__(self, key: str | None = "group", seed: int = 0):
        self.key = key
        self.seed = seed

    def split(self, dataset, *sizes) -> list[list[int]]:
        """Indices (lists) of each subset; sizes are in structures, as in `split_sizes`."""
        n = len(dataset)
        groups = np.zeros(n) if self.key is None else _groups(dataset, self.key)
        sizes = np.array(split_sizes(n, *sizes))
        time = np.empty(n)  # from 0 to 1 in each trajectory
        for group in np.unique(groups):
            frames = np.flatnonzero(groups == group)
            time[frames] = (np.arange(len(frames)) + 0.5) / len(frames)
        # integers, rounded down: no block has fewer frames than are asked for
        ends = np.cumsum(sizes) * n // max(sizes.sum(), 1)
        blocks = np.split(np.argsort(time, kind="stable"), ends[:-1])
        return [
            sorted(block[seeded_order(len(block), self.seed)[:size]].tolist())
            for block, size in zip(blocks, sizes, strict=True)
        ]


def _groups(dataset, key: str) -> np.ndarray:
    """Group (integer) of each structure.

    Raises:
        ValueError: the database has no such groups.
    """
    groups_ids = dataset.metadata.get("groups_ids", {})
    if key not in groups_ids:
        known = ", ".join(groups_ids) or "none at all"
        raise ValueError(
            f"the database has no groups {key!r} to split by (it has {known}); choose one of them"
            " with data.split_key=..., or data.splitting=random"
        )
    groups = np.asarray(groups_ids[key])
    if getattr(dataset, "subset_idx", None) is not None:
        groups = groups[dataset.subset_idx]
    if len(groups) != len(dataset):
        raise ValueError(f"{len(groups)} groups {key!r} for {len(dataset)} structures")
    return groups


def split_with_seed(strategy: SplittingStrategy, seed: int, dataset, *sizes) -> list[list[int]]:
    """Indices from any strategy, independent of the random state of training, which is kept.

    SchNetPack's own strategies draw from torch's global generator and want absolute sizes.
    """
    if isinstance(strategy, (BlockSplit, GroupedSplit, SeededRandomSplit)):
        return strategy.split(dataset, *sizes)
    sizes = [
        int(s * len(dataset)) if isinstance(s, float) and s <= 1 else s
        for s in sizes  # as SchNetPack's data module does
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = strategy.split(dataset, *sizes)
    return [[int(k) for k in part] for part in parts]
