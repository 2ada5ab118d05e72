"""Labels for many structures from any ASE calculator, by processes that may die.

Each structure is labelled in a worker process that this module starts itself, so that it knows
which structure a crashed process had: that one is recorded as failed, a new worker goes on.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

__all__ = ["CalculatorSpec", "Labels", "import_calculator", "label", "label_all"]

Labels = dict[str, list | float | str | None]


@dataclass(frozen=True)
class CalculatorSpec:
    """How a worker makes its calculator.

    Attributes:
        path: "module:name" of a class or function.
        arguments: keyword arguments; "{worker}" in a text becomes the worker's number, for
            calculators that write files into a directory of their own.
    """

    path: str
    arguments: dict

    def make(self, worker: int = 0):
        """A new calculator."""
        return import_calculator(self.path)(**_fill(self.arguments, worker))


def import_calculator(path: str) -> Callable:
    """The class or function at "module:name"; modules in the current directory are found too.

    Importing executes the module: use only recipes that you trust.

    Raises:
        ValueError: there is none.
    """
    module_name, separator, name = path.partition(":")
    if not separator or not name:
        raise ValueError(f"calculator {path!r} is not module:name, as ase.calculators.emt:EMT")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ValueError(f"calculator {path}: {error}") from error
    except AttributeError:
        raise ValueError(f"calculator {path}: there is no {name!r} in {module_name}") from None
    if not callable(found):
        raise ValueError(f"calculator {path}: {name!r} cannot be called")
    return found


def label(atoms: Atoms, calculator) -> Labels:
    """Energy, forces and (if periodic, and if the calculator has it) stress; ASE's units.

    The energy is the free energy where the calculator gives one, which forces derive from.

    Raises:
        ValueError: a label is not finite.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    energy = float(atoms.get_potential_energy())
    forces = atoms.get_forces()
    stress = None
    if atoms.pbc.any():
        # where it is missing, the database says so
        with contextlib.suppress(PropertyNotImplementedError, NotImplementedError):
            stress = atoms.get_stress(voigt=False)
    free_energy = getattr(calculator, "results", {}).get("free_energy")
    if free_energy is not None:
        energy = float(free_energy)
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} not finite")
    return {
        "energy": energy,
        "forces": np.asarray(forces, dtype=np.float64).tolist(),
        "stress": None if stress is None else np.asarray(stress, dtype=np.float64).tolist(),
    }


def label_all(
    tasks: Iterable[tuple[int, Atoms, CalculatorSpec]], n_jobs: int = 1
) -> Iterator[tuple[int, Labels]]:
    """Label structures in `n_jobs` processes, and yield each as soon as it is done.

    Args:
        tasks: any number, structure, and how to make its calculator (a new one for each, so that
            no result depends on what was computed before).
        n_jobs: number of processes; each may use several threads (OMP_NUM_THREADS).

    Yields:
        the number and the labels, or {"error": reason}.
    """
    queue = iter(tasks)
    first = next(queue, None)
    waiting = deque() if first is None else deque([first])
    workers: list[_Worker] = []
    try:
        while True:
            if not waiting and (task := next(queue, None)) is not None:
                waiting.append(task)
            if waiting and len(workers) < n_jobs:
                busy = {worker.number for worker in workers}
                workers.append(_Worker(min(set(range(n_jobs)) - busy)))
                workers[-1].give(waiting.popleft())
                continue
            if not workers:
                return
            ready = wait([worker.connection for worker in workers])
            for worker in [w for w in workers if w.connection in ready]:
                number, labels, is_alive = worker.take()
                yield number, labels
                task = waiting.popleft() if waiting else next(queue, None)
                if is_alive and task is not None:
                    worker.give(task)
                    continue
                worker.stop()
                workers.remove(worker)
                if task is not None:
                    waiting.append(task)
    finally:
        for worker in workers:
            worker.stop(kill=True)


class _Worker:
    """A process, and the structure it has in hand."""

    def __init__(self, number: int):
        context = multiprocessing.get_context("spawn")  # calculators may hold threads or a GPU
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, number), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process ends the connection
        self.number = number
        self.in_hand: int | None = None

    def give(self, task: tuple[int, Atoms, CalculatorSpec]) -> None:
        self.in_hand = task[0]
        with contextlib.suppress(OSError):  # if it has died, `take` finds out
            self.connection.send(task)

    def take(self) -> tuple[int, Labels, bool]:
        """Number and labels of the structure it had, and whether the process still lives."""
        try:
            return (*self.connection.recv(), True)
        except (EOFError, OSError):
            self.process.join()
            reason = f"the process of the calculator died (exit code {self.process.exitcode})"
            return self.in_hand, {"error": reason}, False

    def stop(self, kill: bool = False) -> None:
        self.connection.close()
        if kill:
            self.process.kill()
        self.process.join()


def _work(connection: Connection, worker: int) -> None:
    """Label what comes in until the other side is gone."""
    while True:
        try:
            number, atoms, spec = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            labels = label(atoms, spec.make(worker))
        except KeyboardInterrupt:
            return
        except Exception as error:  # calculators raise anything at all
            lines = traceback.format_exception_only(error)
            labels = {"error": " ".join("".join(lines).split())[:500]}
        try:
            connection.send((number, labels))
        except OSError:
            return


def _fill(value, worker: int):
    """The arguments with "{worker}" replaced in every text."""
    if isinstance(value, str):
        return value.replace("{worker}", str(worker))
    if isinstance(value, dict):
        return {key: _fill(item, worker) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, worker) for item in value]
    return value
