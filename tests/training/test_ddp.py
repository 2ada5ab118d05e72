"""Two CPU ranks against one with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_runs


def test_two_ranks_give_the_losses_and_weights_of_one(database, tmp_path):
    """Structures have 4 and 8 atoms, one has no stress: a mean of means would be wrong. 11 and 5
    structures do not divide by 2: samplers repeat one, which must not count.

    The sums of the epoch must be those of both ranks, and DDP, which averages gradients over
    ranks, must step along the gradient of the global batch, also of a loss that is a root.
    """
    histories = []
    for ranks in (2, 1):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        command = [sys.executable, toy_runs.__file__, str(folder), f"database={database}"]
        options = [f"ranks={ranks}", "epochs=4", "losses=rmse,mse,huber"]
        done = subprocess.run(
            [*command, *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        histories.append(toy_runs.history(folder))
    two, one = histories
    assert [row["epoch"] for row in two] == [0, 1, 2, 3]
    for a, b in zip(two, one, strict=True):
        for key in b:
            if key not in ("wall_s", "epoch"):
                # float32 gradients summed in another order, amplified by four epochs; rates are
                # differences of losses and lose digits
                expected = pytest.approx(b[key], rel=1e-4, abs=1e-5)
                assert a[key] == expected, (b["epoch"], key)
    assert not list(Path(tmp_path).rglob("*.tmp"))
