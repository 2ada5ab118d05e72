"""Functions of many inputs on many cores: processes here, a cluster by dask, any executor.

Whoever schedules, a task runs in a child process of the worker (see `children`): so all schedulers
behave alike, and a task that crashes or takes too long is known and costs itself alone.
"""

import contextlib
import importlib
import itertools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml

from schnetpack_softadapt.data.children import in_words, kill_children, place, run_batch

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
            kill_children(place())
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
                raise ValueError(f"executor {where}: {in_words(error)}") from error
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
                    client.run(kill_children, place())
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
                raise ValueError(f"executor {given} is not YAML: {in_words(error)}") from None
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
    home = place()
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
                    future = executor.submit(run_batch, function, inputs, timeout, retries, home)
                except Exception as error:  # each kind of executor has an error of its own
                    raise ConnectionError(f"{LOST} ({in_words(error)})") from error
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
                            yield task[0], None, f"lost with its worker ({in_words(error)})"
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
