"""Training and prediction in a few lines of Python; `spk-softadapt train` and `predict` call these.

    import schnetpack_softadapt as spksa

    run = spksa.train("my.db", epochs=50)
    print(run.metrics["test"])
    print(spksa.predict(run.model, "more.extxyz"))

`train` composes the configuration that `spktrain` would, and runs it in this process.
"""

import json
import re
import shlex
import sqlite3
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from ase import Atoms
    from torch import nn

__all__ = ["MODELS", "Predictions", "Run", "load", "predict", "spktrain_arguments", "train"]

#: overrides of `spktrain` for each kind of model, of a crystal and of a molecule
MODELS = {
    "acsf": (["experiment=recommended_softadapt"], ["experiment=molecule_softadapt"]),
    "ace": (["experiment=ace_softadapt"], ["experiment=ace_softadapt", "data.splitting=blocks"]),
    "painn": (
        ["experiment=painn_softadapt"],
        ["experiment=molecule_painn_softadapt"],
    ),
    "schnet": (
        ["experiment=painn_softadapt", "model/representation=schnet"],
        ["experiment=molecule_painn_softadapt", "model/representation=schnet"],
    ),
    "linear": (["experiment=ace_linear"], ["experiment=ace_linear", "data.splitting=blocks"]),
    "quadratic": (
        ["experiment=snap_quadratic"],
        ["experiment=snap_quadratic", "data.splitting=blocks"],
    ),
}

#: labels for each coefficient of a linear model, and functions that there are at most
LABELS_OF_ONE, MOST_FUNCTIONS = 4, 700

#: setting of the configuration behind each keyword of `train`
SETTINGS = {
    "epochs": "trainer.max_epochs",
    "max_time": "+trainer.max_time",
    "seed": "seed",
    "cutoff": "globals.cutoff",
    "n_hidden": "globals.n_hidden",
    "weighting": "task/weighting",
    "batch_size": "data.batch_size",
    "num_train": "data.num_train",
    "num_val": "data.num_val",
    "num_test": "data.num_test",
    "device": "trainer.accelerator",
    "start_from": "model.start_from.path",
}


def train(
    database: str | Path,
    *overrides: str,
    model: str | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    max_time: str | float | timedelta | None = None,
    seed: int | None = None,
    cutoff: float | None = None,
    n_hidden: Sequence[int] | None = None,
    weighting: str | None = None,
    batch_size: int | None = None,
    num_train: float | None = None,
    num_val: float | None = None,
    num_test: float | None = None,
    device: str | None = None,
    start_from: str | Path | None = None,
) -> "Run":
    """Train a potential with the recipe for the data, or go on with a run that was started before.

    What is not given is as the recipe has it: `experiment=recommended_softadapt` for crystals and
    `molecule_softadapt` where no structure is periodic. The `spktrain` command that a call stands
    for is printed.

    Args:
        database: in SchNetPack's format, as `spk-softadapt import` writes it.
        overrides: of the configuration, as for `spktrain`: "task.weighting.beta=1".
        model: "acsf" (networks on symmetry functions; if neither this nor `start_from` is given),
            "ace" (on the cluster expansion), "linear" (in as many of its functions as the data are
            good for, see `functions_for`, by least squares), "quadratic" (SNAP), or SchNetPack's
            "painn" or "schnet".
        out: folder of the run, `runs/<name of the database>` if not given. The run in it goes on.
        epochs: largest number of epochs.
        max_time: wall time after which the run ends, of all its starts together: seconds, or a
            text such as "90s", "30min", "2h", "1d" or "DD:HH:MM:SS".
        seed: of the first weights and the order of structures.
        cutoff: radius of the environments, Ang.
        n_hidden: widths of the hidden layers ("acsf", "ace").
        weighting: rule of the loss weights: likelihood, softadapt, fixed and others.
        batch_size: structures in a step.
        num_train, num_val, num_test: sizes of the subsets, as numbers or fractions.
        device: "cpu", "gpu" or "auto".
        start_from: run, model or potential (a folder of `export`, a .yace, .ace or .snapcoeff file,
            an n2p2 folder) that is trained further: its descriptors, networks and baseline, with
            its forces and stresses before the first step, and its energies up to constants of the
            elements, which are fitted to the labels. With `model`, or settings of
            `model.representation`, it may be a smaller one (`model.start`).

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: a setting that does not exist, a wrong value, data that cannot be trained on.
    """
    settings = {name: value for name, value in locals().items() if name in SETTINGS}
    arguments = spktrain_arguments(database, overrides, model, out, **settings)
    print(shlex.join(["spktrain", *arguments]), flush=True)
    return Run(run_spktrain([*arguments, "print_config=false"]))


def spktrain_arguments(
    database: str | Path,
    overrides: Sequence[str] = (),
    model: str | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> list[str]:
    """What follows `spktrain` in the command that a call of `train` stands for."""
    if model is not None and model not in MODELS:
        raise ValueError(f"model {model!r} is none of {', '.join(MODELS)}")
    path = Path(database).expanduser()
    is_crystal = _has_periodic_structures(path)
    start, own = settings.get("start_from"), ("experiment=", "model=", "model/rep", "model.rep")
    if start is None or model is not None or any(x.startswith(own) for x in overrides):
        recipe = MODELS[model or "acsf"][0 if is_crystal else 1]
    else:
        from schnetpack_softadapt.deploy.loading import refinement

        recipe = refinement(start) + ([] if is_crystal else ["data.splitting=blocks"])
    if model == "linear" and "representation" not in f"{overrides}":
        n_functions = functions_for(path)
        if n_functions < MOST_FUNCTIONS:
            recipe = [*recipe, f"model.representation.parameters.n_functions={n_functions}"]
    out = Path("runs", Path(database).stem) if out is None else Path(out).expanduser()
    arguments = [*recipe, f"data.datapath={_value(database)}", f"run.id={_value(out.name)}"]
    if out.parent != Path("runs"):
        arguments.append(f"run.path={_value(out.parent)}")
    if settings.get("max_time") is not None:
        settings["max_time"] = _duration(settings["max_time"])
    if settings.get("start_from") is not None:
        arguments.append("model/start_from=model_softadapt")
    for name, value in settings.items():
        if value is not None:
            arguments.append(f"{SETTINGS[name]}={_value(value)}")
    return [*arguments, *overrides]


def run_spktrain(arguments: Sequence[str]) -> Path:
    """Do what `spktrain` does, in this process; the folder of the run.

    Raises:
        ValueError: the configuration cannot be composed or instantiated; exceptions of the training
            pass through.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, InstantiationException
    from schnetpack import cli

    failures: list[Exception] = []

    def job(config) -> None:
        try:
            cli.train(config)
        except Exception as error:  # Hydra would print it
            failures.append(error)

    with (
        warnings.catch_warnings(),
        initialize_config_module("schnetpack.configs", job_name="train", version_base="1.2"),
    ):
        # not everybody has configs of his own where he is
        warnings.filterwarnings("ignore", "provider=hydra.searchpath")
        hydra = GlobalHydra.instance().hydra
        try:
            done = hydra.run("train", job, list(arguments), with_log_configuration=False)
        except HydraException as error:
            text = str(error).split("Config search path")[0].split("Set the environment")[0]
            raise ValueError(" ".join(text.split())) from error
    for error in failures:
        cause = error.__cause__
        if isinstance(error, InstantiationException) and isinstance(cause, (ValueError, OSError)):
            raise ValueError(str(cause)) from error
        raise error
    return Path(done.hydra_cfg.hydra.runtime.output_dir)


def functions_for(database: str | Path) -> int:
    """Functions of each element that a linear model of a database has if nobody says otherwise.

    One for each four labels of energy, forces and stress, of all elements together, and no more
    than 700. Fewer labels than coefficients say nothing of other structures.

    Raises:
        ValueError: it is no database of SchNetPack's with structures.
    """
    path = Path(database)
    n, n_atoms = _query(path, "SELECT count(*), sum(natoms) FROM systems")
    (n_elements,) = _query(path, "SELECT count(DISTINCT Z) FROM species")
    metadata = _query(path, "SELECT value FROM information WHERE name = 'metadata'")
    labels = json.loads(metadata[0]).get("_property_unit_dict") if metadata else None
    if not n or not labels:
        raise ValueError(
            f"{database} has no labelled structures; `spk-softadapt import` writes some"
        )
    n_labels = n + 3 * n_atoms * ("forces" in labels) + 6 * n * ("stress" in labels)
    return min(max(n_labels // (LABELS_OF_ONE * n_elements), 1), MOST_FUNCTIONS)


def _has_periodic_structures(database: Path) -> bool:
    if not database.is_file():
        raise FileNotFoundError(f"no database at {database}; `spk-softadapt import` writes one")
    return bool(_query(database, "SELECT EXISTS(SELECT 1 FROM systems WHERE pbc > 0)")[0])


def _query(database: Path, query: str) -> tuple | None:
    """The first row of what an SQL query finds, if any."""
    try:
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(query).fetchone()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{database} is no database of structures: {error}") from None


def _value(value: Any) -> str:
    """A value as Hydra's grammar takes it."""
    text = str(list(value)).replace(" ", "") if isinstance(value, list | tuple) else str(value)
    if isinstance(value, str | Path) and not re.fullmatch(r"[\w./+-]+", text):
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


def _duration(time: str | float | timedelta) -> str:
    """A time as DD:HH:MM:SS."""
    if isinstance(time, str):
        if re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time):
            return time
        match = re.fullmatch(r"([\d.]+)\s*(s|min|h|d)?", time)
        if not match:
            raise ValueError(f"max_time {time!r} is none of 90s, 30min, 2h, 1d, DD:HH:MM:SS")
        time = float(match[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[match[2] or "s"]
    seconds = round(time.total_seconds() if isinstance(time, timedelta) else time)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return "{:02}:{:02}:{:02}:{:02}".format(*divmod(hours, 24), minutes, seconds)


@dataclass(frozen=True)
class Run:
    """A run in its folder, finished or not."""

    folder: Path

    def __post_init__(self):
        object.__setattr__(self, "folder", Path(self.folder).resolve())

    @cached_property
    def model(self) -> "nn.Module":
        """The model of the best epoch, in evaluation mode and double precision."""
        return load(self.folder)

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: errors by subset ("train", "val", "test"), epochs, wall time."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @property
    def history(self) -> "pandas.DataFrame":
        """history.csv: losses, weights and errors, a row an epoch."""
        import pandas

        return pandas.read_csv(self.folder / "history.csv")

    def report(self, out: str | Path | None = None) -> Path:
        """Write tables and pictures; returns the page `report.html`.

        Args:
            out: folder, `report` in that of the run if not given.
        """
        from schnetpack_softadapt.reports.report import read_runs, write_report

        return write_report(read_runs([self.folder]), out) / "report.html"


def load(path: str | Path) -> "nn.Module":
    """A model, in evaluation mode and double precision.

    Args:
        path: a `best_model` (a pickle, which can execute code: load only what you trust), the
            folder of a run, or of an n2p2 potential (text).

    Raises:
        FileNotFoundError: there is nothing at the path, or nothing that is a model.
        ValueError: the file is not a saved model.
    """
    from schnetpack_softadapt.deploy.loading import load_potential

    return load_potential(path)


@dataclass(frozen=True)
class Predictions:
    """Predictions for S structures, in their order, beside the labels that all of them have.

    `str` of it is a table of the errors.

    Attributes:
        arrays: as in a run's `predictions/*.npz`, see `training.predictions.prediction_arrays`;
            `energy_ref`, `forces_ref` and `stress_ref` are the labels.
    """

    arrays: "dict[str, np.ndarray]"

    @property
    def energy(self) -> "np.ndarray":
        """(S,) eV."""
        return self.arrays["energy"]

    @property
    def forces(self) -> "list[np.ndarray]":
        """(n_atoms, 3) of each structure, eV/Ang."""
        import numpy as np

        return np.split(self.arrays["forces"], self.arrays["n_atoms"].cumsum()[:-1])

    @property
    def stress(self) -> "np.ndarray | None":
        """(S, 6) eV/Ang^3, order xx yy zz yz xz xy, positive = tension; None if the model has none.

        NaN where it is not defined, as for a molecule.
        """
        from schnetpack_softadapt.quantities import full_to_voigt

        return full_to_voigt(self.arrays["stress"]) if "stress" in self.arrays else None

    @property
    def errors(self) -> dict[str, float]:
        """RMSE and MAE by the keys of metrics.json, such as `forces_rmse_meV_per_Ang`."""
        from schnetpack_softadapt.training.predictions import prediction_errors

        return prediction_errors(self.arrays)

    def __str__(self):
        from schnetpack_softadapt.training.predictions import error_table

        n_atoms = self.arrays["n_atoms"]
        head = f"{len(n_atoms)} structures, {n_atoms.sum()} atoms"
        errors = self.errors
        return f"{head}, without labels" if not errors else error_table({head: errors})


def predict(
    model: Any,
    structures: "str | Path | Atoms | Iterable[Atoms]",
    out: str | Path | None = None,
    **calculator_args: Any,
) -> Predictions:
    """Energies, forces and stresses of structures, and their errors where they have labels.

    Args:
        model: a model, what `load` takes, or a list of these: a committee, whose mean counts.
        structures: a file, as `spk-softadapt import` reads it, or a database that it wrote; a
            structure, or more of them.
        out: file for predictions and labels, renewed: extended XYZ, or *.npz.
        calculator_args: of `SoftAdaptCalculator`, such as `device` and, for a model that does not
            state them, `energy_unit` and `position_unit`.

    Raises:
        FileNotFoundError: no model or file at the path.
        ValueError: a file or model cannot be read, or a structure cannot be predicted.
    """
    from ase import Atoms

    from schnetpack_softadapt.deploy.predict import predict as predict_arrays

    structures = [structures] if isinstance(structures, Atoms) else structures
    return Predictions(predict_arrays(model, structures, out, **calculator_args))
