"""Train a potential, look at its errors, predict other structures.

    python -m schnetpack_softadapt.examples.train my.db more.extxyz

`spk-softadapt import` writes such a database. Settings follow as for `spktrain`.
"""

import sys

import schnetpack_softadapt as spksa

__all__ = ["main"]


def main(database: str, structures: str, *settings: str) -> None:
    """Train with the recipe for the data; the same call again goes on."""
    run = spksa.train(database, *settings, weighting="likelihood", seed=1)
    print("RMSE of the forces, meV/Ang:", run.metrics["test"]["forces_rmse_meV_per_Ang"])
    print("loss of the best epoch:", run.history["val_loss"].min())
    print("tables and pictures:", run.report())

    predictions = spksa.predict(run.model, structures, out="predictions.extxyz")
    print(predictions)  # errors, if the structures have labels
    print("energies, eV:", predictions.energy)


if __name__ == "__main__":
    main(*sys.argv[1:])
