"""A small potential, EMT data and runs of them, for the tests of training."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from schnetpack import atomistic, properties
from schnetpack.data import ASEAtomsData, AtomsDataModule
from schnetpack.model import NeuralNetworkPotential
from schnetpack.train import ReduceLROnPlateau
from schnetpack.transform import CastTo32, MatScipyNeighborList

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress
from schnetpack_softadapt.training import optimizers
from schnetpack_softadapt.training.callbacks import HistoryWriter
from schnetpack_softadapt.training.checkpoints import AveragedWeights, RunCheckpoint
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.results import ResultsWriter
from schnetpack_softadapt.training.rules import SoftAdapt
from schnetpack_softadapt.training.task import SoftAdaptTask

CUTOFF = 4.0


def emt_structures(n, seed=0, sizes=((1, 1, 1), (2, 1, 1))):
    """Rattled and strained Cu-Au cells of 4 and 8 atoms with EMT labels."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True, a=3.7) * sizes[k % len(sizes)]
        atoms.numbers[rng.permutation(len(atoms))[: 1 + k % 3]] = 79
        strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        atoms.calc = EMT()
        out.append(atoms)
    return out


def write_database(path, structures, stress=True, forces=True, masked=(), weights=None):
    """A database as SchNetPack wants it, written by SchNetPack."""
    units = {"energy": "eV"}
    if forces:
        units["forces"] = "eV/Ang"
    if stress:
        units |= {"stress": "eV/Ang/Ang/Ang", "stress_mask": "1"}
    if weights is not None:
        units["structure_weight"] = "1"
    data = ASEAtomsData.create(str(path), distance_unit="Ang", property_unit_dict=units)
    labels = []
    for k, atoms in enumerate(structures):
        label = {"energy": np.array([atoms.get_potential_energy()])}
        if forces:
            label["forces"] = atoms.get_forces()
        if stress:
            value = atoms.get_stress(voigt=False)[None]
            label["stress"] = np.zeros_like(value) if k in masked else value
            label["stress_mask"] = np.array([0.0 if k in masked else 1.0])
        if weights is not None:
            label["structure_weight"] = np.array([float(weights[k])])
        labels.append(label)
    data.add_systems(property_list=labels, atoms_list=structures)
    group = [k % 2 for k in range(len(structures))]
    data.update_metadata(group_names=["small", "large"], groups_ids={"group": group})
    return path


class ToyRepresentation(torch.nn.Module):
    """Six radial symmetry functions for each element of the neighbour."""

    def __init__(self, elements=(29, 79)):
        super().__init__()
        self.elements = elements
        self.cutoff = CUTOFF
        self.n_atom_basis = 6 * len(elements) + 1
        self.register_buffer("centers", torch.linspace(1.5, CUTOFF, 6))

    def forward(self, inputs):
        r = torch.linalg.vector_norm(inputs[properties.Rij], dim=1)
        cut = 0.5 * (torch.cos(torch.pi * r / CUTOFF) + 1.0) * (r < CUTOFF)
        radial = torch.exp(-4.0 * (r[:, None] - self.centers) ** 2) * cut[:, None]
        z = inputs[properties.Z]
        channels = [radial * (z[inputs[properties.idx_j]] == e)[:, None] for e in self.elements]
        values = radial.new_zeros((len(z), self.n_atom_basis - 1))
        values = values.index_add(0, inputs[properties.idx_i], torch.cat(channels, dim=1))
        own = (z == self.elements[0]).to(values.dtype)[:, None]
        inputs["scalar_representation"] = torch.cat([values, own], dim=1)
        return inputs


def toy_model(stress=True, forces=True, seed=0):
    """A Behler-Parrinello-like model of stock modules."""
    torch.manual_seed(seed)
    representation = ToyRepresentation()
    outputs = [
        atomistic.Atomwise(n_in=representation.n_atom_basis, n_hidden=8, output_key="energy")
    ]
    if forces or stress:
        outputs.append(atomistic.Forces(calc_forces=forces, calc_stress=stress))
    return NeuralNetworkPotential(
        representation,
        input_modules=[atomistic.Strain(), atomistic.PairwiseDistances()],
        output_modules=outputs,
    )


def acsf_model(seed=0, select=None, **networks):
    """A small potential of ours, which asks the data module for stored descriptors.

    select: so many of the 12 functions are chosen; on every rank the same.
    networks: arguments in place of two hidden layers.
    """
    torch.manual_seed(seed)
    return DescriptorPotential(
        representation=ACSF(
            CUTOFF, grid={"n_radial": 3, "n_angular_widths": 1, "zetas": [1]}, select=select
        ),
        output_modules=[
            ElementalAtomwise(**(networks or {"n_hidden": [4, 3]})),
            ForcesAndStress(True, True),
        ],
    )


def toy_data(path, n_train=10, n_val=4, n_test=2, batch_size=4, stock=False, **kwargs):
    """Our data module on a database, or SchNetPack's own."""
    cls = AtomsDataModule if stock else SoftAdaptDataModule
    if not stock:
        kwargs = {"splitting": "random", "store": False, **kwargs}
    return cls(
        str(path),
        batch_size=batch_size,
        num_train=n_train,
        num_val=n_val,
        num_test=n_test,
        num_workers=0,
        transforms=[MatScipyNeighborList(cutoff=CUTOFF), CastTo32()],
        **kwargs,
    )


def components(stress=True, forces=True, **kwargs):
    """The three components."""
    out = [EnergyLoss(**kwargs)]
    if forces:
        out.append(ForcesLoss(**kwargs))
    if stress:
        out.append(StressLoss(**kwargs))
    return out


def toy_task(model=None, outputs=None, lr=1e-2, **kwargs):
    """The task under test on the toy model."""
    kwargs.setdefault("weighting", SoftAdapt(beta=1.0))
    return SoftAdaptTask(
        toy_model() if model is None else model,
        components() if outputs is None else outputs,
        optimizer_args={"lr": lr},
        **kwargs,
    )


def toy_trainer(folder, epochs, callbacks=None, **kwargs):
    """A trainer with the callbacks of our configs, quiet."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    folder = Path(folder)
    if callbacks is None:
        callbacks = [
            RunCheckpoint(str(folder / "checkpoints"), model_path=str(folder / "best_model")),
            AveragedWeights(0.9),
            HistoryWriter(str(folder / "history.csv")),
            ResultsWriter(str(folder)),
        ]
    kwargs = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "log_every_n_steps": 1,
        **kwargs,
    }
    return pl.Trainer(
        default_root_dir=str(folder), max_epochs=epochs, callbacks=callbacks, **kwargs
    )


def plateau_task(**kwargs):
    """A task whose learning rate follows val_loss."""
    return toy_task(
        scheduler_cls=ReduceLROnPlateau,
        scheduler_args={"mode": "min", "factor": 0.5, "patience": 0, "threshold": 0.2},
        scheduler_monitor="val_loss",
        **kwargs,
    )


def run(folder, database, epochs, seed=1, data=None, task=None, **trainer_args):
    """Train as `spktrain` does, from `checkpoints/last.ckpt` if there is one."""
    folder = Path(folder)
    pl.seed_everything(seed, verbose=False)
    datamodule = toy_data(database, split_file=str(folder / "split.npz"), **(data or {}))
    task = task or plateau_task()
    trainer = toy_trainer(folder, epochs, **trainer_args)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(task, datamodule=datamodule, ckpt_path=str(last) if last.exists() else None)
    return trainer, task, datamodule


def history(folder):
    """history.csv as a list of rows of floats."""
    with open(Path(folder) / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


class ShortLBFGS(torch.optim.LBFGS):
    """Few enough evaluations of a batch that differences of rounding stay small."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr, max_iter=4)


def run_as_told(
    folder, database, epochs, ranks=1, model="toy", losses=None, optimizer="SGD", test=False
):
    """A run in the working directory, of the same global batches on any number of ranks.

    Args:
        folder: of the run.
        database: file.
        epochs: of the whole run; it goes on from the last checkpoint.
        ranks: processes.
        model: "toy", or "acsf" and "linear" with stored descriptors.
        losses: of energy, forces and stress, separated by commas.
        optimizer: with losses: plain SGD, since Adam would not notice a gradient of the wrong
            length, or one of ours.
        test: evaluate the best epoch at the end, as `spktrain` does.
    """
    task = None
    data = {"batch_size": 4 // ranks, "n_train": 11, "n_val": 5}
    if model != "toy":
        data |= {"store": True, "store_dir": str(Path(folder) / "descriptors")}
    if losses is not None:
        kinds = zip((EnergyLoss, ForcesLoss, StressLoss), losses.split(","), strict=True)
        models = {
            "toy": toy_model,
            "acsf": lambda: acsf_model(select=10),
            "linear": lambda: acsf_model(n_hidden=[], dtype="float64"),
        }
        task = toy_task(
            models[model](),
            [kind(loss=loss) for kind, loss in kinds],
            optimizer_cls={"SGD": torch.optim.SGD, "LBFGS": ShortLBFGS}.get(optimizer)
            or getattr(optimizers, optimizer),
            lr={"SGD": 1e-2, "LeastSquares": 1.0}.get(optimizer, 0.2),
        )
    trainer_args = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    trainer, task, datamodule = run(folder, database, epochs, data=data, task=task, **trainer_args)
    if test:
        trainer.test(task, datamodule=datamodule, ckpt_path="best", verbose=False)
