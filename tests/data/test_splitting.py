import json

import numpy as np
import pytest
import torch
from schnetpack.data import RandomSplit

from schnetpack_softadapt.data.splitting import (
    Split,
    block_split,
    grouped_split,
    load_split,
    random_split,
    save_split,
    schnetpack_split,
    split_sizes,
)


def groups_of_some(n_groups=40, seed=0):
    """Groups of 1 to 7 structures."""
    sizes = np.random.default_rng(seed).integers(1, 8, n_groups)
    return np.repeat(np.arange(n_groups), sizes)


def three(n):
    return split_sizes(n, 0.7, 0.2, 0.1)


def test_no_group_straddles_the_split_and_sizes_come_out_right():
    groups = groups_of_some()
    parts = grouped_split(groups, three(len(groups)), seed=3)
    of_part = [set(groups[p].tolist()) for p in parts]
    assert not of_part[0] & of_part[1]
    assert not of_part[0] & of_part[2]
    assert not of_part[1] & of_part[2]
    assert sorted(k for part in parts for k in part) == list(range(len(groups)))
    for part, fraction in zip(parts, (0.7, 0.2, 0.1), strict=True):
        # to about one group, at most 7 structures
        assert abs(len(part) - fraction * len(groups)) <= 7


def test_a_random_split_would_part_groups():
    groups = groups_of_some()
    train, _, test = random_split(len(groups), three(len(groups)), 3)
    assert set(groups[train].tolist()) & set(groups[test].tolist())


def test_blocks_of_each_trajectory():
    """Also where the frames of one stand between those of another."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat([0, 1, 2, 3], [100, 37, 1, 262]))
    parts = block_split(groups, three(400), seed=0)
    assert [len(p) for p in parts] == [280, 80, 40]
    assert sorted(k for part in parts for k in part) == list(range(400))
    for group in range(4):
        frames = np.flatnonzero(groups == group)
        subset = np.array([next(s for s in range(3) if k in parts[s]) for k in frames])
        assert (np.diff(subset) >= 0).all()  # training, then validation, then test
        for s, fraction in enumerate((0.7, 0.2, 0.1)):
            assert abs((subset == s).sum() - fraction * len(frames)) <= 1
    (frames,) = block_split(np.zeros(400), [10], seed=0)
    assert len(frames) == 10


def test_fewer_structures_are_drawn_from_all_of_their_block():
    one_run = np.zeros(1000)
    train, val, test = block_split(one_run, (60, 20, 20), seed=1)
    assert [len(p) for p in (train, val, test)] == [60, 20, 20]
    assert max(train) < 600 <= min(val)
    assert max(val) < 800 <= min(test)
    assert train != list(range(60))
    # 60 numbers drawn from 600: the probability of a gap of 100 is 60 (5/6)^60 = 0.001
    assert np.diff([0, *train, 600]).max() < 100
    assert block_split(one_run, (60, 20, 20), seed=1)[0] == train
    assert block_split(one_run, (60, 20, 20), seed=2)[0] != train


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 5, 1), (10, 0, 1), (11, 0, 0), (1, 1, 1)])
def test_blocks_have_the_sizes_that_are_asked_for(sizes):
    parts = block_split(np.zeros(11), sizes, seed=0)
    assert [len(p) for p in parts] == list(sizes)
    assert len({k for part in parts for k in part}) == sum(sizes)


@pytest.mark.parametrize("split", [grouped_split, block_split, random_split])
def test_splits_follow_from_their_seed_alone(split):
    groups = groups_of_some()
    data = len(groups) if split is random_split else groups
    sizes = (50, 20, 10)
    torch.manual_seed(0)
    first = split(data, sizes, 1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 the global state is what must not matter
    assert split(data, sizes, 1) == first
    assert split(data, sizes, 2) != first


def test_the_split_of_a_seed_never_changes():
    """Published numbers belong to a split, whatever the version of numpy."""
    parts = random_split(10, three(10), 0)
    assert parts == [[0, 1, 2, 3, 6, 7, 8], [4, 5], [9]]


def test_schnetpacks_strategies_are_seeded_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = schnetpack_split(RandomSplit(), 1, range(20), 0.5, 0.3, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert schnetpack_split(RandomSplit(), 1, range(20), 0.5, 0.3, None) == first
    assert schnetpack_split(RandomSplit(), 2, range(20), 0.5, 0.3, None) != first
    assert [len(p) for p in first] == [10, 6, 4]


def test_small_subsets_are_not_left_empty():
    groups = np.repeat([0, 1, 2], 10)
    parts = grouped_split(groups, split_sizes(30, 0.9, 0.05, 0.05), seed=0)
    assert all(len(part) == 10 for part in parts)


def test_structures_that_are_not_asked_for_stay_out():
    groups = groups_of_some()
    parts = grouped_split(groups, (50, 20, 0), seed=0)
    assert sum(map(len, parts)) < len(groups)
    assert abs(len(parts[0]) - 50) <= 7
    assert parts[2] == []


def test_too_few_groups_say_so():
    with pytest.raises(ValueError, match=r"2 group.*cannot fill 3 subsets.*splitting=random"):
        grouped_split(np.array([0, 0, 1]), (1, 1, 1), seed=0)


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
