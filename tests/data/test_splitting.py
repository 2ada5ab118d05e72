import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from schnetpack.data import RandomSplit

from schnetpack_softadapt.data.splitting import (
    BlockSplit,
    GroupedSplit,
    SeededRandomSplit,
    Split,
    load_split,
    save_split,
    split_sizes,
    split_with_seed,
)


class Data(SimpleNamespace):
    """As much of a data set as splits look at."""

    def __init__(self, groups=None, n=None):
        super().__init__(
            metadata={} if groups is None else {"groups_ids": {"strain_state": groups}},
            subset_idx=None,
            n=len(groups) if n is None else n,
        )

    def __len__(self):
        return self.n


def grouped_data(n_groups=40, seed=0):
    sizes = np.random.default_rng(seed).integers(1, 8, n_groups)
    return Data(np.repeat(np.arange(n_groups), sizes).tolist())


def test_no_group_straddles_the_split_and_sizes_come_out_right():
    data = grouped_data()
    parts = GroupedSplit(seed=3).split(data, 0.7, 0.2, 0.1)
    groups = np.array(data.metadata["groups_ids"]["strain_state"])
    of_part = [set(groups[p].tolist()) for p in parts]
    assert not of_part[0] & of_part[1]
    assert not of_part[0] & of_part[2]
    assert not of_part[1] & of_part[2]
    assert sorted(k for part in parts for k in part) == list(range(len(data)))
    for part, fraction in zip(parts, (0.7, 0.2, 0.1), strict=True):
        # to about one group, at most 7 structures
        assert abs(len(part) - fraction * len(data)) <= 7


def test_a_random_split_would_part_groups():
    data = grouped_data()
    train, _, test = SeededRandomSplit(3).split(data, 0.7, 0.2, 0.1)
    groups = np.array(data.metadata["groups_ids"]["strain_state"])
    assert set(groups[train].tolist()) & set(groups[test].tolist())


def test_blocks_of_each_trajectory():
    """Also where the frames of one stand between those of another."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat([0, 1, 2, 3], [100, 37, 1, 262]))
    data = Data(groups.tolist())
    parts = BlockSplit("strain_state").split(data, 0.7, 0.2, 0.1)
    assert [len(p) for p in parts] == [280, 80, 40]
    assert sorted(k for part in parts for k in part) == list(range(400))
    for group in range(4):
        frames = np.flatnonzero(groups == group)
        subset = np.array([next(s for s in range(3) if k in parts[s]) for k in frames])
        assert (np.diff(subset) >= 0).all()  # training, then validation, then test
        for s, fraction in enumerate((0.7, 0.2, 0.1)):
            assert abs((subset == s).sum() - fraction * len(frames)) <= 1
    (frames,) = BlockSplit(None).split(data, 10)
    assert len(frames) == 10


def test_fewer_structures_are_drawn_from_all_of_their_block():
    data = Data(n=1000)
    train, val, test = BlockSplit(None, seed=1).split(data, 60, 20, 20)
    assert [len(p) for p in (train, val, test)] == [60, 20, 20]
    assert max(train) < 600 <= min(val)
    assert max(val) < 800 <= min(test)
    assert train != list(range(60))
    # 60 numbers drawn from 600: the probability of a gap of 100 is 60 (5/6)^60 = 0.001
    assert np.diff([0, *train, 600]).max() < 100
    assert BlockSplit(None, seed=1).split(data, 60, 20, 20)[0] == train
    assert BlockSplit(None, seed=2).split(data, 60, 20, 20)[0] != train


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 5, 1), (10, 0, 1), (11, 0, 0), (1, 1, 1)])
def test_blocks_have_the_sizes_that_are_asked_for(sizes):
    parts = BlockSplit(None).split(Data(n=11), *sizes)
    assert [len(p) for p in parts] == list(sizes)
    assert len({k for part in parts for k in part}) == sum(sizes)


@pytest.mark.parametrize("cls", [GroupedSplit, SeededRandomSplit])
def test_splits_follow_from_their_seed_alone(cls):
    data = grouped_data()
    torch.manual_seed(0)
    first = cls(seed=1).split(data, 0.7, 0.2, 0.1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 the global state is what must not matter
    assert cls(seed=1).split(data, 0.7, 0.2, 0.1) == first
    assert cls(seed=2).split(data, 0.7, 0.2, 0.1) != first


def test_the_split_of_a_seed_never_changes():
    """Published numbers belong to a split, whatever the version of numpy."""
    parts = SeededRandomSplit(0).split(Data(n=10), 0.7, 0.2, 0.1)
    assert parts == [[0, 1, 2, 3, 6, 7, 8], [4, 5], [9]]


def test_schnetpacks_strategies_are_seeded_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = split_with_seed(RandomSplit(), 1, Data(n=20), 0.5, 0.3, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert split_with_seed(RandomSplit(), 1, Data(n=20), 0.5, 0.3, None) == first
    assert split_with_seed(RandomSplit(), 2, Data(n=20), 0.5, 0.3, None) != first
    assert [len(p) for p in first] == [10, 6, 4]


def test_small_subsets_are_not_left_empty():
    parts = GroupedSplit(seed=0).split(Data([0] * 10 + [1] * 10 + [2] * 10), 0.9, 0.05, 0.05)
    assert all(len(part) == 10 for part in parts)


def test_structures_that_are_not_asked_for_stay_out():
    data = grouped_data()
    parts = GroupedSplit(seed=0).split(data, 50, 20, 0)
    assert sum(map(len, parts)) < len(data)
    assert abs(len(parts[0]) - 50) <= 7
    assert parts[2] == []


def test_what_cannot_be_split_by_groups_says_so():
    with pytest.raises(ValueError, match=r"no groups 'strain_state'.*splitting=random"):
        GroupedSplit().split(Data(n=5), 0.7, 0.2, 0.1)
    with pytest.raises(ValueError, match=r"2 group.*cannot fill 3 subsets"):
        GroupedSplit().split(Data([0, 0, 1]), 1, 1, 1)


def test_sizes():
    assert split_sizes(463, 0.7, 0.2, 0.1) == [325, 92, 46]  # nobody is lost to rounding
    assert split_sizes(10, 0.5, 0.2, None) == [5, 2, 3]
    assert split_sizes(10, 7, 2, -1) == [7, 2, 1]
    assert split_sizes(10, 3, 2, 1) == [3, 2, 1]
    with pytest.raises(ValueError, match="need 12 structures, but there are only 10"):
        split_sizes(10, 8, 4, None)
    with pytest.raises(ValueError, match="only one"):
        split_sizes(10, None, 4, None)


def test_split_file_round_trip(tmp_path):
    split = Split([0, 2], [1], [], request={"num_train": 0.7}, fingerprint="abc")
    save_split(tmp_path / "s.npz", split)
    assert load_split(tmp_path / "s.npz", 3, "abc") == split
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_schnetpacks_own_split_files_are_read(tmp_path):
    np.savez(tmp_path / "s.npz", train_idx=[0], val_idx=[1], test_idx=[2])
    assert load_split(tmp_path / "s.npz", 3, "abc").test == [2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split([0, 5], [1], []), "structure 5 of 3"),
        (Split([0, 1], [1], []), "stands in two subsets"),
        (Split([0, 1], [2], [], fingerprint="other"), "fingerprint"),
    ],
)
def test_split_files_of_other_data_are_refused(split, message, tmp_path):
    save_split(tmp_path / "s.npz", split)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "s.npz", 3, "abc")


def test_a_damaged_split_file_is_named(tmp_path):
    (tmp_path / "s.npz").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"s\.npz is no split file"):
        load_split(tmp_path / "s.npz", 3)
