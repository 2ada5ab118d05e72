"""Structures that a walk visits: molecular dynamics, and Monte Carlo exchanges of elements.

A walk writes each structure that it keeps into a journal of its own as soon as it is there, with
the momenta, and takes random numbers anew from there on: one that was killed goes on from its last
structure, to the same end but for rounding. ASE's dynamics and thermostats do the work.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from tqdm import tqdm

from schnetpack_softadapt.data.executors import Spec, open_executor, run_all
from schnetpack_softadapt.data.generate.journal import read_lines
from schnetpack_softadapt.data.generate.labelling import import_calculator
from schnetpack_softadapt.data.importing.checks import closest_contact

__all__ = ["MD", "Swaps", "Walk", "settings_of", "walk", "walk_all"]

TOO_CLOSE = 0.5  # of the sum of covalent radii: the driver is no potential there
BULK_MODULUS = 100 * units.GPa  # which only says how fast NPT relaxes the volume


@dataclass
class MD:
    """Molecular dynamics; the settings of a recipe's `md`.

    Attributes:
        temperature: K; of two, a ramp from the first to the second.
        steps: of the whole run.
        every: how many lie between two structures that are kept.
        ensemble: "nvt" (Langevin), or "npt" (Berendsen, the shape of the cell stays).
        timestep: fs.
        friction: of the Langevin thermostat, 1/fs.
        pressure: GPa, positive = compression.
        stop: the run ends where the forces of a committee differ on an atom by more, eV/Ang
            (`forces_std` of its results); that structure is kept.
        repeats: runs with other random numbers.
    """

    temperature: float | Sequence[float]
    steps: int = 1000
    every: int = 100
    ensemble: str = "nvt"
    timestep: float = 2.0
    friction: float = 0.01
    pressure: float = 0.0
    stop: float | None = None
    repeats: int = 1
    kind: str = field(default="md", init=False)

    def __post_init__(self):
        _check(self)
        if self.ensemble not in ("nvt", "npt"):
            raise ValueError(f"md: ensemble is nvt or npt, not {self.ensemble!r}")

    def advance(self, atoms: Atoms, temperature: float, rng: np.random.Generator, first: bool):
        """`every` steps; yields after each."""
        if first:
            MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
            Stationary(atoms)
        settings = {"timestep": self.timestep * units.fs, "temperature_K": temperature}
        if self.ensemble == "nvt":
            friction = self.friction / units.fs
            dynamics = Langevin(atoms, friction=friction, fixcm=False, rng=rng, **settings)
        else:
            pressure = {"pressure_au": self.pressure * units.GPa}
            dynamics = NPTBerendsen(
                atoms, compressibility_au=1 / BULK_MODULUS, **settings, **pressure
            )
        yield from dynamics.irun(self.every)


@dataclass
class Swaps:
    """Monte Carlo: two atoms of different elements exchange their places, or do not (Metropolis).

    Attributes:
        temperature: K; of two, a ramp.
        steps: attempts of the whole walk.
        every, stop, repeats: as in `MD`.
    """

    temperature: float | Sequence[float]
    steps: int = 1000
    every: int = 100
    stop: float | None = None
    repeats: int = 1
    kind: str = field(default="swaps", init=False)

    def __post_init__(self):
        _check(self)

    def advance(self, atoms: Atoms, temperature: float, rng: np.random.Generator, first: bool):
        """`every` attempts; yields after each."""
        energy = atoms.get_potential_energy()
        for _ in range(self.every):
            numbers = atoms.numbers.copy()
            i = rng.integers(len(atoms))
            j = rng.choice(np.flatnonzero(numbers != numbers[i]))
            atoms.numbers[[i, j]] = numbers[[j, i]]
            after = atoms.get_potential_energy()
            if rng.random() < np.exp(min(0.0, (energy - after) / (units.kB * temperature))):
                energy = after
                yield
            else:
                atoms.numbers[:] = numbers
                yield
        atoms.get_potential_energy()


def _check(settings: MD | Swaps) -> None:
    kind = settings.kind
    ramp = np.atleast_1d(settings.temperature).astype(float)
    if len(ramp) > 2 or not (ramp > 0).all():
        raise ValueError(f"{kind}: temperature is one or two numbers (K), not {ramp.tolist()}")
    settings.temperature = ramp.tolist()
    for name in ("steps", "every", "repeats"):
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{kind}: {name} is a whole number from 1 on, not {value!r}")
    if settings.steps % settings.every:
        raise ValueError(f"{kind}: steps={settings.steps} is no multiple of every={settings.every}")


def settings_of(kind: type, given: Mapping | Sequence[Mapping]) -> tuple:
    """Settings from a recipe: one mapping or several."""
    result = []
    for entry in [given] if isinstance(given, Mapping | kind) else given:
        try:
            result.append(entry if isinstance(entry, kind) else kind(**entry))
        except TypeError as error:
            names = ", ".join(f for f in kind.__dataclass_fields__ if f != "kind")
            raise ValueError(f"{kind.__name__.lower()}: {error}; settings are {names}") from None
    return tuple(result)


@dataclass
class Walk:
    """One walk, everything that determines it.

    Attributes:
        key: its name.
        prototype: name of what it starts from.
        start: that structure.
        settings: of what is done.
        driver, driver_args: calculator that moves the atoms.
        seed: of its random numbers.
        folder: where its journal is; the name follows from all of the above.
    """

    key: str
    prototype: str
    start: Atoms
    settings: MD | Swaps
    driver: str
    driver_args: dict
    seed: int
    folder: Path

    @property
    def journal(self) -> Path:
        """File of the structures that are kept."""
        text = json.dumps(
            [self.key, asdict(self.settings), self.driver, self.driver_args, self.seed]
        )
        digest = hashlib.sha256(text.encode())
        for array in (self.start.numbers, self.start.positions, self.start.cell.array):
            digest.update(np.round(np.asarray(array, float), 8).tobytes())
        return self.folder / f"{digest.hexdigest()[:16]}.jsonl"


def walk(task: Walk, worker: str = "") -> tuple[list[Atoms], str]:
    """Go on with a walk to its end; returns what it kept, and how it ended.

    As what `run_all` runs it is told its worker, which makes no difference.

    The structures' `info` has `step`, `temperature` (K) and, of a committee, `spread` (eV/Ang).

    Raises:
        ValueError: a stop is asked for, but the driver is no committee; a swap of one element.
    """
    settings, path = task.settings, task.journal
    records = read_lines(path)
    atoms = task.start.copy()
    if isinstance(settings, Swaps) and len(set(atoms.symbols)) < 2:
        raise ValueError(f"swaps: {task.key} has a single element")
    n = settings.steps // settings.every
    ramp = np.linspace(settings.temperature[0], settings.temperature[-1], n)
    if not (records and "end" in records[-1]):
        atoms.calc = import_calculator(task.driver)(**task.driver_args)
        if settings.stop is not None:
            _spread(atoms)  # a driver that is no committee is an error now
        if records:
            _restore(atoms, records[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            for k in range(len(records), n):
                records.append(_advance(atoms, settings, float(ramp[k]), k, n, task.seed))
                file.write(json.dumps(records[-1]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                if "end" in records[-1]:
                    break
    kept = []
    for record in records:
        if "positions" in record:
            atoms = task.start.copy()
            _restore(atoms, record)
            atoms.set_momenta(None)
            atoms.info = {k: record[k] for k in ("step", "temperature", "spread") if k in record}
            kept.append(atoms)
    return kept, records[-1]["end"]


def _advance(atoms: Atoms, settings, temperature: float, k: int, n: int, seed: int) -> dict:
    """The next structure as a record; one with `end` is the last."""
    rng = np.random.default_rng([seed, k])
    record: dict = {"temperature": temperature}
    step = k * settings.every
    try:
        for number, _ in enumerate(settings.advance(atoms, temperature, rng, k == 0)):
            step = k * settings.every + number
            if settings.stop is not None and (spread := _spread(atoms)) > settings.stop:
                record["end"] = f"step {step}: forces uncertain by {spread:.3f} eV/Ang"
                break
        else:
            step = (k + 1) * settings.every
        if not np.isfinite(atoms.positions).all():
            raise ArithmeticError("positions are not finite")
        if closest_contact(atoms, None, TOO_CLOSE) is not None:
            raise ArithmeticError("atoms came too close")
    except (
        Exception
    ) as error:  # drivers raise anything at all, and what was before is worth keeping
        return {**record, "end": f"step {step}: {error}"}
    if k + 1 == n:
        record.setdefault("end", "done")
    if "forces_std" in atoms.calc.results:
        record["spread"] = _spread(atoms)
    arrays = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
    arrays["momenta"] = atoms.get_momenta()
    return {**record, "step": step, **{name: array.tolist() for name, array in arrays.items()}}


def _spread(atoms: Atoms) -> float:
    """Largest uncertainty of the force on an atom, eV/Ang."""
    atoms.get_forces()
    spread = atoms.calc.results.get("forces_std")
    if spread is None:
        raise ValueError(
            "stop needs a committee as driver: schnetpack_softadapt:SoftAdaptCalculator with"
            " several models, whose results have forces_std"
        )
    return float(np.linalg.norm(spread, axis=1).max())


def _restore(atoms: Atoms, record: dict) -> None:
    atoms.numbers[:] = record["numbers"]
    atoms.set_cell(record["cell"])
    atoms.positions = record["positions"]
    atoms.set_momenta(record["momenta"])


def walk_all(tasks: Sequence[Walk], executor: Spec = "local:1") -> list[tuple[list[Atoms], str]]:
    """What `walk` gives, in the order of the walks.

    Raises:
        ValueError: a walk that cannot be done.
    """
    found = {}
    with open_executor(executor) as workers:
        walking = tqdm(
            run_all(walk, [(task.key, (task,)) for task in tasks], workers),
            total=len(tasks),
            desc="walking",
            unit=" walks",
            disable=None,
        )
        for key, result, reason in walking:
            if reason is not None:
                raise ValueError(f"{key}: {reason}")
            found[key] = result
    return [found[task.key] for task in tasks]
