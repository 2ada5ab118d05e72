"""Adaptive loss weights on SchNetPack's PaiNN, in Python without Hydra.

    python -m schnetpack_softadapt.examples.painn my.db --epochs 100

The database is one that SchNetPack or `spk-softadapt import` wrote, with `energy` and `forces`.
Everything here but the task, two callbacks and the calculator is SchNetPack's own.
"""

import argparse

import ase.db
import pytorch_lightning as pl
import torch
from schnetpack import atomistic, nn, representation, transform
from schnetpack.data import AtomsDataModule
from schnetpack.model import NeuralNetworkPotential
from schnetpack.task import ModelOutput
from schnetpack.train import ReduceLROnPlateau

from schnetpack_softadapt import SoftAdaptCalculator, SoftAdaptTask
from schnetpack_softadapt.training.callbacks import HistoryWriter
from schnetpack_softadapt.training.checkpoints import RunCheckpoint

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Train, then predict the first structure of the database with the best model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("database")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Ang")
    args = parser.parse_args(arguments)
    pl.seed_everything(1)

    data = AtomsDataModule(
        args.database,
        batch_size=10,
        num_train=0.8,
        num_val=0.1,
        num_test=0.1,
        num_workers=0,
        transforms=[
            transform.RemoveOffsets("energy", remove_mean=True),
            transform.MatScipyNeighborList(args.cutoff),
            transform.CastTo32(),
        ],
    )
    model = NeuralNetworkPotential(
        representation.PaiNN(
            n_atom_basis=args.features,
            n_interactions=3,
            radial_basis=nn.GaussianRBF(20, args.cutoff),
            cutoff_fn=nn.CosineCutoff(args.cutoff),
        ),
        input_modules=[atomistic.PairwiseDistances()],
        output_modules=[
            atomistic.Atomwise(n_in=args.features, output_key="energy"),
            atomistic.Forces(),
        ],
        postprocessors=[transform.CastTo64(), transform.AddOffsets("energy", add_mean=True)],
    )
    # as for SchNetPack's AtomisticTask; without weights, which follow the labels and the losses
    task = SoftAdaptTask(
        model,
        outputs=[
            ModelOutput("energy", loss_fn=torch.nn.MSELoss(), metrics={}),
            ModelOutput("forces", loss_fn=torch.nn.MSELoss(), metrics={}),
        ],
        optimizer_args={"lr": 1e-3},
        scheduler_cls=ReduceLROnPlateau,
        scheduler_args={"factor": 0.5, "patience": 20},
        scheduler_monitor="val_loss",
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        callbacks=[RunCheckpoint(), HistoryWriter()],
        logger=False,
        inference_mode=False,
    )
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, ckpt_path="best")

    atoms = ase.db.connect(args.database).get_atoms(1)
    atoms.calc = SoftAdaptCalculator("best_model", stress_key=None)
    print("energy of the first structure, eV:", atoms.get_potential_energy())


if __name__ == "__main__":
    main()
