"""Labels for many structures from any ASE calculator, by processes that may die.

Each worker process has one structure in hand at a time, so that it is known which one a crashed
process had: that one is recorded as failed, and another process goes on. `concurrent.futures`
cannot tell, and its processes outlive a parent that is killed.
"""

import contextlib
import importlib
import multiprocessing
import os
import queue
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

__all__ = ["import_calculator", "label_all"]

Labels = dict[str, list | float | str | None]


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


def _fill(value, worker: int):
    """Arguments of a calculator, with "{worker}" in every text replaced by a number."""
    if isinstance(value, str):
        return value.replace("{worker}", str(worker))
    if isinstance(value, dict):
        return {key: _fill(item, worker) for key, item in value.items()}
    return [_fill(item, worker) for item in value] if isinstance(value, list) else value


def _label(atoms: Atoms, calculator) -> Labels:
    """Energy, forces and (if periodic, and if the calculator has it) stress (3, 3); ASE's units.

    The energy is the free energy where the calculator gives one, which forces derive from.
    """
    atoms.calc = calculator
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": None}
    if atoms.pbc.any():
        # where it is missing, the database says so
        with contextlib.suppress(PropertyNotImplementedError, NotImplementedError):
            labels["stress"] = atoms.get_stress(voigt=False)
    free_energy = getattr(calculator, "results", {}).get("free_energy")
    if free_energy is not None:
        labels["energy"] = free_energy
    for name, value in labels.items():
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} not finite")
    return {k: v if v is None else np.asarray(v, np.float64).tolist() for k, v in labels.items()}


def label_all(
    tasks: Iterable[tuple[str, Atoms, dict]], calculator: str, n_jobs: int = 1
) -> Iterator[tuple[str, Labels]]:
    """Label structures in `n_jobs` processes, and yield each as soon as it is done.

    Args:
        tasks: name, structure, and keyword arguments of its calculator; "{worker}" in a text
            becomes the worker's number, for calculators that write files into a directory of their
            own.
        calculator: "module:name" of a class or function that makes one. Each structure gets a new
            one, so that no result depends on what was computed before.
        n_jobs: number of processes; each may use several threads (OMP_NUM_THREADS).

    Yields:
        the name and the labels, or {"error": reason}.
    """
    workers = [_Worker(number) for number in range(n_jobs)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def label(atoms: Atoms, arguments: dict) -> Labels:
        worker = idle.get()
        try:
            return worker.label(atoms, calculator, arguments)
        finally:
            idle.put(worker)

    threads, is_done = ThreadPoolExecutor(n_jobs), False
    try:
        names = {threads.submit(label, *task[1:]): task[0] for task in tasks}
        for future in as_completed(names):
            yield names[future], future.result()
        is_done = True
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop(kill=not is_done)


class _Worker:
    """A process that labels one structure at a time; started when needed, also after it died."""

    def __init__(self, number: int):
        self.number = number
        self.process: multiprocessing.Process | None = None

    def label(self, *task) -> Labels:
        if self.process is None:
            context = multiprocessing.get_context("spawn")  # calculators may hold threads or a GPU
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, self.number), daemon=True)
            self.process.start()
            theirs.close()  # so that the end of the process ends the connection
        try:
            self.connection.send(task)
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code, self.process = self.process.exitcode, None
            return {"error": f"the process of the calculator died (exit code {code})"}

    def stop(self, kill: bool) -> None:
        process = self.process
        if process is not None:
            self.connection.close()
            if kill:
                process.kill()
            process.join()


def _work(connection: Connection, worker: int) -> None:
    """Label what comes in until the other side is gone."""
    while True:
        try:
            atoms, calculator, arguments = connection.recv()
            try:
                labels = _label(atoms, import_calculator(calculator)(**_fill(arguments, worker)))
            except Exception as error:  # calculators raise anything at all
                lines = traceback.format_exception_only(error)
                labels = {"error": " ".join("".join(lines).split())[:500]}
            connection.send(labels)
        except (EOFError, OSError, KeyboardInterrupt):
            return
