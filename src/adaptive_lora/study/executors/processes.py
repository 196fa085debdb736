"""`--executor processes`: workers on this machine, one to every accelerator, or sharing the cores.

Each worker is a pool of one process. A process that dies takes its own bank with it and no other, and one that hangs
can be killed alone; a pool of several would end them all.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

from adaptive_lora.study.executors.worker import start_worker

P = ParamSpec("P")
T = TypeVar("T")


def devices_of(device: str | None, count: int | None) -> list[str]:
    """The device of every worker: each accelerator of the kind asked for, in turn; on the CPU one worker a core.

    By default as many workers as accelerators. A device by number (`cuda:1`) is shared by all workers.
    """
    import torch

    from adaptive_lora.training.base import default_device

    device = device or default_device()
    accelerators = torch.cuda.device_count() if device == "cuda" else 0
    if accelerators > 1:
        return [f"cuda:{i % accelerators}" for i in range(count or accelerators)]
    return [device] * (count or (torch.get_num_threads() if device == "cpu" else 1))


class ProcessesExecutor(Executor):
    """Processes of this machine. They share the threads that torch has here, load a study once, and keep it."""

    def __init__(self, devices: Sequence[str]) -> None:
        import torch

        self._devices = list(devices)
        self._threads = max(1, torch.get_num_threads() // len(devices))
        self._pools: list[ProcessPoolExecutor | None] = [None] * len(devices)
        self._tasks: list[Future[Any] | None] = [None] * len(devices)
        self._closed = False
        for at in range(len(devices)):  # they load libraries while the driver still evaluates and plans
            self._pool(at).submit(os.getpid)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """To an idle worker, else to the first; where its process has died to a new one."""
        if self._closed:
            raise RuntimeError("The executor was shut down.")
        idle = [i for i, task in enumerate(self._tasks) if task is None or task.done()]
        at = idle[0] if idle else 0
        try:
            future = self._pool(at).submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._end(at)
            future = self._pool(at).submit(fn, *args, **kwargs)
        self._tasks[at] = future
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Kills the process that works on a task; the next task there starts a new one."""
        if future in self._tasks:
            self._end(self._tasks.index(future))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers; with `cancel_futures` those that are at work are killed."""
        self._closed = True
        for at, task in enumerate(self._tasks):
            if cancel_futures and task is not None and not task.done():
                self._end(at)
            elif (pool := self._pools[at]) is not None:
                pool.shutdown(wait)

    def _pool(self, at: int) -> ProcessPoolExecutor:
        pool = self._pools[at]
        if pool is None:
            # A forked process would have torch's threads locked, and no use of an accelerator.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, context, start_worker, (self._devices[at], self._threads))
            self._pools[at] = pool
        return pool

    def _end(self, at: int) -> None:
        pool, self._pools[at], self._tasks[at] = self._pools[at], None, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.kill()  # also where it is stopped and would not hear anything milder
            pool.shutdown(wait=False, cancel_futures=True)
