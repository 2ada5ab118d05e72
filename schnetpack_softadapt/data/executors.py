"""Functions of many inputs on many cores: processes here, a cluster by dask, any executor.

Whoever schedules, a task runs in a child process of the worker, which lives on from task to task.
So all schedulers behave alike: a task that crashes or takes too long costs its child, it is known
which one it was, and the worker goes on. A child and all processes that it started go with the
worker, however that ends.
"""

import contextlib
import importlib
import itertools
import json
import logging
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

__all__ = ["import_object", "open_executor", "run_all"]

#: seconds of work that go to a worker at once: much beyond what sending costs, little to lose
SECONDS_PER_BATCH = 2.0
LARGEST_BATCH = 500
#: batches that wait or run at once where the number of workers is not known, or changes
IN_FLIGHT = 64
PATIENCE = 15.0  # s, for a scheduler to answer, or a worker to come

logger = logging.getLogger(__name__)

LOST = "the executor's scheduler or pool is lost; what is finished is kept, start again to go on"

ADDRESSES = "tcp://host:8786, a scheduler's file.json, or a class of clusters as module:name"
EXAMPLES = "local:4, dask:tcp://host:8786, a YAML file"

Spec = str | Mapping | Executor


def import_object(path: str, what: str) -> Callable:
    """The class or function at "module:name"; modules in the current directory are found too.

    Importing executes the module.

    Raises:
        ValueError: there is none; `what` says what was asked for.
    """
    module_name, separator, name = path.partition(":")
    if not separator or not name:
        raise ValueError(f"{what} {path!r} is not module:name, as ase.calculators.emt:EMT")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ValueError(f"{what} {path}: {error}") from error
    except AttributeError:
        raise ValueError(f"{what} {path}: there is no {name!r} in {module_name}") from None
    if not callable(found):
        raise ValueError(f"{what} {path}: {name!r} cannot be called")
    return found


@contextlib.contextmanager
def open_executor(spec: Spec) -> Iterator[Executor]:
    """The executor of a setting; closed in the end, with what it runs, if it was made here.

    Args:
        spec: `local:4` (processes of this machine), `dask:tcp://host:8786` or `dask:scheduler.json`
            (a scheduler that runs), a YAML file or a mapping with one of these, as `{local: 4}`, or
            with a class of clusters, `{dask: "dask_jobqueue:SLURMCluster", workers: 20,
            arguments: {queue: long, cores: 1, memory: 4GB, walltime: "02:00:00"}}`; or any
            `concurrent.futures.Executor`.

    Raises:
        ValueError: none of these, dask is not installed, or a cluster refuses its jobs.
        ConnectionError: no scheduler answers.
    """
    if isinstance(spec, Executor):
        yield spec
        return
    settings = _settings(spec)
    if "local" in settings:
        local = ThreadPoolExecutor(settings["local"])
        try:
            yield local
        finally:
            local.shutdown(wait=False, cancel_futures=True)
            _kill_children(_place())
        return
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"executor {spec}: `pip install distributed` first") from None
    where = settings["dask"]
    with contextlib.ExitStack() as stack:
        if where.endswith(".json"):
            try:
                address = json.loads(Path(where).read_text(encoding="utf-8"))["address"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"executor {where}: not the file of a scheduler of dask") from None
        elif "://" in where:
            address = where
        else:
            made = import_object(where, "cluster")
            try:
                address = made(**settings["arguments"])
                stack.callback(_close, address)
                _keep_size(address, settings["workers"], stack)
            except Exception as error:  # queues have all sorts of complaints
                raise ValueError(f"executor {where}: {_reason(error)}") from error
        try:
            client = stack.enter_context(Client(address, timeout=PATIENCE))
        except OSError as error:
            raise ConnectionError(f"executor {where}: no scheduler answers ({error})") from error
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            if client.status == "running":
                with contextlib.suppress(Exception):  # workers that are gone need not be told
                    executor.shutdown(wait=False)
                    client.run(_kill_children, _place())
            else:  # dask logs many tracebacks of a scheduler that is gone
                logging.disable(logging.CRITICAL)
                stack.callback(logging.disable, logging.NOTSET)
                client.close()


def _keep_size(cluster, n: int, stack: contextlib.ExitStack) -> None:
    """Start workers, and others in the place of those whose jobs end, as all do some time."""

    async def fill() -> None:
        while len(cluster.worker_spec) < n:
            cluster.worker_spec.update(cluster.new_worker_spec())
        await cluster  # submits those that are missing, and raises what the queue says

    def size() -> None:
        cluster.sync(fill) if hasattr(cluster, "worker_spec") else cluster.scale(n)

    def keep() -> None:
        for k in itertools.count():
            if over.wait(PATIENCE):
                break
            if k == 0 and not cluster.scheduler_info["workers"]:
                logger.warning("no worker yet: look at the queue, and at the output of the jobs")
            with contextlib.suppress(Exception):  # the others go on
                size()

    size()
    over = threading.Event()
    stack.callback(over.set)
    threading.Thread(target=keep, daemon=True).start()


def _close(cluster) -> None:
    with contextlib.suppress(Exception):  # as of jobs that never were
        cluster.close()


def _settings(spec: str | Mapping) -> dict:
    """A setting as a mapping with "local" or "dask"."""
    given = spec
    if isinstance(spec, str):
        kind, _, value = spec.partition(":")
        if kind in ("local", "dask"):
            spec = {kind: value}
        elif not Path(spec).is_file():
            raise ValueError(f"executor {spec!r} is none of {EXAMPLES}")
        else:
            try:
                spec = yaml.safe_load(Path(spec).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(f"executor {given} is not YAML: {_reason(error)}") from None
            if isinstance(spec, str):
                return _settings(spec)
    if not isinstance(spec, Mapping) or len({"local", "dask"} & set(spec)) != 1:
        raise ValueError(
            f"executor {given} has neither `local` nor `dask`; it is one of {EXAMPLES}"
        )
    unknown = set(spec) - {"local", "dask", "workers", "arguments"}
    if unknown:
        raise ValueError(f"executor {given}: unknown setting {unknown.pop()!r}")
    settings = {"workers": 1, "arguments": {}, **spec}
    for name in {"local", "workers"} & set(settings):
        text = str(settings[name])
        if not text.isdigit() or int(text) < 1:
            what = "processes" if name == "local" else name
            raise ValueError(f"executor {given}: a number of {what} from 1 on, not {text!r}")
        settings[name] = int(text)
    if not isinstance(settings["arguments"], Mapping):
        raise ValueError(f"executor {given}: arguments are those of the cluster, by name")
    if ":" not in (where := str(settings.get("dask", ":"))) and not where.endswith(".json"):
        raise ValueError(f"executor {given}: dask is {ADDRESSES}, not {where!r}")
    return settings


def run_all(
    function: Callable,
    tasks: Iterable[tuple[str, tuple]],
    executor: Executor,
    timeout: float | None = None,
    retries: int = 0,
) -> Iterator[tuple[str, Any, str | None]]:
    """Call a function with each of many arguments, and yield results as they come.

    Args:
        function: importable by name where the workers are; `worker` is given to it by name, a text
            that no other child of the executor has at the time.
        tasks: name and arguments.
        executor: see `open_executor`.
        timeout: of one task, s.
        retries: how often a task is tried again that failed, that took too long, or whose child
            died. Tasks of a worker that is lost go to others, as many times and at least once.

    Yields:
        name, result, None; or name, None, reason.

    Raises:
        ConnectionError: the executor takes no tasks any more, as when its scheduler was killed.
        ValueError: a negative number.
    """
    if retries < 0 or (timeout is not None and not timeout > 0):
        raise ValueError(
            f"timeout {timeout} is no time in s, or retries {retries} no number of them"
        )
    waiting: list = list(tasks)[::-1]
    size, seconds = 1, []
    # a pool of threads is of this machine: what waits in it gains nothing
    width = getattr(executor, "_max_workers", None)
    in_flight = 2 * width if isinstance(executor, ThreadPoolExecutor) else IN_FLIGHT
    home = _place()
    batches: dict[Future, list] = {}
    lost: dict[str, int] = {}
    single: list = []  # what a lost worker had, one by one
    try:
        while waiting or single or batches:
            while (waiting or single) and len(batches) < in_flight:
                fair = max(1, len(waiting) // (2 * (width or in_flight)))
                n = min(size, fair, LARGEST_BATCH)
                batch = [single.pop()] if single else [waiting.pop() for _ in range(n)]
                inputs = [args for _, args in batch]
                try:
                    future = executor.submit(_run_batch, function, inputs, timeout, retries, home)
                except Exception as error:  # each kind of executor has an error of its own
                    raise ConnectionError(f"{LOST} ({_reason(error)})") from error
                batches[future] = batch
            done, _ = wait(batches, return_when=FIRST_COMPLETED)
            # what is done goes first: the reader may not come back after an error
            for future in sorted(done, key=Future.cancelled):
                batch = batches.pop(future)
                if future.cancelled():  # not by us
                    raise ConnectionError(LOST)
                try:
                    results, duration = future.result()
                except Exception as error:  # the worker is lost, not the task
                    for task in batch:
                        n_lost = lost[task[0]] = lost.get(task[0], 0) + 1
                        if n_lost > max(1, retries):
                            yield task[0], None, f"lost with its worker ({_reason(error)})"
                        else:
                            single.append(task)
                    continue
                seconds = [*seconds[-20:], duration / len(batch)]
                mean = max(sum(seconds) / len(seconds), 1e-6)
                size = max(1, int(SECONDS_PER_BATCH / mean))
                for (name, _), (result, reason) in zip(batch, results, strict=True):
                    yield name, result, reason
    finally:
        for future in batches:
            future.cancel()


def _run_batch(
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


def _place() -> tuple[str, int, str]:
    return socket.gethostname(), os.getpid(), os.getcwd()


class _Child:
    """A process that runs one task at a time; started when needed, also after it died."""

    all: "list[_Child]" = []  # noqa: RUF012
    lock = threading.Lock()

    def __init__(self, home: tuple, number: int):
        self.home, self.is_busy, self.is_over = home, True, False
        self.process: subprocess.Popen | None = None
        host, process, _ = _place()
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


def _kill_children(home: tuple) -> None:
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
            connection.send(_reason(error))
            continue
        if not inputs:
            connection.send(None)
        for args in inputs:
            for _ in range(n_tries, retries + 1):
                try:
                    answer = function(*args, worker=worker), None
                except Exception as error:  # calculators raise anything at all
                    answer = None, _reason(error)
                connection.send(answer)
                if answer[1] is None:
                    break
            n_tries = 0


def _reason(error: Exception) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]
