"""Numbers of the configuration chosen by a derivative-free optimizer, a training for each choice.

    # tune.yaml
    train:  # what all fits have, as for spktrain
      [experiment=snap_network_a, task/weighting=softadapt_prior, data.datapath=my.db]
    parameters:
      globals.cutoff: {low: 3.5, high: 6}
      +model.representation.parameters.radii.Be: {low: 0.3, high: 0.5, start: 0.4}
      task.weighting.prior.energy: {low: 0.1, high: 100, log: true}
      model.representation.parameters.twojmax: {low: 4, high: 8, integer: true}
      globals.n_hidden: {choices: [A1, A2, B1]}  # texts or numbers; Optuna only
    evaluations: 100
    optimizer: cobyqa  # or nelder-mead, optuna
    objective: {energy: 1, forces: 1, stress: 1}

The objective is the mean of ln(e_k / e_k of the first fit) over the validation RMSE e_k of energy,
forces and stress with the weights of `objective`: a balance without units, in which halving one
error is worth doubling another. Test errors are not looked at. COBYQA (T. M. Ragonneau, 2022) is
the successor of Powell's methods with quadratic models in a trust region.

Every fit that is done is written down in fits.json, in one step. The optimizers draw nothing at
random but from a seed, so the same command again takes the same path: it reads what is written, and
goes on with the fit that was interrupted from its last epoch.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from schnetpack_softadapt.files import locked, write_file
from schnetpack_softadapt.quantities import BY_NAME

__all__ = ["Parameter", "Tuning", "read_tuning", "tune"]

log = logging.getLogger(__name__)

SCIPY = {"cobyqa": "COBYQA", "nelder-mead": "Nelder-Mead"}
FIRST_STEP, LAST_STEP = 0.2, 1e-3  # of the range of a parameter


@dataclass(frozen=True)
class Parameter:
    """A setting, and what it may be: from low to high, or one of some choices."""

    low: float = 0.0  # bounds
    high: float = 0.0  # bounds
    start: float | None = None  # of the first fit; the middle if None
    log: bool = False  # steps are factors
    # whole numbers only; few of them are better left to Optuna, since the others follow slopes
    integer: bool = False
    choices: tuple = ()  # instead of all these; the first is that of the first fit

    def __post_init__(self):
        if self.choices:
            return
        start = self.high if self.start is None else self.start
        if not -math.inf < self.low <= start <= self.high < math.inf or self.low == self.high:
            raise ValueError("needs low < high, and start between them")
        if self.log and self.low <= 0:
            raise ValueError(f"factors (log: true) need low > 0, not {self.low:g}")

    def value(self, x: float) -> float:
        """The setting at x in [0, 1]."""
        if self.log:
            value = self.low * (self.high / self.low) ** x
        else:
            value = self.low + (self.high - self.low) * x
        # digits enough for any setting, and few enough to be read
        return round(value) if self.integer else float(f"{value:.6g}")

    def place(self, value) -> float:
        """Where a setting is, in [0, 1]."""
        if self.choices:
            return list(self.choices).index(value) / len(self.choices)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def first(self):
        """The setting of the first fit."""
        if self.choices:
            return self.choices[0]
        return self.value(0.5) if self.start is None else self.start


@dataclass
class Tuning:
    """What is tuned and how, as in the YAML file; see above."""

    train: list[str]
    parameters: dict[str, Parameter]
    evaluations: int = 100
    optimizer: str | None = None
    objective: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BY_NAME, 1.0))

    def __post_init__(self):
        for name, given in self.parameters.items():
            try:
                # YAML takes 1e-4 for a text
                numbers = {k: float(given[k]) for k in ("low", "high", "start") if k in given}
                self.parameters[name] = Parameter(**{**given, **numbers})
            except (TypeError, ValueError) as error:
                raise ValueError(f"parameter {name}: {error}") from None
        if unknown := set(self.objective) - set(BY_NAME):
            raise ValueError(f"objective: {sorted(unknown)} are none of {', '.join(BY_NAME)}")
        if self.optimizer not in (None, "optuna", *SCIPY):
            raise ValueError(f"optimizer {self.optimizer!r} is none of {[*SCIPY, 'optuna']}")
        choices = [name for name, p in self.parameters.items() if p.choices]
        if choices and self.optimizer != "optuna":
            raise ValueError(f"parameter {choices[0]}: only `optimizer: optuna` tries choices")


def read_tuning(path: str | Path) -> Tuning:
    """What a YAML file describes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an unknown, missing or wrong setting.
    """
    try:
        return Tuning(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).replace("Tuning.__init__() ", "").split())
        raise ValueError(f"{path}: {reason}") from None


def tune(
    tuning: Tuning, folder: str | Path, fit: Callable[[list[str], Path], Mapping] | None = None
) -> str:
    """Find the settings with the smallest objective; the table of the path as text.

    Args:
        folder: for fits.json, path.csv, path.png, the log of each fit and the run of the best; what
            is there goes on.
        fit: makes a run in a folder (which may hold a part of it) from overrides, and returns its
            validation errors by "energy", "forces", "stress"; `spktrain` if None.

    Raises:
        ValueError: the folder holds another tuning, the first fit fails, an optimizer is missing.
    """
    folder = Path(folder).absolute()
    with locked(folder / "fits.json"):
        path = _Path(tuning, folder, fit or spktrain_errors)
        with contextlib.suppress(_EnoughError):
            (_optuna if tuning.optimizer == "optuna" else _scipy)(tuning, path)
        return path.write()


class _EnoughError(Exception):
    """As many fits as were asked for are done."""


class _Path:
    """The fits so far, and the function of the settings that an optimizer sees."""

    def __init__(self, tuning: Tuning, folder: Path, fit: Callable):
        self.tuning, self.folder, self.fit = tuning, folder, fit
        self.file = folder / "fits.json"
        self.head = {
            "train": tuning.train,
            "parameters": list(tuning.parameters),
            "objective": tuning.objective,
        }
        found = json.loads(self.file.read_text()) if self.file.exists() else self.head
        for key, value in self.head.items():
            if found[key] != value:
                raise ValueError(f"{folder} holds a tuning with other {key}: choose another --out")
        self.fits: list[dict] = found.get("fits", [])

    def __call__(self, settings: list) -> float:
        """Objective at settings of all parameters; a fit unless it is known."""
        known = [fit for fit in self.fits if fit["settings"] == settings]
        if not known:
            if len(self.fits) >= self.tuning.evaluations:
                raise _EnoughError
            known = [self._add(settings)]
        return self.value(known[0])

    def _add(self, settings: list) -> dict:
        new: dict = {"settings": settings, "errors": None}
        own = [f"{n}={s}" for n, s in zip(self.tuning.parameters, settings, strict=True)]
        try:
            errors = self.fit([*self.tuning.train, *own], self._run(len(self.fits)))
            errors = {k: float(errors[k]) for k in self.tuning.objective if k in errors}
            if not errors or not all(0 < e < math.inf for e in errors.values()):
                raise ValueError(f"no finite validation errors ({errors})")
            new["errors"] = errors
        except ValueError as error:
            if not self.fits:
                raise
            new["reason"] = " ".join(str(error).split())
            log.warning("fit %d (%s) failed: %s", len(self.fits), " ".join(own), new["reason"])
        self.fits.append(new)
        write_file(self.file, json.dumps({**self.head, "fits": self.fits}, indent=1) + "\n")
        print(f"fit {len(self.fits)} of {self.tuning.evaluations}:", *self._cells(new), flush=True)
        for old in range(len(self.fits)):
            if self.fits[old] is not self.best:
                shutil.rmtree(self._run(old), ignore_errors=True)
        return new

    def _run(self, number: int) -> Path:
        return self.folder / f"fit_{number:04d}"

    @property
    def best(self) -> dict:
        return min(self.fits, key=self.value)

    def value(self, fit: Mapping) -> float:
        """Mean of the logarithms of the errors over those of the first fit.

        A fit that has failed is worse than all before it.
        """
        if fit["errors"] is None:
            return 1.0 + max(map(self.value, self.fits[: self.fits.index(fit)]))
        first, weights = self.fits[0]["errors"], self.tuning.objective
        terms = [weights[k] * math.log(fit["errors"][k] / first[k]) for k in first]
        return sum(terms) / sum(weights[k] for k in first)

    def _cells(self, fit: Mapping) -> list[str]:
        errors = [f"{e:.4g}" for e in (fit["errors"] or {}).values()]
        errors = errors or ["-"] * len(self.fits[0]["errors"])
        return [*map(str, fit["settings"]), *errors, f"{self.value(fit):+.4f}"]

    def write(self) -> str:
        """path.csv and path.png; the same table as text, with the settings of the best fit."""
        from schnetpack_softadapt.reports.style import png_bytes
        from schnetpack_softadapt.training.text_table import text_table

        columns = [f"{k}, {BY_NAME[k].shown_unit}" for k in self.fits[0]["errors"]]
        rows = [["fit", *self.tuning.parameters, *columns, "objective"]]
        rows += [[str(k), *self._cells(fit)] for k, fit in enumerate(self.fits)]
        table = pd.DataFrame(rows[1:], columns=rows[0])
        write_file(self.folder / "path.csv", table.to_csv(index=False))
        write_file(self.folder / "path.png", png_bytes(_draw, self))
        pairs = zip(self.tuning.parameters, self.best["settings"], strict=True)
        best = self.fits.index(self.best)
        found = " ".join(f"{name}={value}" for name, value in pairs)
        return "\n".join([*text_table(rows), f"best: fit {best}, in {self._run(best)}", found])


def _draw(path: _Path):
    from schnetpack_softadapt.reports.style import CYCLE, new_figure

    figure = new_figure(8.0, 6.0)
    above, below = figure.subplots(2, 1, sharex=True)
    values = np.array([path.value(fit) for fit in path.fits])
    above.plot(values, "o", color=CYCLE[0], markersize=4, label="fit")
    above.plot(np.minimum.accumulate(values), color=CYCLE[1], label="best so far")
    above.set_ylabel("mean ln(error / first)")
    above.legend()
    for k, (name, parameter) in enumerate(path.tuning.parameters.items()):
        places = [parameter.place(fit["settings"][k]) for fit in path.fits]
        below.plot(places, ".-", color=CYCLE[k % len(CYCLE)], label=name, linewidth=1)
    below.set_ylabel("place between low and high")
    below.set_xlabel("fit")
    below.legend(fontsize=8)
    return figure


def _scipy(tuning: Tuning, path: _Path) -> None:
    from scipy.optimize import minimize, show_options

    name = tuning.optimizer or "cobyqa"
    try:
        show_options("minimize", SCIPY[name], disp=False)
    except ValueError:
        if tuning.optimizer is not None:
            raise ValueError("cobyqa needs SciPy 1.14; there is nelder-mead, too") from None
        name = "nelder-mead"
        log.warning("COBYQA needs SciPy 1.14: Nelder-Mead takes its place")
    parameters = list(tuning.parameters.values())
    path([p.first for p in parameters])  # COBYQA moves a start that is close to a bound
    # settings that are rounded to known ones cost nothing, so calls are no measure
    options = {"maxfev": 20 * tuning.evaluations}
    if name == "cobyqa":
        options |= {"initial_tr_radius": FIRST_STEP, "final_tr_radius": LAST_STEP}
    minimize(
        lambda x: path([p.value(t) for p, t in zip(parameters, x.tolist(), strict=True)]),
        [p.place(p.first) for p in parameters],
        method=SCIPY[name],
        bounds=[(0.0, 1.0)] * len(parameters),
        options=options,
    )


def _optuna(tuning: Tuning, path: _Path) -> None:
    try:
        import optuna
    except ImportError:
        raise ValueError("`optimizer: optuna` needs the package: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({name: p.first for name, p in tuning.parameters.items()})
    for _ in range(20 * tuning.evaluations):
        trial, settings = study.ask(), []
        for name, p in tuning.parameters.items():
            if p.choices:
                settings.append(trial.suggest_categorical(name, list(p.choices)))
            elif p.integer:
                settings.append(trial.suggest_int(name, int(p.low), int(p.high), log=p.log))
            else:
                settings.append(float(f"{trial.suggest_float(name, p.low, p.high, log=p.log):.6g}"))
        study.tell(trial, path(settings))


def spktrain_errors(overrides: list[str], run: Path) -> dict[str, float]:
    """Validation RMSE, as shown to people, of a run of `spktrain` in this process."""
    from schnetpack_softadapt.api import run_spktrain

    own = [f"run.path={json.dumps(str(run.parent))}", f"run.id={run.name}", "print_config=false"]
    run.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(run.with_suffix(".log"), "a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        run_spktrain([*overrides, *own])
    errors = json.loads((run / "metrics.json").read_text())["val"]
    keys = {name: q.metric_key("rmse") for name, q in BY_NAME.items()}
    return {name: errors[key] for name, key in keys.items() if key in errors}
