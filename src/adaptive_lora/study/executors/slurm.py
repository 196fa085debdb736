"""`--executor slurm`: a bank is one Slurm job, through submitit; with the extra `submitit`.

The driver must live as long as its jobs, on a login node or in a small job of its own; without a driver see
`run --shard`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from adaptive_lora.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
_POLL_SECONDS = 2.0


class SlurmExecutor(Executor):
    """Jobs through submitit. `resources` are its parameters (`gpus_per_node=1`, `mem_gb=32`, `timeout_min=240`,
    `slurm_partition=...`), and two of our own: `cluster` (`local` runs jobs as processes of this machine) and `logs`,
    the folder for job files, which all nodes must see.
    """

    def __init__(self, resources: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError("submitit is not installed; pip install 'adaptive-lora[submitit]'.") from None
        own = dict(resources)
        cluster, logs = own.pop("cluster", None), Path(str(own.pop("logs", "slurm-logs"))).resolve()
        try:
            self._executor: Any = submitit.AutoExecutor(folder=logs, cluster=cluster)
            self._executor.update_parameters(**own)
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise UsageError(f"Slurm cannot be used as asked: {error}") from None
        self._seconds = 0.2 if cluster in ("local", "debug") else _POLL_SECONDS
        self._jobs: dict[Future[Any], Any] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """One job; its future is done when its answer is there, or the scheduler says that it ended without one."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # so that it is given up by `abandon`, which ends what it stands for
        job = self._executor.submit(fn, *args, **kwargs)
        self._jobs[future] = job
        threading.Thread(target=self._wait, args=(future, job), daemon=True).start()
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Cancels the job."""
        if (job := self._jobs.pop(future, None)) is not None:
            job.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures` cancels what has not ended; a job that is left ends where it sees its lease gone."""
        for future in list(self._jobs):
            if cancel_futures and not future.done():
                self.abandon(future)

    def _wait(self, future: Future[Any], job: Any) -> None:
        while not job.done():
            time.sleep(self._seconds)
        try:
            future.set_result(job.result())
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._jobs.pop(future, None)
