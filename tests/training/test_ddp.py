"""Two CPU ranks against one with the same global batch."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import toy_runs
from processes import start_ranks


def two_ranks(folder, *runs):
    """Train runs, of folders and options, one after the other as two ranks; what each printed."""
    return start_ranks(train, folder, runs)


def train(runs):
    for folder, options in runs:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        toy_runs.run_as_told(folder, ranks=2, **options)


def one_rank(folder, monkeypatch, **options):
    folder.mkdir()
    monkeypatch.chdir(folder)
    toy_runs.run_as_told(folder, **options)


def same_histories(two, one):
    two, one = toy_runs.history(two), toy_runs.history(one)
    assert [row["epoch"] for row in two] == [0, 1, 2, 3]
    for a, b in zip(two, one, strict=True):
        for key in b:
            if key not in ("wall_s", "epoch"):
                # float32 gradients summed in another order, amplified by four epochs; rates are
                # differences of losses and lose digits
                expected = pytest.approx(b[key], rel=1e-4, abs=1e-5)
                assert a[key] == expected, (b["epoch"], key)


def store_files(folder):
    """Names and times of the files of the stores in a folder."""
    files = (folder / "descriptors").rglob("*.npy")
    return {str(path): path.stat().st_mtime_ns for path in files}


CASES = {
    "SGD": {"losses": "rmse,mse,huber"},
    "Spring": {"model": "acsf", "losses": "mse,huber,mse"},
    "KalmanFilter": {"model": "acsf", "losses": "mse,huber,mse"},
    "LBFGS": {"model": "acsf", "losses": "mse,huber,mse"},
    "LeastSquares": {"model": "linear", "losses": "mse,mse,mse"},
}


def test_two_ranks_take_the_steps_of_one(database, tmp_path, monkeypatch):
    """Structures have 4 and 8 atoms, one has no stress: a mean of means would be wrong. 11 and 5
    structures do not divide by 2: samplers repeat one, which must not count.

    The sums of the epoch must be those of both ranks, and DDP, which averages gradients over
    ranks, must step along the gradient of the global batch, also of a loss that is a root. Of
    second-order steps the rows of the Jacobian are spread over the ranks: counts of the losses,
    J J^T or J^T J, the step and its limit are those of all rows. L-BFGS evaluates a batch several
    times, on all ranks at the same parameters. Least squares have the factors of both ranks
    together.
    """
    runs = {
        name: (tmp_path / name, {"database": database, "epochs": 4, "optimizer": name, **options})
        for name, options in CASES.items()
    }
    two_ranks(tmp_path, *runs.values())
    for name, (two, options) in runs.items():
        one = tmp_path / f"{name}_one"
        one_rank(one, monkeypatch, **options)
        same_histories(two, one)
        losses = [row["train_loss"] for row in toy_runs.history(two)]
        assert losses[-1] < losses[0] * (1.0 if name in ("SGD", "LeastSquares") else 0.5), name


def test_batch_descriptors_resume_and_results_on_two_ranks(database, tmp_path, monkeypatch):
    """Two ranks that share a store, stop after two epochs, go on and write their results, against
    one rank that does it in one go."""
    two, one = tmp_path / "two", tmp_path / "one"
    options = {"database": database, "model": "acsf", "losses": "mse,mse,mse"}
    two_ranks(tmp_path, (two, {**options, "epochs": 2}))
    built = store_files(two)
    assert built
    printed = two_ranks(tmp_path, (two, {**options, "epochs": 4, "test": True}))
    one_rank(one, monkeypatch, epochs=4, test=True, **options)
    same_histories(two, one)
    assert store_files(two) == built, "the store was built once, by one rank"
    assert "".join(printed).count("RMSE (MAE)") == 1, "one rank prints the table"
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (two, one)]
    for subset in ("train", "val", "test"):
        assert metrics[0][subset] == pytest.approx(metrics[1][subset], rel=1e-4)
        with (
            np.load(two / "predictions" / f"{subset}.npz") as a,
            np.load(one / "predictions" / f"{subset}.npz") as b,
        ):
            assert set(a) == set(b)
            assert a["index"].tolist() == b["index"].tolist()  # each structure once, none missing
            for key in a:
                if a[key].dtype.kind == "f":
                    np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-5)
    assert not list(Path(tmp_path).rglob("*.tmp"))
