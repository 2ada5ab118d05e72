"""Processes that need not import torch, Lightning and SchNetPack anew, which takes seconds."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

__all__ = ["start", "start_ranks"]


def start(
    function: Callable, *args, folder: Path, log: Path | None = None, **environment
) -> ForkProcess:
    """Run a function in a copy of this process, to be killed, or as one of several ranks.

    Args:
        function, args: what runs.
        folder: its working directory.
        log: file for what it prints; nowhere if not given.
        environment: variables of its own.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_begin, args=(function, args, folder, log or os.devnull, environment)
    )
    process.start()
    return process


def start_ranks(function: Callable, folder: Path, *args) -> list[str]:
    """Run a function as two ranks, as a launcher outside of Lightning does; what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [folder / f"rank-{rank}.log" for rank in (0, 1)]
    ranks = [
        start(function, *args, folder=folder, log=log, LOCAL_RANK=str(k), NODE_RANK="0", **address)
        for k, log in enumerate(logs)
    ]
    for rank, log in zip(ranks, logs, strict=True):
        rank.join(300)
        assert rank.exitcode == 0, log.read_text()[-3000:]
    return [log.read_text() for log in logs]


def _begin(function: Callable, args: tuple, folder: Path, log: Path, environment: dict) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 - until the process ends
    for output in (1, 2):
        os.dup2(sys.stdout.fileno(), output)
    os.environ.update(environment)
    torch.set_num_threads(1)  # threads do not survive a fork
    function(*args)
