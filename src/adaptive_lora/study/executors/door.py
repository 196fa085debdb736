"""The door between a study and whoever trains its banks: a `concurrent.futures.Executor`, and how it is waited for."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from adaptive_lora.errors import StudyFileError, UsageError, nearest_hint
from adaptive_lora.study.study_file import Study

EXECUTORS = ("local", "processes", "ray", "slurm")
LEASE_SECONDS = 60.0
"""Without a sign of life a worker is given up after this; network file systems show messages late."""


@dataclass(frozen=True)
class Workers:
    """Who trains a study's banks; by default the process itself.

    Workers("processes", count=2)                       # on the cores or accelerators of this machine
    Workers("ray", count=8, resources={"gpus": 1})      # on a cluster, with the extra `ray`
    Workers(executor=dask_client.get_executor())        # wherever a concurrent.futures.Executor leads

    Every machine must see the study folder under the same path. None of it changes a result.
    """

    executor: str | concurrent.futures.Executor = "local"
    count: int | None = None
    """Most banks at a time; None is one for every accelerator or core, or as many as there are banks."""
    lease_seconds: float = LEASE_SECONDS
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Of one bank, for `ray` and `slurm`; see `ray_cluster.py` and `slurm.py`."""

    def __post_init__(self) -> None:
        complaints = []
        if isinstance(self.executor, str) and self.executor not in EXECUTORS:
            hint = nearest_hint(self.executor, EXECUTORS)
            complaints.append(f"there is no executor {self.executor!r}{hint}; there are {', '.join(EXECUTORS)}")
        if self.count is not None and self.count < 1:
            complaints.append(f"the number of workers must be 1 or more, got {self.count}")
        if not self.lease_seconds >= 1:
            complaints.append(f"a lease must last 1 second or more, got {self.lease_seconds:g}")
        if self.resources and self.executor not in ("ray", "slurm"):
            complaints.append("resources are asked for from `ray` and `slurm` alone; leave them out")
        if complaints:
            raise UsageError("; ".join(complaints) + ".")


def check_engine(study: Study, workers: Workers | None) -> None:
    """StudyFileError where the study's engine trains in the driver's process alone."""
    if workers is not None and workers.executor != "local" and study.spec.engine != "bank":
        why = "banks are what workers are given; take `engine: bank`, or leave out the executor"
        raise StudyFileError(str(study.path), [study.complaint(("engine",), why)])


@runtime_checkable
class Abandoning(Protocol):
    """An executor that can take a machine back from a task that is given up."""

    def abandon(self, future: concurrent.futures.Future[Any]) -> None:
        """Ends whatever works on a task, at once; its future may never be done."""


@dataclass(frozen=True)
class Door:
    """An open executor, and how long it is waited for."""

    executor: concurrent.futures.Executor
    count: int | None
    """Most banks at a time; None for all at once, where the executor has a queue of its own."""
    lease_seconds: float = LEASE_SECONDS
    queues: bool = True
    """Whether a task may wait for a machine for any time before it begins."""
    sharing: int = 1
    """Workers that share the memory of one device of this machine."""

    def abandon(self, future: concurrent.futures.Future[Any]) -> None:
        """Gives a task up; where the executor cannot end it, its late answer is ignored."""
        if not future.cancel() and isinstance(self.executor, Abandoning):
            self.executor.abandon(future)


@contextlib.contextmanager
def opened(workers: Workers | None, device: str | None) -> Iterator[Door | None]:
    """The door of some workers, None to this process itself; closed with whatever is still behind it."""
    if workers is None or workers.executor == "local":
        yield None
    elif not isinstance(workers.executor, str):  # the caller's own, who closes it
        yield Door(workers.executor, workers.count, workers.lease_seconds)
    else:
        door = _made(workers, device)
        try:
            yield door
        finally:
            door.executor.shutdown(wait=False, cancel_futures=True)


def _made(workers: Workers, device: str | None) -> Door:
    if workers.executor == "processes":
        from adaptive_lora.study.executors.processes import ProcessesExecutor, devices_of

        devices = devices_of(device, workers.count)
        sharing = max(map(devices.count, devices))
        return Door(ProcessesExecutor(devices), len(devices), workers.lease_seconds, queues=False, sharing=sharing)
    if workers.executor == "ray":
        from adaptive_lora.study.executors.ray_cluster import RayExecutor

        asked = _known(workers, ("cpus", "gpus", "memory_gb", "address"))
        return Door(RayExecutor(**asked), workers.count, workers.lease_seconds)
    from adaptive_lora.study.executors.slurm import SlurmExecutor

    return Door(SlurmExecutor(workers.resources), workers.count, workers.lease_seconds)


def _known(workers: Workers, names: Sequence[str]) -> dict[str, Any]:
    if unknown := [name for name in workers.resources if name not in names]:
        hint = nearest_hint(unknown[0], names)
        raise UsageError(
            f"{workers.executor} has no resource {unknown[0]!r}{hint}; a bank can ask for {', '.join(names)}."
        )
    return cast(dict[str, Any], dict(workers.resources))
