"""The data module: paths, splits, batches, statistics, descriptors from a store, Lightning."""

import copy
import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from emt_structures import labelled_structures
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from schnetpack import properties
from schnetpack.data import RandomSplit
from schnetpack.transform import (
    CastTo32,
    MatScipyNeighborList,
    RemoveOffsets,
    SubtractCenterOfGeometry,
    Transform,
    WrapPositions,
)
from torch.utils.data import DistributedSampler

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data import splitting as splitting_module
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.loader import EpochSampler, _ahead
from schnetpack_softadapt.data.splitting import Split, load_split, save_split
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceEngine
from schnetpack_softadapt.descriptors.elements import UnknownElementError
from schnetpack_softadapt.descriptors.store.store import DescriptorStore


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(n=20, path="my.db", **kwargs):
    """A data module over `n` structures, set up."""
    write_database(path, labelled_structures(n), "test", overwrite=True)
    kwargs.setdefault("transforms", [MatScipyNeighborList(cutoff=3.0), CastTo32()])
    datamodule = SoftAdaptDataModule(path, **kwargs)
    datamodule.setup()
    return datamodule


def parts(datamodule):
    return [datamodule.train_idx, datamodule.val_idx, datamodule.test_idx]


# precision


def test_energies_stay_float64_under_a_cast():
    """Total energies of all-electron codes: float32 would round them to 4 meV."""
    structures = labelled_structures(4)
    structures[0] = dataclasses.replace(structures[0], energy=-36000.123456789)
    write_database("my.db", structures, "test")
    np.savez("split.npz", train_idx=[0, 1], val_idx=[2], test_idx=[3])
    datamodule = SoftAdaptDataModule(
        "my.db", num_train=2, num_val=1, num_test=1, transforms=[CastTo32()]
    )
    datamodule.setup()
    for values in (datamodule.train_dataset[0], datamodule.train_dataset.batch([0])):
        assert values[properties.energy].item() == -36000.123456789
        assert values[properties.forces].dtype == values[properties.R].dtype == torch.float32


def test_casting_energies_too_is_an_option():
    batch = next(iter(made(keep_float64=[]).train_dataloader()))
    assert batch[properties.energy].dtype == torch.float32


# paths


def in_hydra(monkeypatch, cwd):
    """As in a Hydra program that was started in `cwd` and has changed directory since."""
    config = OmegaConf.create({"hydra": {"runtime": {"cwd": str(cwd)}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)


def test_relative_paths_start_where_the_command_was_given(tmp_path, monkeypatch):
    write_database("my.db", labelled_structures(10), "test")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    in_hydra(monkeypatch, tmp_path)
    datamodule = SoftAdaptDataModule("my.db")
    datamodule.setup()
    assert datamodule.datapath == str(tmp_path / "my.db")
    assert (tmp_path / "run" / "split.npz").exists()
    assert not (tmp_path / "split.npz").exists()


def test_a_missing_database_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no database at .*my\.db.*spk-softadapt import"):
        SoftAdaptDataModule("my.db").setup()
    assert not (tmp_path / "my.db").exists()


def test_missing_properties_are_named():
    with pytest.raises(ValueError, match=r"has no dipole; it holds energy, forces, stress"):
        made(load_properties=["energy", "dipole"])


# splits


def test_grouped_by_default_random_on_request_or_without_groups():
    states = np.arange(20) // 2
    datamodule = made()
    train, val, test = (set(states[p]) for p in parts(datamodule))
    assert not train & val
    assert not train & test
    random = made(splitting="random", split_file=None)
    train, val, test = (set(states[p]) for p in parts(random))
    assert train & (val | test)
    structures = labelled_structures(20)
    for structure in structures:
        structure.info.clear()
    write_database("plain.db", structures, "test")
    plain = SoftAdaptDataModule("plain.db", split_file=None)
    plain.setup()
    assert parts(plain) == parts(random)


def test_the_split_does_not_follow_the_training_seed():
    splits = []
    for seed in (1, 2):
        pl.seed_everything(seed)
        splits.append(parts(made(split_file=None)))
    assert splits[0] == splits[1]
    assert parts(made(split_file=None, split_seed=7)) != splits[0]


@pytest.mark.parametrize("strategy", ["random", RandomSplit()])
def test_strategies(strategy):
    datamodule = made(splitting=strategy, num_train=12, num_val=4, num_test=None)
    assert [len(p) for p in parts(datamodule)] == [12, 4, 4]
    assert datamodule.num_train == 12
    assert sorted(sum(parts(datamodule), [])) == list(range(20))  # noqa: RUF017 three short lists


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="splitting='groups' is not known"):
        made(splitting="groups")


def frames(n=60, seed=0, steps_per_period=40, group="run"):
    """A vibrating crystal: each atom has its own frequency and phase in each direction."""
    rng = np.random.default_rng(seed)
    crystal = labelled_structures(3)[2]
    shape = crystal.positions.shape
    phase, speed = rng.uniform(0, 2 * np.pi, shape), rng.uniform(0.7, 1.3, shape)
    time = 2 * np.pi * np.arange(n)[:, None, None] / steps_per_period
    moved = crystal.positions + 0.1 * np.cos(speed * time + phase)
    # as written by codes that put atoms back into the cell
    moved += rng.integers(-1, 2, (n, len(moved[0]), 3)) @ crystal.cell
    return [dataclasses.replace(crystal, positions=x, group=group, info={}) for x in moved]


@pytest.mark.parametrize(
    ("kind", "warned"),
    [
        ("trajectory", "structures 0 to 59 look like"),
        ("two", "structures 0 to 59 and 1 more series look like"),
        ("shuffled", ""),
        ("independent", ""),
        ("short", ""),
        ("strained", ""),
        ("phases", ""),
    ],
)
def test_random_splits_of_trajectories_are_pointed_out(caplog, kind, warned):
    structures = {
        "trajectory": frames(),
        "two": frames() + frames(seed=1, group="another"),
        "shuffled": [frames()[k] for k in np.random.default_rng(0).permutation(60)],
        "independent": frames(steps_per_period=1.7),
        "short": frames(9),
        # 30 independent structures each
        "phases": [
            dataclasses.replace(s, positions=s.positions + np.eye(len(s.positions), 3) * (k // 30))
            for k, s in enumerate(frames(90, steps_per_period=1.7))
        ],
        "strained": [
            dataclasses.replace(s, positions=s.positions * scale, cell=s.cell * scale)
            for s, scale in zip(frames(1) * 40, np.linspace(1, 1.1, 40), strict=True)
        ],
    }[kind]
    write_database("my.db", structures, "test")
    for splitting in ("auto", RandomSplit()):
        caplog.clear()
        SoftAdaptDataModule("my.db", split_file=None, splitting=splitting).setup()
        assert ("look like frames of a trajectory" in caplog.text) == bool(warned)
        assert warned in caplog.text
    caplog.clear()
    SoftAdaptDataModule("my.db", split_file=None, splitting="blocks").setup()
    assert "look like" not in caplog.text


def test_blocks_of_each_group():
    write_database("my.db", frames(20) + frames(10, group="another"), "test")
    datamodule = SoftAdaptDataModule("my.db", splitting="blocks")
    datamodule.setup()
    assert parts(datamodule) == [
        [*range(14), *range(20, 27)],
        [*range(14, 18), *range(27, 29)],
        [18, 19, 29],
    ]
    # groups that the user names
    by_state = made(20, splitting="blocks", num_train=0.5, num_val=0.5, num_test=0, split_file=None)
    assert parts(by_state) == [list(range(0, 20, 2)), list(range(1, 20, 2)), []]
    for splitting in ("blocks", "grouped"):
        with pytest.raises(ValueError, match=r"no groups 'runs' to split by.*splitting=random"):
            made(20, splitting=splitting, split_key="runs", split_file=None)


def test_the_split_beside_the_database_is_taken():
    made(10, split_file=None)
    save_split("my.split.npz", Split([0, 1, 2, 3, 4], [5, 6], [7, 8, 9]))
    datamodule = SoftAdaptDataModule("my.db")
    datamodule.setup()
    assert parts(datamodule) == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    # the run has its own copy, so that it can be resumed whatever happens beside the database
    assert load_split("split.npz", 10).test == [7, 8, 9]


def test_learning_curves_take_nested_parts_of_a_given_training_set(tmp_path, monkeypatch):
    made(20, split_file=None)
    save_split("my.split.npz", Split(list(range(12)), [12, 13, 14], [15, 16]))
    sets = []
    for n in (3, 6, 12, 13):
        (tmp_path / f"run{n}").mkdir()
        monkeypatch.chdir(tmp_path / f"run{n}")
        datamodule = SoftAdaptDataModule("../my.db", num_train=n)
        if n == 13:
            with pytest.raises(ValueError, match=r"num_train=13, .*split\.npz has 12"):
                datamodule.setup()
            continue
        datamodule.setup()
        train, val, test = parts(datamodule)
        assert (val, test) == ([12, 13, 14], [15, 16])
        sets.append(set(train))
    assert [len(s) for s in sets] == [3, 6, 12]
    assert sets[0] < sets[1] < sets[2]


def test_validation_comes_from_training_when_only_a_test_set_is_given():
    made(20, split_file=None)
    save_split("my.split.npz", Split(list(range(16)), [], [16, 17, 18, 19]))
    datamodule = SoftAdaptDataModule("my.db", num_val=0.25)
    datamodule.setup()
    train, val, test = parts(datamodule)
    assert test == [16, 17, 18, 19]
    assert sorted(train + val) == list(range(16))
    assert len(val) == 4
    assert not {k // 2 for k in train} & {k // 2 for k in val}  # by strain state


def test_a_resumed_run_keeps_its_split_or_says_why_not():
    first = made()
    again = SoftAdaptDataModule("my.db")
    again.setup()
    assert parts(again) == parts(first)
    with pytest.raises(ValueError, match=r"split\.npz holds this run's split.*num_train=0.7 \(now"):
        SoftAdaptDataModule("my.db", num_train=0.5).setup()
    with pytest.raises(ValueError, match=r"split_seed=0 \(now 1\)"):
        SoftAdaptDataModule("my.db", split_seed=1).setup()


def test_a_split_of_other_data_in_the_run_directory_is_refused():
    made(20)
    write_database("other.db", labelled_structures(20, seed=1), "test")
    with pytest.raises(ValueError, match=r"split\.npz was made for other data"):
        SoftAdaptDataModule("other.db").setup()


# {}: the folder of the user
@pytest.mark.parametrize("name", ["mine.npz", "{}/mine.npz", "../mine.npz"])
# with a request: a copy of what another run kept
@pytest.mark.parametrize("request_", [None, {"num_train": 8}])
def test_a_split_file_named_by_the_user(tmp_path, monkeypatch, name, request_):
    made(10, split_file=None)
    save_split("mine.npz", Split([0, 1, 2, 3, 4], [5, 6], [7], request_))
    before = Path("mine.npz").read_bytes()
    for n in (2, 4):
        (tmp_path / f"run{n}").mkdir()
        monkeypatch.chdir(tmp_path / f"run{n}")
        in_hydra(monkeypatch, tmp_path)
        for _ in range(2):  # and when it is resumed
            datamodule = SoftAdaptDataModule("my.db", num_train=n, split_file=name.format(tmp_path))
            datamodule.setup()
            assert len(datamodule.train_idx) == n
            assert set(datamodule.train_idx) < {0, 1, 2, 3, 4}
            assert parts(datamodule)[1:] == [[5, 6], [7]]
        # what is not there is named, and nobody is told to remove the file
        with pytest.raises(ValueError, match=r"mine\.npz has 5 structures") as error:
            SoftAdaptDataModule("my.db", num_train=6, split_file=f"{tmp_path}/mine.npz").setup()
        assert "remove" not in str(error.value)
    assert (tmp_path / "mine.npz").read_bytes() == before


def test_a_split_file_in_the_working_folder_that_others_wrote():
    """As SchNetPack's own data module leaves it."""
    made(10, split_file=None)
    np.savez("split.npz", train_idx=[0, 1, 2, 3, 4], val_idx=[5, 6], test_idx=[7])
    for n in (5, 4):
        datamodule = SoftAdaptDataModule("my.db", num_train=n)
        datamodule.setup()
        assert len(datamodule.train_idx) == n


def test_a_split_is_kept_at_an_absolute_path(tmp_path, monkeypatch):
    splits = []
    for run in ("run1", "run2"):
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        split_file = str(tmp_path / "splits" / "shared.npz")
        splits.append(parts(made(path="../my.db", split_file=split_file, split_seed=len(splits))))
        assert not list(Path.cwd().iterdir())
    assert splits[0] == splits[1]


def test_nothing_but_the_split_is_left_in_the_working_folder(tmp_path):
    made(10)
    assert {p.name for p in tmp_path.iterdir()} == {"my.db", "split.npz"}


class Unrepeatable(RandomSplit):
    """Another split each time, whatever the seed."""

    def split(self, dataset, *sizes):
        order = np.random.default_rng().permutation(len(dataset)).tolist()
        return [order[:10], order[10:15], order[15:]]


def test_processes_that_start_together_get_one_split(tmp_path, monkeypatch):
    write_database("my.db", labelled_structures(20), "test")
    save = splitting_module.save_split

    def late(path, split, **kwargs):
        """While this process made its split, another has saved one."""
        save(path, Split([0], [1], [2], split.request, split.fingerprint))
        save(path, split, **kwargs)

    monkeypatch.setattr(splitting_module, "save_split", late)
    datamodule = SoftAdaptDataModule("my.db", splitting=Unrepeatable())
    datamodule.setup()
    assert parts(datamodule) == [[0], [1], [2]]
    assert {p.name for p in tmp_path.iterdir()} == {"my.db", "split.npz"}


@pytest.mark.parametrize("sizes", [(0, 5, None), (20, 0, 0), (1.0, 0.0, 0.0)])
def test_training_and_validation_sets_are_needed(sizes):
    with pytest.raises(ValueError, match="no structures left for"):
        made(num_train=sizes[0], num_val=sizes[1], num_test=sizes[2], splitting="random")


class Recorder(pl.LightningModule):
    """Records which structures come in which order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.n_tested = 0

    def on_train_epoch_start(self):
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        self.seen[-1] += batch[properties.idx].tolist()
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.n_tested += len(batch[properties.idx])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(max_epochs, **kwargs):
    return pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **kwargs},
    )


def test_an_empty_test_set_is_announced_and_does_no_harm(caplog):
    datamodule = made(num_train=14, num_val=6, num_test=None, splitting="random")
    assert "no structures are left for testing" in caplog.text
    module = Recorder()
    run = trainer(1)
    run.fit(module, datamodule)
    run.test(module, datamodule)
    assert module.n_tested == 0


# order of training structures


def test_every_epoch_has_another_order_which_follows_from_the_seed():
    orders = []
    for _ in range(2):
        pl.seed_everything(3)
        module = Recorder()
        datamodule = made(split_file=None)
        torch.rand(len(orders) * 5)  # the state of the generator must not matter
        trainer(3).fit(module, datamodule)
        orders.append(module.seen)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1] != orders[0][2]
    assert all(sorted(order) == datamodule.train_idx for order in orders[0])


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(tmp_path):
    pl.seed_everything(3)
    whole, part, rest = Recorder(), Recorder(), Recorder()
    trainer(4).fit(whole, made(split_file=None))
    pl.seed_everything(3)
    run = trainer(2, enable_checkpointing=True, default_root_dir=str(tmp_path))
    run.fit(part, made(split_file=None))
    run.save_checkpoint("c.ckpt")
    pl.seed_everything(3)
    trainer(4).fit(rest, made(split_file=None), ckpt_path="c.ckpt")
    assert part.seen + rest.seen == whole.seen


def test_two_ranks_see_the_batches_of_one():
    """Lightning replaces our sampler by torch's DistributedSampler under DDP."""
    data = list(range(24))
    one = EpochSampler(data, seed=5)
    two = [DistributedSampler(data, 2, rank, shuffle=True, seed=5) for rank in range(2)]
    for sampler in (one, *two):
        sampler.set_epoch(3)
    order, halves = list(one), [list(sampler) for sampler in two]
    for k in range(0, 24, 8):  # batches of 8 on one rank, of 4 on each of two
        both = halves[0][k // 2 : k // 2 + 4] + halves[1][k // 2 : k // 2 + 4]
        assert sorted(both) == sorted(order[k : k + 8])


def test_without_a_trainer_epochs_are_counted():
    sampler = EpochSampler(range(10), seed=0)
    assert list(sampler) != list(sampler)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_structures_come_once(num_workers):
    datamodule = made(num_workers=num_workers, batch_size=3)
    loader = datamodule.train_dataloader()
    seen = [k for batch in loader for k in batch[properties.idx].tolist()]
    assert sorted(seen) == datamodule.train_idx
    assert len(loader) == -(-len(seen) // 3)  # the last batch is not dropped
    again = [batch[properties.idx].tolist() for batch in datamodule.val_dataloader()]
    assert [k for ids in again for k in ids] == datamodule.val_idx


# elements


def test_unknown_elements_are_named():
    datamodule = made()
    assert datamodule.elements == [29, 79]
    datamodule.check_elements(["Cu", 79])
    with pytest.raises(UnknownElementError, match=r"my.db, structure 0: .* know Au; it was made"):
        datamodule.check_elements(["Cu", "H"])


def test_elements_outside_the_training_set_are_pointed_out(caplog):
    structures = labelled_structures(6)
    for structure in structures[:5]:
        structure.numbers[:] = 29
    write_database("my.db", structures, "test")
    np.savez("split.npz", train_idx=[0, 1, 2], val_idx=[3, 4], test_idx=[5])
    datamodule = SoftAdaptDataModule("my.db", num_train=3, num_val=2, num_test=1)
    datamodule.setup()
    assert "Au occur(s) in the test set but in no training structure" in caplog.text


# labels


def test_energies_alone():
    structures = [dataclasses.replace(s, forces=None, stress=None) for s in labelled_structures(10)]
    write_database("my.db", structures, "test")
    datamodule = SoftAdaptDataModule("my.db")
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert properties.energy in batch
    assert not {properties.forces, properties.stress, keys.stress_mask} & set(batch)
    assert training_targets(datamodule).forces is None


def test_missing_stress_is_masked():
    structures = labelled_structures(10)
    structures[4] = dataclasses.replace(structures[4], stress=None)
    write_database("my.db", structures, "test")
    datamodule = SoftAdaptDataModule("my.db", batch_size=20, num_train=8, num_val=1, num_test=1)
    datamodule.setup()
    batch = datamodule.dataset.batch(range(10))
    assert batch[keys.stress_mask].tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert not batch[properties.stress][4].any()


def test_structures_come_back_with_their_labels():
    datamodule = made()
    originals = labelled_structures(20)
    train = datamodule.train_dataset.structures()
    for structure, k in zip(train, datamodule.train_idx, strict=True):
        assert structure.energy == originals[k].energy
        assert np.array_equal(structure.stress, originals[k].stress)
        assert structure.group == originals[k].group


# SchNetPack's own transforms


def test_offsets_of_a_fixed_composition():
    """SchNetPack inverts a singular matrix here, and subtracts the mean twice."""
    structures = [s for s in labelled_structures(30) if s.n_atoms == 4]
    write_database("my.db", structures, "test")
    kwargs = {"is_extensive": True, "remove_mean": True}
    transform = RemoveOffsets("energy", **kwargs)
    datamodule = SoftAdaptDataModule(
        "my.db", num_train=6, num_val=2, num_test=2, splitting="random", transforms=[transform]
    )
    datamodule.setup()
    per_atom = [s.energy / 4 for s in datamodule.train_dataset.structures()]
    assert transform.mean.item() == pytest.approx(np.mean(per_atom), rel=1e-6)
    references = datamodule.get_atomrefs("energy", is_extensive=True)["energy"]
    assert references[29].item() == pytest.approx(references[79].item(), rel=1e-12)
    assert references[[29, 79]].sum().item() / 2 == pytest.approx(np.mean(per_atom), rel=1e-12)
    mean, _ = datamodule.get_stats("energy", True, True)
    assert mean.item() == pytest.approx(0.0, abs=1e-6)


def test_transforms_are_told_about_the_data_module():
    class Asking(Transform):
        def datamodule(self, value):
            self.mean, self.std = value.get_stats("energy", True, False)

        def forward(self, inputs):
            return inputs

    transform = Asking()
    datamodule = made(transforms=[transform])
    per_atom = np.array([s.energy / s.n_atoms for s in datamodule.train_dataset.structures()])
    assert transform.mean.item() == pytest.approx(per_atom.mean(), rel=1e-6)
    assert transform.std.item() == pytest.approx(per_atom.std(), rel=1e-4)


# descriptors from a store


def radial(cutoff=4.0):
    functions = [SymmetryFunction("G2", (z,), cutoff, 0.5) for z in (29, 79)]
    return Layout({29: functions, 79: functions[:1]})


LAYOUT = radial()


@pytest.fixture
def builds(monkeypatch):
    """Folders in which stores were opened or built.

    By plain torch: the kernels take long to compile and have tests of their own.
    """
    folders = []
    original = DescriptorStore.open_or_build.__func__

    def recorded(cls, folder, *args, **kwargs):
        folders.append(folder)
        return original(cls, folder, *args, **kwargs)

    monkeypatch.setattr(DescriptorStore, "open_or_build", classmethod(recorded))
    monkeypatch.setattr(Layout, "engine", lambda self, *args: ReferenceEngine(self))
    return folders


def with_store(**kwargs):
    """A data module for a model that reads no neighbour lists."""
    datamodule = made(**kwargs)
    datamodule.keep_neighbors = False
    return datamodule


def the_store(datamodule):
    (path,) = (Path(f"{datamodule.datapath}.descriptors")).glob("descriptors-*[0-9a-f]")
    return DescriptorStore(path)


def test_batches_carry_the_store_and_no_neighbours(builds, tmp_path):
    datamodule = with_store()
    assert datamodule.attach_descriptors(LAYOUT)
    assert datamodule.attach_descriptors(LAYOUT)  # once is enough
    assert builds == [tmp_path / "my.db.descriptors"]
    store = the_store(datamodule)
    assert (store.dtype, len(store)) == ("float32", 20)
    dataset = datamodule.train_dataset
    rows = np.arange(store.n_rows)[store.rows(datamodule.train_idx[2])]
    batch = dataset.batch([2, 0])
    assert np.array_equal(batch[keys.store_rows][: len(rows)], rows)
    assert np.array_equal(batch[keys.descriptors][: len(rows)], store.G[rows])
    assert np.array_equal(dataset[2][keys.descriptors], store.G[rows])
    for key in (properties.idx_i, properties.idx_j, properties.offsets):
        assert len(batch[key]) == len(dataset[2][key]) == 0
    assert batch[properties.offsets].dtype == batch[properties.R].dtype
    # the whole arrays, not copied
    again = dataset.batch([1])
    for key in store.tensors():
        assert batch[key].data_ptr() == again[key].data_ptr()
    assert np.array_equal(batch[keys.store_dg_dr], store.dg_dr)


def test_gathered_batches_carry_their_own_part_of_the_store(builds):
    """What leaves the process (GPU, workers)."""
    datamodule = with_store()
    datamodule.attach_descriptors(LAYOUT)
    whole, own = (datamodule.train_dataset.batch([3, 0, 2], gather=g) for g in (False, True))
    assert torch.equal(whole[keys.descriptors], own[keys.descriptors])
    rows = whole[keys.store_rows]
    assert torch.equal(own[keys.store_dg_dstrain], whole[keys.store_dg_dstrain][rows])
    first = whole[keys.store_block_first]
    blocks = torch.cat([torch.arange(first[r], first[r + 1]) for r in rows])
    assert torch.equal(own[keys.store_dg_dr], whole[keys.store_dg_dr][blocks])
    assert keys.store_rows not in own


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_decides_what_batches_carry(builds, num_workers):
    datamodule = with_store(num_workers=num_workers)
    datamodule.attach_descriptors(LAYOUT)
    batch = next(iter(datamodule.train_dataloader()))
    is_whole = len(batch[keys.store_dg_dstrain]) == len(datamodule.dataset.raw.values(properties.Z))
    assert is_whole == (num_workers == 0)


def test_no_neighbour_list_is_made_with_a_store(builds):
    class Forbidden(MatScipyNeighborList):
        def _build_neighbor_list(self, *_):
            raise AssertionError("a neighbour list was made")

    datamodule = with_store(transforms=[Forbidden(cutoff=3.0), CastTo32()])
    datamodule.attach_descriptors(LAYOUT)
    assert len(next(iter(datamodule.train_dataloader()))[properties.idx_i]) == 0
    datamodule.attach_descriptors(radial(3.5))
    assert len(builds) == 2


def test_one_store_is_kept_beside_a_database(builds):
    with_store(store_dtype="float64").attach_descriptors(LAYOUT)
    datamodule = with_store()
    datamodule.attach_descriptors(radial(3.5))
    assert the_store(datamodule).dtype == "float32"  # there is one
    other = with_store()
    other.attach_descriptors(LAYOUT)
    assert len(list(builds[0].iterdir())) == 2  # with the one that is in use
    assert keys.descriptors in datamodule.train_dataset.batch([0])


def test_the_store_can_be_switched_off(builds):
    datamodule = made(store=False)
    assert not datamodule.attach_descriptors(LAYOUT)
    assert builds == []
    assert len(next(iter(datamodule.train_dataloader()))[properties.idx_i]) > 0
    with pytest.raises(ValueError, match="store='maybe'"):
        SoftAdaptDataModule("my.db", store="maybe")


def test_without_a_store_second_order_steps_get_derivatives_computed_anew(builds):
    datamodule = with_store(store=False)
    task = SimpleNamespace(automatic_optimization=False)
    datamodule.trainer = SimpleNamespace(lightning_module=task)
    assert datamodule.attach_descriptors(LAYOUT)
    batch = datamodule.train_dataset.batch([0, 1])
    assert keys.store_dg_dr in batch
    assert keys.store_rows not in batch
    assert builds == []


class Rattle(Transform):
    """Moves atoms against each other."""

    def forward(self, inputs):
        inputs[properties.R] = inputs[properties.R] + 0.1 * torch.rand_like(inputs[properties.R])
        return inputs


def test_transforms_that_change_the_structure_rule_out_a_store(builds, caplog):
    transforms = [MatScipyNeighborList(cutoff=3.0), Rattle()]
    assert not made(transforms=copy.deepcopy(transforms)).attach_descriptors(LAYOUT)
    assert "descriptors are not stored" in caplog.text
    with pytest.raises(ValueError, match="store: true, but the transforms change the structures"):
        made(transforms=transforms, store=True).attach_descriptors(LAYOUT)
    rigid = [SubtractCenterOfGeometry(), WrapPositions(), CastTo32()]
    assert made(transforms=rigid).attach_descriptors(LAYOUT)


class ChangeOne(Transform):
    """Changes one structure: its positions, cell, elements, periodicity or number of atoms."""

    def __init__(self, key, index):
        super().__init__()
        self.key, self.index = key, index

    def forward(self, inputs):
        if inputs[properties.idx].item() == self.index:
            if self.key == properties.n_atoms:
                inputs[properties.n_atoms] -= 1
                for key in (properties.R, properties.Z, "forces"):
                    inputs[key] = inputs[key][1:]
            else:
                first = inputs[self.key].view(-1)[:1]
                change = {properties.Z: first + 1, properties.pbc: ~first.bool()}
                first[:] = change.get(self.key, first + 0.01)
        return inputs


KEYS = [properties.R, properties.cell, properties.Z, properties.pbc, properties.n_atoms]


@pytest.mark.parametrize("subset", ["train", "val", "test"])
@pytest.mark.parametrize("key", KEYS)
def test_one_changed_structure_anywhere_rules_out_a_store(subset, key):
    splits = {"train": range(20), "val": [20, 21], "test": [22, 23]}
    np.savez("split.npz", **{f"{name}_idx": list(rows) for name, rows in splits.items()})
    change = [ChangeOne(key, splits[subset][-1])]
    transforms = {f"{name}_transforms": change if name == subset else [] for name in splits}
    datamodule = made(24, num_train=20, num_val=2, num_test=2, **transforms)
    assert not datamodule.attach_descriptors(LAYOUT)


def test_the_store_holds_each_structures_own_descriptors(builds):
    """Whatever subset and order they are read in."""
    datamodule = with_store(store_dtype="float64")
    direct = made(store=False, transforms=[MatScipyNeighborList(cutoff=4.0)], split_file=None)
    assert datamodule.attach_descriptors(LAYOUT)
    batch = datamodule.train_dataset.batch([4, 1, 6])
    pairs = direct.train_dataset.batch([4, 1, 6])
    assert torch.equal(batch[properties.idx], pairs[properties.idx])
    idx_i, idx_j = pairs[properties.idx_i], pairs[properties.idx_j]
    r_ij = pairs[properties.R][idx_j] - pairs[properties.R][idx_i] + pairs[properties.offsets]
    engine = ReferenceEngine(LAYOUT)
    values = engine.values(engine.prepare(r_ij, idx_i, idx_j, pairs[properties.Z]))
    # float64 on both sides; sums over neighbours in another order
    assert torch.allclose(batch[keys.descriptors], values, rtol=1e-12, atol=1e-14)


def test_a_store_that_cannot_be_written_is_done_without(builds, monkeypatch, caplog):
    reference = with_store(store_dir="kept")
    assert reference.attach_descriptors(LAYOUT)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    datamodule = with_store()
    assert datamodule.attach_descriptors(LAYOUT)
    assert "computed anew for every batch: the descriptor store needs 0.00 GB" in caplog.text
    assert not list(Path(f"{datamodule.datapath}.descriptors").iterdir())
    # the same batches, some in advance, and as often as one likes
    for _ in range(2):
        batches = list(datamodule.train_dataloader())
        assert len(batches) == len(datamodule.train_dataloader()) > 1
        for batch, index in zip(batches, range(len(batches)), strict=True):
            rows = [datamodule.train_idx.index(int(k)) for k in batch[properties.idx]]
            expected = reference.train_dataset.batch(rows, gather=True)
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[key], expected[key]) for key in batch), index
    sample = datamodule.train_dataset[1][keys.descriptors]
    assert torch.equal(sample, reference.train_dataset[1][keys.descriptors])
    with pytest.raises(OSError, match=r"needs 0\.00 GB"):
        made(store=True).attach_descriptors(LAYOUT)


def test_the_budget_of_a_store(builds, caplog):
    caplog.set_level(logging.INFO)
    full = with_store(store_dir="full")
    full.attach_descriptors(LAYOUT)
    (path,) = builds[0].glob("descriptors-*")
    store = DescriptorStore(path)
    small = sum(x.nbytes for x in (store.block_first, store.structure_first, store.columns))
    size = store.nbytes - small
    exact = with_store(store_dir="exact", store_budget=size)
    exact.attach_descriptors(LAYOUT)
    assert exact.train_dataset.batch([0])[keys.store_dg_dr].dtype == torch.float32
    half = with_store(store_dir="half", store_budget=size - 1)
    half.attach_descriptors(LAYOUT)
    assert half.train_dataset.batch([0])[keys.store_dg_dr].dtype == torch.int16
    assert "float16 of 0.00 GB (float32) or 0.00 GB (float16), and data.store_budget" in caplog.text
    none = with_store(store_dir="none", store_budget="1 kB")
    none.attach_descriptors(LAYOUT)
    assert "data.store_budget allows 0.00 GB; data.store_budget=0.01GB would do" in caplog.text
    assert keys.store_rows not in none.train_dataset.batch([0])
    with pytest.raises(OSError, match=r"data\.store_budget allows"):
        with_store(store_dir="none", store_budget=0, store=True).attach_descriptors(LAYOUT)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (0, 0), (3e9, 3 * 10**9), ("20GB", 20 * 10**9), ("1.5 tb", 1500 * 10**9)],
)
def test_sizes_are_numbers_or_have_units(given, expected):
    assert SoftAdaptDataModule("my.db", store_budget=given).store_budget == expected


@pytest.mark.parametrize("given", ["20GiB", "-1", "lots", True])
def test_other_sizes_are_refused(given):
    with pytest.raises(ValueError, match=f"data.store_budget={given!r}: give a number of bytes"):
        SoftAdaptDataModule("my.db", store_budget=given)


def test_an_error_in_a_batch_made_in_advance_comes_through():
    def batches():
        yield 1
        raise ValueError("broken")

    ahead = _ahead(batches())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_random_transforms_are_not_cached():
    datamodule = made(transforms=[Rattle()], cache_transforms=False)
    first, second = datamodule.train_dataset[0], datamodule.train_dataset[0]
    assert not torch.equal(first[properties.R], second[properties.R])
    batches = [datamodule.train_dataset.batch([0])[properties.R] for _ in range(2)]
    assert not torch.equal(*batches)
    cached = made(transforms=[Rattle()])
    assert torch.equal(cached.train_dataset[0][properties.R], cached.train_dataset[0][properties.R])
