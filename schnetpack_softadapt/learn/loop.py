"""The loop: train, go where the model leads, label where it is uncertain, and train again.

    train: [start.db]          # labelled structures to begin with, as `import` reads them
    test: [test.extxyz]        # labelled, never trained on
    calculator: ase.calculators.emt:EMT
    explore:
      - {method: md, temperature: [300, 1500], steps: 2000, every: 20, stop: 1.0, repeats: 4}
      - {method: strain, strain: 0.08, sigma: 0.1, n: 20}

`Learning` has what else can be set. With another calculator (`calculator_args`, `timeout`) the same
loop labels with any code of density functional theory. Everything is in files of the folder
`--out`, each written whole: a stage whose files are there is not done again, so that the same
command goes on wherever it was stopped.
The model is a linear cluster expansion with so many functions as the labels of the round are good
for (`api.functions_for`), which knows its uncertainty, see `posterior`; train networks on the
structures that it asked for. Of other models it takes a committee (`members: 3`,
`model: {epochs: 25}`), whose uncertainty is the spread of the members' forces (H. S. Seung et al.,
COLT 1992, 287; in interatomic potentials N. Artrith, J. Behler, Phys. Rev. B 85, 045439, 2012): in
the one case that was tried it chose better than chance, and the linear model better than it.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import yaml
from ase import Atoms
from tqdm import tqdm

from schnetpack_softadapt import api
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.executors import open_executor, run_all
from schnetpack_softadapt.data.generate.label import label
from schnetpack_softadapt.data.generate.labelling import import_calculator
from schnetpack_softadapt.data.select.select import Rows, select, structure_rows
from schnetpack_softadapt.data.splitting import Split, load_split, save_split, split_path
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.predict import read_structures
from schnetpack_softadapt.descriptors.ambient import default_descriptor
from schnetpack_softadapt.files import locked, write_file
from schnetpack_softadapt.learn.explore import check_explorer, explore
from schnetpack_softadapt.learn.posterior import PosteriorCalculator, write_posterior

__all__ = ["Learning", "learn", "read_learning"]

#: models that can start from the weights of others
STARTING = ("acsf", "ace")
#: models that know their own uncertainty
LINEAR = ("linear", "quadratic")
# a rule would take these from a handful of energies
FEW_LABELS = (
    "task/weighting=fixed",
    "task.weighting.weights={energy: 0.05, forces: 0.9, stress: 0.05}",
)
#: name of the file that a training leaves in its end
DONE = "trained"
CHOICES = ("uncertain", "random")


@dataclass
class Learning:
    """Settings of the loop; those of a YAML file have these names.

    Attributes:
        train: files of labelled structures to begin with.
        test: files of labelled structures that are never trained on.
        calculator, calculator_args: the teacher, see `label.ToLabel`.
        explore: explorations of each round: `method`, `repeats` and settings of `learn.explore`.
        start: files of structures that these start from, each as often as any other; those of
            `train` if not given.
        executor, timeout, retries: see `executors.run_all`; the time is that of one label, s.
        members: 1, a linear model ("linear", "quadratic"), or those of a committee.
        model: keywords of `schnetpack_softadapt.train`, and `overrides`, a list; if not given,
            "linear" for one member and "acsf" for more. The number of functions of "linear" follows
            from the labels of each round (`api.functions_for`) unless an override names the
            representation.
        refine: what is different from the second round on, where each member starts from its last
            weights (models "acsf" and "ace"); false: all members are trained anew.
        uncertain: spread of a force from which a structure is worth a label, eV/Ang.
        hopeless: spread beyond which it is not, since the models have no idea how they got there.
        n: labels a round.
        pool: of a committee: these are chosen from pool * n structures, those of the largest
            spreads: the ones that are farthest from all known and from each other in the space of
            descriptors. With one model: one after the other, the largest spread that is left when
            those before are known.
        choose: "uncertain", or "random" for all visited alike, to compare with.
        rounds: largest number of trainings.
        agreed: part of the visited structures that may be uncertain when all counts as known.
        improvement: of the test error of forces, below which a round did not improve. The loop
            ends when all is known and the last round did not improve.
        seed: of all random numbers.

    Raises:
        ValueError: a setting that makes no sense.
    """

    train: Sequence[str]
    test: Sequence[str]
    calculator: str
    explore: Sequence[dict]
    calculator_args: dict = field(default_factory=dict)
    start: Sequence[str] = ()
    executor: str | dict | Executor = "local:1"
    timeout: float | None = None
    retries: int = 0
    members: int = 1
    model: dict = field(default_factory=dict)
    refine: dict | bool = field(default_factory=dict)
    uncertain: float = 0.1
    hopeless: float = 20.0
    n: int = 20
    pool: int = 5
    choose: str = "uncertain"
    rounds: int = 10
    agreed: float = 0.01
    improvement: float = 0.02
    seed: int = 0

    def __post_init__(self):
        for name in ("train", "test", "start"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else list(value))
        for name, least in (("members", 1), ("n", 1), ("pool", 1), ("rounds", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is a whole number from {least} on, not {value!r}")
        self.model = {"model": "linear" if self.members == 1 else "acsf", **self.model}
        of_networks = {"epochs", "n_hidden"} & set(self.model)
        if self.members == 1 and (self.model["model"] not in LINEAR or of_networks):
            raise ValueError(
                f"members: one model alone is {' or '.join(LINEAR)}, without epochs and n_hidden;"
                " of networks give 3"
            )
        if not 0 < self.uncertain < self.hopeless:
            raise ValueError("uncertain and hopeless are spreads (eV/Ang), positive and ascending")
        if self.choose not in CHOICES:
            raise ValueError(f"choose {self.choose!r} is none of {', '.join(CHOICES)}")
        if not self.explore:
            raise ValueError("explore: give one method or more")
        for settings in self.explore:
            check_explorer(settings)
        import_calculator(self.calculator)


def read_learning(config: str | Path) -> Learning:
    """Settings of a YAML file; relative paths in it are relative to where the command runs.

    Raises:
        ValueError: no YAML, or a setting that is unknown, missing or wrong.
    """
    try:
        settings = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} holds no settings by name")
    names = [f.name for f in fields(Learning)]
    unknown = sorted(set(settings) - set(names))
    missing = [n for n in ("train", "test", "calculator", "explore") if n not in settings]
    if unknown or missing:
        what = f"unknown setting {unknown[0]!r}" if unknown else f"no setting {missing[0]!r}"
        raise ValueError(f"{config}: {what}; settings are {', '.join(names)}")
    return Learning(**settings)


def learn(
    settings: Learning, out: str | Path, progress: bool = False, say: Callable[[str], None] = print
) -> pd.DataFrame:
    """Run the loop, or go on with it.

    Args:
        settings: what to do.
        out: folder, which all workers see, for `rounds.csv` and `round-00`, `round-01`.., each with
            its members, metrics and predictions `test.npz`. The last members are the result.
        progress: show progress bars.
        say: gets the messages for the user.

    Returns:
        a row for each round: `round`, `structures` and `atoms` trained on, errors of the mean of
        the committee for the test set by the names of metrics.json, `visited` structures, part of
        them that is `uncertain`, their `spread` (95 %), `labels` made then.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a wrong setting, structures without labels, a member or exploration that failed,
            another process at work in the folder.
    """
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    # of a committee that explores this is expected
    logging.getLogger("schnetpack_softadapt.deploy.extrapolation").setLevel(logging.ERROR)
    rows: list[dict] = []
    with locked(out / "rounds.csv"), open_executor(settings.executor) as executor:
        _once(out / "test.db", lambda path: _gather(settings.test, path))
        _once(out / "round-00" / "train.db", lambda path: _gather(settings.train, path))
        for number in range(settings.rounds):
            this = _Round(settings, out, number, executor, progress, say)
            rows.append(this.run(is_last=number + 1 == settings.rounds))
            table = pd.DataFrame(rows)
            write_file(out / "rounds.csv", table.to_csv(index=False))
            reason = _is_over(settings, rows)
            if reason is not None:
                say(f"done: {reason}")
                break
            rows[-1] = this.label()
    say(table.to_string(index=False, float_format="{:.4g}".format))
    return table


def _is_over(settings: Learning, rows: list[dict]) -> str | None:
    errors = [row["forces_rmse_meV_per_Ang"] for row in rows]
    agrees = rows[-1]["uncertain"] <= settings.agreed
    if agrees and len(rows) > 1 and errors[-1] > (1 - settings.improvement) * min(errors[:-1]):
        return "what is visited is known, and the test error does not fall"
    if rows[-1]["candidates"] == 0:
        return "everything that is visited is known"
    return "the last round" if len(rows) == settings.rounds else None


class _Round:
    """One round in its folder; what is there is not done again."""

    def __init__(self, settings, out: Path, number: int, executor, progress: bool, say):
        self.settings, self.out, self.number = settings, out, number
        self.executor, self.progress, self.say = executor, progress, say
        self.folder = out / f"round-{number:02}"
        self.models = [str(self.folder / f"member-{k}") for k in range(settings.members)]

    def run(self, is_last: bool) -> dict:
        """Train, test, explore; the row of the table."""
        known = read_database(self.folder / "train.db")
        self.say(f"round {self.number}: {len(known)} structures")
        self._train(known)
        errors = json.loads(_once(self.folder / "metrics.json", self._test).read_text())
        visited = self._explore()
        spreads = np.array([atoms.info["spread"] for atoms in visited])
        candidates = self._candidates(visited, spreads)
        row = {
            "round": self.number,
            "structures": len(known),
            "atoms": sum(s.n_atoms for s in known),
            **{k: v for k, v in errors.items() if "rmse" in k},
            "visited": len(visited),
            "uncertain": float((spreads > self.settings.uncertain).mean()) if len(visited) else 0.0,
            "spread": float(np.quantile(spreads, 0.95)) if len(visited) else 0.0,
            "candidates": len(candidates),
            "labels": 0,
        }
        if candidates and not is_last:
            _once(self.folder / "selected.extxyz", lambda p: self._select(p, candidates, known))
        if not (self.folder / "round.json").exists():
            write_file(self.folder / "round.json", json.dumps(row))
        return row

    def label(self) -> dict:
        """Label what was selected, for the training set of the next round; the row of the table."""
        s, report = self.settings, self.folder / "round.json"
        following = self.out / f"round-{self.number + 1:02}" / "train.db"
        if not following.exists():
            chosen = ase.io.read(self.folder / "selected.extxyz", ":")
            structures = {f"{self.folder.name}, structure {k}": a for k, a in enumerate(chosen)}
            where = (s.calculator_args, self.executor, s.timeout, s.retries)
            labelled = self.folder / "labelled.db"
            label(structures, s.calculator, labelled, *where, say=self.say)
            new, old = read_database(labelled), read_database(self.folder / "train.db")
            row = {**json.loads(report.read_text()), "labels": len(new)}
            write_file(report, json.dumps(row))
            write_database(following, [*old, *new], f"active learning in {self.out.name}")
        return json.loads(report.read_text())

    def _map(self, function: Callable, tasks: list[tuple[str, tuple]], what: str) -> None:
        bar = tqdm(
            run_all(function, tasks, self.executor, retries=self.settings.retries),
            desc=f"round {self.number}, {what}",
            total=len(tasks),
            disable=not self.progress,
        )
        failed = [f"{name}: {reason}" for name, _, reason in bar if reason is not None]
        if failed:
            raise ValueError(f"round {self.number}, {what}: {'; '.join(failed)}")

    def _train(self, known: Sequence[Structure]) -> None:
        is_alone, database = self.settings.members == 1, self.folder / "train.db"
        n = len(known)
        if is_alone and n < 2:
            raise ValueError("train: give two structures or more; the first is not trained on")
        if is_alone:  # a solution needs no validation, but there must be one: the very first
            split = Split(train=[*range(1, n)], val=[0], test=[])
            save_split(split_path(database), split, replace=False)
        tasks = []
        for k, folder in enumerate(self.models):
            # its own first weights, validation structures and order
            options = {"seed": 1 + k + self.settings.seed}
            options["num_val"] = 1 if is_alone else max(1, n // 10)
            options |= {"num_test": 0, **self.settings.model}
            overrides = ["data.num_train=null", f"data.split_seed={k}"]
            given = options.pop("overrides", [])
            if options["model"] in LINEAR and "weighting" not in f"{[*options, *given]}":
                overrides += FEW_LABELS
            overrides += given
            if self.number and self.settings.refine is not False:
                if options["model"] in STARTING:
                    last = self.out / f"round-{self.number - 1:02}" / f"member-{k}"
                    overrides.append("model/start_from=model_softadapt")
                    overrides.append(f"model.start_from.path='{last}'")
                if isinstance(self.settings.refine, dict):
                    options |= self.settings.refine
                    overrides += options.pop("overrides", [])
            arguments = (str(database), folder, overrides, options, is_alone)
            tasks.append((Path(folder).name, arguments))
        self._map(_train_member, tasks, "members")

    def _test(self, path: Path) -> None:
        predicted = self.folder / "test.npz"
        found = api.predict(self.models, str(self.out / "test.db"), predicted)
        write_file(path, json.dumps(found.errors))

    def _explore(self) -> list[Atoms]:
        # from what was labelled last each round would be a step farther from what is visited
        files = self.settings.start or self.settings.train
        starts = [s.to_atoms() for f in files for s in read_structures(f)]
        # each as often as any other, in the order of chance
        order = np.random.default_rng(self.settings.seed).permutation(len(starts))
        first = self.number * sum(settings.get("repeats", 1) for settings in self.settings.explore)
        tasks, paths = [], []
        for i, settings in enumerate(self.settings.explore):
            for repeat in range(settings.get("repeats", 1)):
                rng = np.random.default_rng([self.settings.seed, self.number, i, repeat])
                start = starts[order[(first + len(tasks)) % len(starts)]]
                seed = int(rng.integers(2**31))
                path = self.folder / "explored" / f"{i}-{repeat}" / "visited.extxyz"
                path.parent.mkdir(parents=True, exist_ok=True)
                paths.append(path)
                tasks.append(
                    (f"{settings['method']} {repeat}", (settings, start, self.models, seed, path))
                )
        self._map(explore, tasks, "exploration")
        return [a for path in paths if path.stat().st_size for a in ase.io.read(path, ":")]

    def _candidates(self, visited: list[Atoms], spreads: np.ndarray) -> list[Atoms]:
        s, most = self.settings, None
        if s.choose == "random":
            order = np.random.default_rng([s.seed, self.number]).permutation(len(visited))
            most = s.n
        else:
            wanted = (spreads > s.uncertain) & (spreads < s.hopeless)
            order = np.argsort(-np.where(wanted, spreads, -1.0), kind="stable")[: wanted.sum()]
            if s.members > 1:
                most = s.pool * s.n
        return [visited[k] for k in order[:most]]

    def _select(self, path: Path, candidates: list[Atoms], known: list[Structure]) -> None:
        n = min(self.settings.n, len(candidates))
        if self.settings.choose == "random":
            chosen = range(n)
        elif self.settings.members == 1:
            calculator = PosteriorCalculator(self.models[0])
            rows = Rows.of_all([calculator.whitened(atoms) for atoms in candidates])
            known_rows = np.eye(rows.x.shape[1])  # the whitened A of what is known
            chosen = select(rows, n, "leverage", known_rows)
        else:
            model = api.load(self.models[0])
            descriptor = getattr(getattr(model, "representation", None), "descriptor", None)
            descriptor = descriptor or default_descriptor(
                {int(z) for s in known for z in s.numbers}
            )
            new = [Structure.from_atoms(atoms) for atoms in candidates]
            rows, known_rows = structure_rows(new, descriptor, known=known)
            chosen = select(rows, n, "farthest", known_rows)
        ase.io.write(path, [candidates[k] for k in chosen], format="extxyz")


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file that is made if it is not there, under another name until it is whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"unfinished-{path.name}")
        temporary.unlink(missing_ok=True)
        make(temporary)
        if temporary.exists():
            temporary.replace(path)
    return path


def _gather(files: Sequence[str], path: Path) -> None:
    structures = [s for file in files for s in read_structures(file)]
    if any(s.energy is None or s.forces is None for s in structures):
        raise ValueError(f"{', '.join(files)}: all structures need energy and forces")
    write_database(path, structures, provenance=f"from {', '.join(files)}")


def _train_member(
    database: str,
    folder: str,
    overrides: list[str],
    options: dict,
    is_alone: bool,
    worker: str = "",
) -> None:
    """Train, or go on with, one model; what is printed goes to a file beside its folder."""
    if (Path(folder) / DONE).exists():
        return
    shown = [(stream, os.dup(stream)) for stream in (1, 2)]
    with open(f"{folder}.log", "a") as log:
        for stream, _ in shown:
            os.dup2(log.fileno(), stream)
        try:
            api.train(database, *overrides, out=folder, **options)
            if is_alone:
                structures = read_database(database)
                fitted = load_split(Path(folder) / "split.npz", len(structures)).train
                write_posterior(folder, [structures[k] for k in fitted])
        finally:
            for stream, before in shown:
                os.dup2(before, stream)
                os.close(before)
    write_file(Path(folder) / DONE, "")
