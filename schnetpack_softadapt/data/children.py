"""Child processes in which workers run tasks, wherever a worker is.

A child lives on from task to task. One that crashes or takes too long costs the task that it had,
and another takes its place. It goes, with all processes that it started, when its worker does,
however that ends.
"""

import contextlib
import itertools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from multiprocessing.connection import Connection

__all__ = ["in_words", "kill_children", "place", "run_batch"]


def run_batch(
    function: Callable, inputs: list[tuple], timeout: float | None, retries: int, home: tuple
) -> tuple[list, float]:
    """What a worker does: (result, reason) of each input, and the time that it took."""
    start = time.perf_counter()
    child = _Child.idle(home)
    try:
        results = child.run(function, inputs, timeout, retries)
    finally:
        child.is_busy = False
    return results, time.perf_counter() - start


def place() -> tuple[str, int, str]:
    return socket.gethostname(), os.getpid(), os.getcwd()


class _Child:
    """A process that runs one task at a time; started when needed, also after it died."""

    all: "list[_Child]" = []  # noqa: RUF012
    lock = threading.Lock()

    def __init__(self, home: tuple, number: int):
        self.home, self.is_busy, self.is_over = home, True, False
        self.process: subprocess.Popen | None = None
        host, process, _ = place()
        at_home = (host, process) == home[:2]
        self.number, self.name = number, str(number) if at_home else f"{host}-{process}-{number}"

    @classmethod
    def idle(cls, home: tuple) -> "_Child":
        """One of the same home that has nothing to do, else a new one."""
        with cls.lock:
            child = next((c for c in cls.all if c.home == home and not c.is_busy), None)
            if child is None:
                taken = {c.number for c in cls.all}
                child = cls(home, next(k for k in itertools.count() if k not in taken))
                cls.all.append(child)
            child.is_busy = True
        return child

    def run(
        self, function: Callable, inputs: list[tuple], timeout: float | None, retries: int
    ) -> list[tuple]:
        """Result and None, or None and the reason why there is none, of each input."""
        results, n_tries, is_at_work = [], 0, False
        while len(results) < len(inputs):
            try:
                if self.process is None:
                    self._start()
                if self.function is not function:  # what it imports is not the time of a task
                    self.connection.send((function, [], 0, 0, self.name))
                    if reason := self.connection.recv():
                        return [(None, reason)] * len(inputs)
                    self.function = function
                if not is_at_work:  # all at once, so that it waits for nobody
                    left = inputs[len(results) :]
                    self.connection.send((function, left, retries, n_tries, self.name))
                    is_at_work = True
                if self.connection.poll(timeout):
                    answer = self.connection.recv()
                else:
                    answer, is_at_work = (None, f"took longer than {timeout:g} s"), False
            except (EOFError, OSError):
                if self.is_over:
                    raise CancelledError from None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1.0)  # for its own exit code
                code = self.process.poll()
                answer = None, f"the process of the calculation died (exit code {code})"
                is_at_work = False
            if not is_at_work:
                self.kill()
            n_tries += 1
            if answer[1] is None or n_tries > retries:
                results.append(answer)
                n_tries = 0
        return results

    def _start(self) -> None:
        if self.is_over:
            raise CancelledError
        # not multiprocessing, whose children may have none themselves: workers of dask are such
        ours, theirs = socket.socketpair()
        code = f"from {__name__} import _serve; _serve({theirs.fileno()})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            cwd=self.home[2] if os.path.isdir(self.home[2]) else None,
        )
        theirs.close()
        self.function, self.connection = None, Connection(ours.detach())

    def kill(self) -> None:
        """End the process and what it started."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill_children(home: tuple) -> None:
    """End what works for a process; others may use the same workers."""
    with _Child.lock:
        children = [c for c in _Child.all if c.home[:2] == home[:2]]
        _Child.all = [c for c in _Child.all if c not in children]
    for child in children:
        child.is_over = True  # its thread may want to go on
        child.kill()


def _serve(descriptor: int) -> None:
    """What a child does: tasks, until the worker is gone; then it goes at once, with all it has."""
    connection = Connection(descriptor)
    tasks: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                tasks.put(connection.recv_bytes())
        except (EOFError, OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    for task in iter(tasks.get, None):
        try:
            function, inputs, retries, n_tries, worker = pickle.loads(task)
        except Exception as error:  # the module of the function cannot be imported
            connection.send(in_words(error))
            continue
        if not inputs:
            connection.send(None)
        for args in inputs:
            for _ in range(n_tries, retries + 1):
                try:
                    answer = function(*args, worker=worker), None
                except Exception as error:  # calculators raise anything at all
                    answer = None, in_words(error)
                connection.send(answer)
                if answer[1] is None:
                    break
            n_tries = 0


def in_words(error: Exception) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]
