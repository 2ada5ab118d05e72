"""Settings by a derivative-free optimizer: the path, what stops it, and going on."""

import json
import math
import os
import signal
import sys
import time

import numpy as np
import pytest
from processes import start

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.cli.tune import Parameter, Tuning, read_tuning, tune


def toy_errors(overrides, run):
    """Smallest, 3 and 5, at cutoff 5.2 and prior 8; the cheaper error of energy is elsewhere."""
    settings = dict(text.split("=") for text in overrides if "=" in text)
    u, v = float(settings["cutoff"]) - 5.2, math.log(float(settings["+prior"]) / 8.0)
    bowl = u * u + 0.3 * u * v + 0.5 * v * v
    return {"energy": 3.0 * math.exp(bowl + v), "forces": 5.0 * math.exp(bowl - v), "stress": 7.0}


def toy_tuning(**settings):
    return Tuning(
        ["x"],
        {
            "cutoff": {"low": 4, "high": 7, "start": 4.4},
            "+prior": {"low": 0.1, "high": 100, "log": True},
        },
        **{"evaluations": 40, **settings},
    )


def fits(folder):
    return json.loads((folder / "fits.json").read_text())["fits"]


@pytest.mark.parametrize("optimizer", ["cobyqa", "nelder-mead", "optuna"])
def test_finds_the_smallest_product_of_errors(optimizer, tmp_path):
    if optimizer == "optuna":
        pytest.importorskip("optuna", reason="the optional package optuna is not installed")
    text = tune(toy_tuning(optimizer=optimizer, evaluations=60), tmp_path, toy_errors)
    found = fits(tmp_path)
    assert len(found) <= 60
    assert found[0]["settings"] == pytest.approx([4.4, math.sqrt(10.0)], rel=1e-5)
    products = [np.prod(list(fit["errors"].values())) for fit in found]
    cutoff, prior = found[int(np.argmin(products))]["settings"]
    near = 0.5 if optimizer == "optuna" else 0.02
    assert cutoff == pytest.approx(5.2, abs=near)
    assert math.log(prior / 8.0) == pytest.approx(0.0, abs=2 * near)
    assert text.endswith(f"cutoff={cutoff} +prior={prior}")
    rows = (tmp_path / "path.csv").read_text().splitlines()
    assert rows[0] == 'fit,cutoff,+prior,"energy, meV/atom","forces, meV/Å","stress, MPa",objective'
    assert rows[1].endswith(",0.0000") or rows[1].endswith(",+0.0000")
    # the logarithm of the product, not of the sum, a third of it for three errors
    last = float(rows[-1].rsplit(",", 1)[1])
    assert last == pytest.approx(math.log(products[-1] / products[0]) / 3, abs=1e-4)
    assert (tmp_path / "path.png").stat().st_size > 10_000


def test_weights_of_the_objective(tmp_path):
    """Of the energy alone: its minimum has another prior."""
    tune(toy_tuning(objective={"energy": 1.0}), tmp_path, toy_errors)
    best = min(fits(tmp_path), key=lambda fit: fit["errors"]["energy"])
    assert list(best["errors"]) == ["energy"]
    # d/dv and d/du of u^2 + 0.3 u v + v^2 / 2 + v vanish
    v = -1.0 / (1.0 - 0.045)
    assert math.log(best["settings"][1] / 8.0) == pytest.approx(v, abs=0.05)
    assert best["settings"][0] == pytest.approx(5.2 - 0.15 * v, abs=0.02)


def test_killed_and_continued_it_is_the_same_path(tmp_path):
    tune(toy_tuning(evaluations=12), tmp_path / "whole", toy_errors)

    def killed(overrides, run):
        if run.name == "fit_0005":
            os.kill(os.getpid(), signal.SIGKILL)
        return toy_errors(overrides, run)

    process = start(tune, toy_tuning(evaluations=12), "parts", killed, folder=tmp_path)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert len(fits(tmp_path / "parts")) == 5
    further = []

    def fit(overrides, run):
        further.append(run.name)
        return toy_errors(overrides, run)

    tune(toy_tuning(evaluations=12), tmp_path / "parts", fit)
    assert fits(tmp_path / "parts") == fits(tmp_path / "whole")
    assert further == [f"fit_{k:04d}" for k in range(5, 12)]  # none twice
    # more of them extend the path
    tune(toy_tuning(evaluations=14), tmp_path / "parts", toy_errors)
    assert fits(tmp_path / "parts")[:12] == fits(tmp_path / "whole")
    assert len(fits(tmp_path / "parts")) == 14
    other = toy_tuning()
    other.train = ["y"]
    with pytest.raises(ValueError, match="other train: choose another --out"):
        tune(other, tmp_path / "parts", toy_errors)


def test_whole_numbers_are_not_fitted_twice(tmp_path):
    tuning = Tuning(["x"], {"n": {"low": 1, "high": 20, "integer": True}}, evaluations=99)
    tune(tuning, tmp_path, lambda o, run: {"energy": 1.0 + (int(o[1][2:]) - 15) ** 2})
    settings = [fit["settings"][0] for fit in fits(tmp_path)]
    assert len(settings) == len(set(settings)) <= 20
    assert min(abs(n - 15) for n in settings) <= 1  # it sees slopes, not numbers


def test_a_fit_that_fails_is_the_worst_and_the_first_must_not(tmp_path, caplog):
    def fit(overrides, run):
        errors = toy_errors(overrides, run)
        if float(overrides[1].split("=")[1]) > 5.0:
            raise ValueError("the loss of forces is not finite")
        return errors

    tune(toy_tuning(evaluations=12), tmp_path / "a", fit)
    failed = [f for f in fits(tmp_path / "a") if f["errors"] is None]
    assert failed
    assert failed[0]["reason"] == "the loss of forces is not finite"
    assert "the loss of forces is not finite" in caplog.text
    rows = (tmp_path / "a/path.csv").read_text().splitlines()[1:]
    values = [float(row.rsplit(",", 1)[1]) for row in rows]
    k = fits(tmp_path / "a").index(failed[0])
    assert values[k] == pytest.approx(max(values[:k]) + 1.0, abs=1e-4)
    for bad in ({"energy": math.nan}, {"energy": 0.0}, {}):
        with pytest.raises(ValueError, match="no finite validation errors"):
            tune(toy_tuning(), tmp_path / "b", lambda o, run, bad=bad: bad)
    assert not (tmp_path / "b/fits.json").exists()


def test_optimizers_that_are_not_there(tmp_path, monkeypatch, caplog):
    def older(solver, method, disp):
        if method == "COBYQA":
            raise ValueError("Unknown solver")

    monkeypatch.setattr("scipy.optimize.show_options", older)
    tune(toy_tuning(evaluations=3), tmp_path / "a", toy_errors)
    assert "COBYQA needs SciPy 1.14" in caplog.text
    with pytest.raises(ValueError, match=r"needs SciPy 1\.14; there is nelder-mead"):
        tune(toy_tuning(optimizer="cobyqa"), tmp_path / "b", toy_errors)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="pip install optuna"):
        tune(toy_tuning(optimizer="optuna"), tmp_path / "b", toy_errors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [a", "tune.yaml: while parsing"),
        ("train: [a]", "missing 1 required positional argument: 'parameters'"),
        ("train: [a]\nparameters: {r: {low: 2, high: 1}}", "parameter r: needs low < high"),
        ("train: [a]\nparameters: {r: {low: 0, high: 1, log: true}}", "low > 0"),
        ("train: [a]\nparameters: {r: {lowest: 0}}", "parameter r: .*'lowest'"),
        ("train: [a]\nparameters: {r: {choices: [1, 2]}}", "only `optimizer: optuna`"),
        ("train: [a]\nparameters: {}\noptimizer: newuoa", "'newuoa' is none of"),
        ("train: [a]\nparameters: {}\nobjective: {force: 1}", "'force'.* are none of energy"),
    ],
)
def test_wrong_files_are_one_line(text, message, tmp_path):
    (tmp_path / "tune.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_tuning(tmp_path / "tune.yaml")
    assert "\n" not in str(error.value)


def test_places_and_values():
    for parameter in (Parameter(2.0, 6.0), Parameter(0.01, 100.0, log=True)):
        assert [parameter.value(x) for x in (0.0, 1.0)] == [parameter.low, parameter.high]
        assert parameter.place(parameter.value(0.3)) == pytest.approx(0.3, abs=1e-5)
    assert Parameter(0.01, 100.0, log=True).value(0.25) == pytest.approx(0.1)


def test_real_runs_killed_in_between(tmp_path):
    """Symmetry functions, their cutoff and the learning rate."""
    from toy_runs import emt_structures, write_database

    write_database(tmp_path / "cuau.db", emt_structures(12))
    (tmp_path / "small.yaml").write_text(
        """\
train:
  - experiment=acsf_softadapt
  - data.datapath=cuau.db
  - data.store=false
  - trainer.max_epochs=2
  - trainer.accelerator=cpu
  - logger=acsf_quiet
  - model.representation.grid.n_radial=3
  - model.representation.grid.n_angular_widths=1
  - model.representation.grid.zetas=[1]
parameters:
  globals.cutoff: {low: 3.5, high: 5}
  globals.lr: {low: 1e-4, high: 1e-2, log: true}
evaluations: 2
"""
    )
    assert main(["tune", "small.yaml", "--out", "whole"]) == 0
    whole = fits(tmp_path / "whole")
    assert [len(fit["errors"]) for fit in whole] == [3, 3]
    assert whole[0]["settings"] == [4.25, 1e-3]
    assert [p.name for p in (tmp_path / "whole").glob("fit_*/best_model")] == ["best_model"]
    process = start(main, ["tune", "small.yaml", "--out", "parts"], folder=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "parts/fits.json").exists() and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert len(fits(tmp_path / "parts")) == 1
    assert main(["tune", "small.yaml", "--out", "parts"]) == 0
    assert fits(tmp_path / "parts") == whole
    (run,) = (tmp_path / "parts").glob("fit_*/metrics.json")
    validation = json.loads(run.read_text())["val"]
    best = whole[int(run.parent.name[-1])]["errors"]
    assert best["stress"] == validation["stress_rmse_MPa"]
