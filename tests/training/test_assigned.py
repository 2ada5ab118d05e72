"""Training by the assignments and weights that `spk-softadapt set` writes into a database."""

import numpy as np
import pytest
import toy_runs
from ase.db import connect

from schnetpack_softadapt.cli.main import main

FRACTIONS = {"n_train": 0.7, "n_val": 0.2, "n_test": 0.1, "splitting": "auto"}


def test_a_run_follows_the_database_and_notices_its_changes(tmp_path):
    path = toy_runs.write_database(tmp_path / "my.db", toy_runs.emt_structures(12))
    with connect(path) as database:
        # labels that spoil a fit
        row = database.get(id=3)
        data = {**row.data, "energy": row.data["energy"] + 1e4}
        database.update(3, data=data)
    for args in (("assign", "test", "--rows", "9:"), ("assign", "val", "--rows", "0", "5")):
        assert main(["set", str(path), *args]) == 0
    losses = []
    for weight in (1, 0):
        assert main(["set", str(path), "weight", str(weight), "--rows", "2"]) == 0
        folder = tmp_path / f"run{weight}"
        _, _, data = toy_runs.run(folder, path, 2, data=FRACTIONS)
        assert (data.train_idx, data.val_idx) == ([1, 2, 3, 4, 6, 7, 8], [0, 5])
        assert data.test_idx == [9, 10, 11]
        losses.append([row["val_energy_loss"] for row in toy_runs.history(folder)])
    # measured by the spread of the training set, which holds 1e4 eV of one structure, or does not
    assert np.max(losses[0]) < 1e-3
    assert np.min(losses[1]) > 0.1
    assert main(["set", str(path), "weight", "0.5", "--rows", "2"]) == 0
    with pytest.raises(ValueError, match="assignments_and_weights"):
        toy_runs.run(folder, path, 3, data=FRACTIONS)
