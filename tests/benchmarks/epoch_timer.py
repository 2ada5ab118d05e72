"""Lightning callbacks that time epochs, for `training.py`, and watch memory, for `scaling.py`."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

__all__ = ["EpochTimer", "MemoryWatch"]


class MemoryWatch(Callback):
    """CPU seconds of each epoch and the memory of the process that belongs to no file.

    The memory is looked at twenty times a second from the start of the process on, reading of the
    data and building of the store included. Pages of the mapped store are no part of it (RssAnon
    of Linux): the system drops them when it needs room.

    Args:
        path: JSON file, relative to the run directory.
    """

    def __init__(self, path: str = "memory.json"):
        self.path = Path(path).resolve()
        self.cpu: list[float] = []
        self.at_start = self.most = self.own_mb()
        self.before_training = 0.0
        threading.Thread(target=self.watch, daemon=True).start()

    @staticmethod
    def own_mb() -> float:
        """RssAnon, MB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024e-6 for x in lines if x.startswith("RssAnon"))

    def watch(self):
        while True:
            self.most = max(self.most, self.own_mb())
            time.sleep(0.05)

    def on_train_start(self, trainer, pl_module):
        self.before_training = time.process_time()

    def on_train_epoch_start(self, trainer, pl_module):
        self.cpu.append(time.process_time())

    def on_train_end(self, trainer, pl_module):
        self.cpu.append(time.process_time())
        epochs = np.diff(self.cpu)
        result = {
            "cpu_s_before": self.before_training,
            # compiled code is read in the first
            "cpu_s_per_epoch": float(np.median(epochs[1:] if len(epochs) > 1 else epochs)),
            "own_mb": self.most,
            "own_mb_before_data": self.at_start,
        }
        self.path.write_text(json.dumps(result))


class EpochTimer(Callback):
    """CPU and wall time from the start of one training epoch to the start of the next.

    An epoch so counted contains everything: batches, steps, validation, checkpoints, logging. The
    first `skip` epochs are left out (compilation, caches). At the end of the fit, parts of a
    training epoch are run alone, for the breakdown.

    Args:
        path: JSON file, relative to the run directory.
        skip: epochs not counted.
    """

    def __init__(self, path: str = "epochs.json", skip: int = 2):
        self.path = Path(path).resolve()
        self.skip = skip
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def on_train_end(self, trainer, pl_module):
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def on_fit_end(self, trainer, pl_module):
        result = {
            "cpu_s_per_epoch": float(np.median(np.diff(self.cpu)[self.skip :])),
            "wall_s_per_epoch": float(np.median(np.diff(self.wall)[self.skip :])),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "breakdown_cpu_s": breakdown(trainer, pl_module),
        }
        self.path.write_text(json.dumps(result))


def cpu_time(function, repeats: int = 3) -> float:
    """Smallest CPU time of `function`, s."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def breakdown(trainer, task) -> dict[str, float]:
    """CPU seconds that parts of a training epoch take when run alone.

    `data`: making the batches. `descriptors`: their values, the product with dE/dG and its
    transpose, which is what forces, stress and their training read. `step`: model, losses,
    gradient and optimizer without Lightning; the network's share is what it exceeds `descriptors`
    by.
    """
    loader = trainer.datamodule.train_dataloader()
    batches = list(loader)
    optimizer = task.optimizers(use_pl_optimizer=False)
    task.train()

    def steps():
        for index, batch in enumerate(batches):
            optimizer.zero_grad()
            task.training_step(batch, index).backward()
            optimizer.step()

    parts = {"data": cpu_time(lambda: list(loader)), "step": cpu_time(steps)}
    representation = task.model.representation
    if hasattr(representation, "descriptor"):
        parts["descriptors"] = cpu_time(lambda: [descriptors_only(task.model, b) for b in batches])
    return parts


def descriptors_only(model, batch) -> None:
    """Values, VJP and JVP of the descriptors of a batch, with a linear energy for networks."""
    from schnetpack import properties

    from schnetpack_softadapt import properties as keys

    inputs = model.initialize_derivatives(dict(batch))
    for module in model.input_modules:
        inputs = module(inputs)
    values = model.representation(inputs)[keys.scalar_representation]
    weights = torch.ones_like(values).requires_grad_()
    leaves = [inputs[properties.R], inputs[properties.strain]]
    grads = torch.autograd.grad((values * weights).sum(), leaves, create_graph=True)
    torch.autograd.grad(sum((g**2).sum() for g in grads), weights)
