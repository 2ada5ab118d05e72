"""Training without a store equals training with one, for every optimizer; in half precision too."""

import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from ase.build import bulk
from ase.calculators.emt import EMT
from schnetpack.transform import CastTo32, MatScipyNeighborList

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers.kalman import KalmanFilter
from schnetpack_softadapt.training.optimizers.spring import Spring
from schnetpack_softadapt.training.rules.softadapt import SoftAdapt
from schnetpack_softadapt.training.task import SoftAdaptTask

OPTIMIZERS = {
    torch.optim.AdamW: {"lr": 1e-2},
    KalmanFilter: {"lr": 0.5, "fraction": 0.5, "min_groups": 2},
    Spring: {"lr": 0.5},
}


def data(database, tmp_path, source, **kwargs):
    modes = {
        "store": {"store": True},
        "float16": {"store": True, "store_dtype": "float16"},
        "recompute": {"store_budget": 0, "store_dir": str(tmp_path / "empty")},
    }
    sizes = {"batch_size": 4, "num_train": 10, "num_val": 4, "num_test": 2, **kwargs}
    return SoftAdaptDataModule(
        str(database),
        **sizes,
        num_workers=0,
        splitting="random",
        split_file=str(tmp_path / "split.npz"),
        transforms=[MatScipyNeighborList(cutoff=toy_runs.CUTOFF), CastTo32()],
        **{"store_dir": str(tmp_path / source), **modes[source]},
    )


class Start(pl.Callback):
    """The state before the first step."""

    def on_train_start(self, trainer, task):
        self.state = {key: value.clone() for key, value in task.state_dict().items()}


def fit(optimizer, datamodule, folder, epochs=3, ckpt=None, callbacks=()):
    folder.mkdir(exist_ok=True)
    task = SoftAdaptTask(
        toy_runs.acsf_model(),
        [EnergyLoss(), ForcesLoss(), StressLoss()],
        optimizer_cls=optimizer,
        optimizer_args=OPTIMIZERS[optimizer],
        weighting=SoftAdapt(beta=1.0),
    )
    pl.seed_everything(3, verbose=False)
    trainer = toy_runs.toy_trainer(folder, epochs, callbacks=list(callbacks) or None)
    trainer.fit(task, datamodule=datamodule, ckpt_path=ckpt)
    return {key: value.clone() for key, value in task.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_recomputed_or_halved_equals_stored(database, tmp_path, optimizer):
    found, start = {}, Start()
    for source in ("store", "recompute", "float16"):
        datamodule = data(database, tmp_path, source)
        found[source] = fit(optimizer, datamodule, tmp_path / f"run_{source}", callbacks=[start])
        batch = next(iter(datamodule.val_dataloader()))
        # Adam needs no Jacobian, and is not made to pay for it
        with_jacobian = source != "recompute" or optimizer is not torch.optim.AdamW
        assert (keys.store_dg_dr in batch) == with_jacobian
        assert (keys.store_rows in batch) == (source != "recompute")
    n_trained = 0
    for key, stored in found["store"].items():
        if not stored.is_floating_point() or torch.equal(stored, start.state[key]):
            continue
        n_trained += 1
        moved = (stored - start.state[key]).abs().max()
        # three roads: the store's own numbers, sums of float32 over pairs, 1/65534 of a derivative
        tolerance = 0.0 if optimizer is not torch.optim.AdamW else 2e-4
        assert (found["recompute"][key] - stored).abs().max() <= tolerance * moved, key
        assert (found["float16"][key] - stored).abs().max() <= 5e-3 * moved, key
    assert n_trained >= 4


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Spring])
def test_resumes_to_the_bit(database, tmp_path, optimizer):
    whole = fit(optimizer, data(database, tmp_path, "recompute"), tmp_path / "whole", 4)
    parts = tmp_path / "parts"
    fit(optimizer, data(database, tmp_path, "recompute"), parts, 2)
    last = str(parts / "checkpoints" / "last.ckpt")
    resumed = fit(optimizer, data(database, tmp_path, "recompute"), parts, 4, last)
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


@pytest.mark.parametrize("optimizer", [KalmanFilter, Spring])
def test_batches_without_one_of_the_elements(tmp_path, optimizer):
    """Pure crystals beside an alloy, one structure a batch."""
    structures = []
    for symbol in ("Cu", "Au", "Cu", "Au"):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.1, seed=len(structures))
        atoms.calc = EMT()
        stress = atoms.get_stress(voigt=False)
        labels = atoms.get_potential_energy(), atoms.get_forces(), stress
        cell = atoms.cell.array
        structures.append(Structure(atoms.numbers, atoms.positions, cell, atoms.pbc, *labels))
    write_database(tmp_path / "pure.db", structures, provenance="EMT")
    sizes = {"batch_size": 1, "num_train": 3, "num_val": 1, "num_test": None}
    datamodule = data(tmp_path / "pure.db", tmp_path, "store", **sizes)
    state = fit(optimizer, datamodule, tmp_path / "run", 2)
    assert all(x.isfinite().all() for x in state.values() if x.is_floating_point())
