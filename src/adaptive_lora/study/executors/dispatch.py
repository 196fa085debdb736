"""Banks to workers and their results back: leases, signs of life, and what becomes of a bank whose worker is lost.

The one loop of the driver. It submits a bank with a lease, reads the worker's messages, and waits for its answer. A
bank whose worker died, hangs or failed goes on from its newest checkpoint under a new lease, wherever the executor has
a place; after `TRIES` attempts in a row without a new checkpoint it is failed, with the reason of the last. Where other
machines than it failed on are known to work, it waits between attempts and has `PATIENT_TRIES`: a machine that fails
at once is free at once, and would take bank after bank and use up its attempts. An answer that comes after its lease
was given up is not heard. A bank that runs out of memory is halved.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from adaptive_lora.study.engines.resume import Composition, read_compositions, replace_composition
from adaptive_lora.study.executors.board import Board
from adaptive_lora.study.executors.door import Door
from adaptive_lora.study.executors.lease import LeaseFolder, drop, new_lease, updates
from adaptive_lora.study.executors.task import BankOutcome, BankReporter, BankTask, Ended, RunTask
from adaptive_lora.study.executors.worker import work
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.training.checkpoint import StepRecord

TRIES = 3
"""Attempts in a row at a bank that left no new checkpoint."""
PATIENT_TRIES = 10
"""Likewise, while there are machines that work and have not failed at it."""
FIRST_WAIT_SECONDS = 2.0
"""Before the third attempt of so many; twice as long before each further one, up to a lease."""
BEGIN_LEASES = 10
"""Leases that a worker which does not queue has for its first sign of life: it may be loading libraries."""
STUCK_LEASES = 30
"""Leases that a process which lives may be without any sign of work."""
_POLL_SECONDS = 0.1
_LISTEN_SECONDS = 0.5
"""Between two looks for a worker's messages: a hundred workers are a hundred files."""


class Driver(Protocol):
    """The study that banks are trained for."""

    @property
    def listener(self) -> ProgressListener:
        """Hears how the study comes along."""

    @property
    def should_stop(self) -> Callable[[], bool]:
        """Asked all the time."""

    @property
    def paths(self) -> StudyPaths:
        """Of the study folder."""

    def reporter(self, task: BankTask, listener: ProgressListener) -> BankReporter:
        """What hears of a bank and writes the ledger."""

    def unfinished(self, task: BankTask) -> tuple[RunTask, ...]:
        """The runs of a bank that have no result yet."""


@dataclass(frozen=True)
class _Waiting:
    """A bank that is to be begun, or begun again."""

    task: BankTask
    tries: int = 0
    """Attempts before this one that left no new checkpoint; `failed_on`: their machines."""
    failed_on: frozenset[str] = frozenset()
    not_before: float = -math.inf


@dataclass
class _Lease:
    """A bank at a worker."""

    waiting: _Waiting
    task: BankTask
    folder: LeaseFolder
    future: Future[BankOutcome]
    reporter: BankReporter
    begun: float
    """When it was submitted, by the driver's clock."""
    offset: int = 0
    host: str = ""
    """The worker's machine, once it has said so."""
    heard: float | None = None
    """When the newest message was seen."""
    listened: float = -math.inf
    work: int = -1
    worked: float = field(default_factory=time.monotonic)
    """When there was a sign of work, and not of life alone."""

    def overdue(self, lease_seconds: float, queues: bool) -> str:
        """Why the worker is given up; empty while it is not."""
        now = time.monotonic()
        if self.heard is None:
            late = not queues and now - self.begun > BEGIN_LEASES * lease_seconds
            return f"no sign of life in {now - self.begun:.0f} s from its start" if late else ""
        if now - self.heard > lease_seconds:
            return f"no sign of life for {now - self.heard:.0f} s"
        if now - self.worked > STUCK_LEASES * lease_seconds:
            return f"no progress for {now - self.worked:.0f} s"
        return ""


class Dispatcher:
    """See the module; `train` is its use."""

    def __init__(self, driver: Driver, door: Door) -> None:
        self._driver, self._door = driver, door
        self._waiting: deque[_Waiting] = deque()
        self._leases: list[_Lease] = []
        self._board = Board(driver.listener)
        self._sound = set[str]()  # machines that have saved a checkpoint or finished a bank
        self._turned = time.monotonic()

    def train(self, tasks: Sequence[BankTask]) -> None:
        """Trains banks and records what becomes of them; KeyboardInterrupt after their checkpoints on a stop."""
        self._waiting.extend(map(_Waiting, tasks))
        self._board.begin(tasks, self._door.count)
        stopping: float | None = None
        try:
            while self._leases or (self._waiting and stopping is None):
                self._forgive_a_pause()
                if stopping is None and self._driver.should_stop():
                    stopping = time.monotonic()
                    self._ask_to_stop()
                if stopping is None:
                    self._begin()
                if self._leases:
                    concurrent.futures.wait([lease.future for lease in self._leases], _POLL_SECONDS, "FIRST_COMPLETED")
                else:
                    time.sleep(_POLL_SECONDS)  # every bank waits for another attempt
                for lease in list(self._leases):
                    self._look_after(lease, stopping)
            if stopping is not None:
                raise KeyboardInterrupt
        finally:
            for lease in self._leases:  # only where something was raised
                self._door.abandon(lease.future)
            self._driver.listener.close()

    def _ask_to_stop(self) -> None:
        """Those that have begun save a checkpoint first; others need not begin."""
        for lease in list(self._leases):
            if lease.heard is None:
                self._leases.remove(lease)
                self._door.abandon(lease.future)
            else:
                lease.folder.ask_to_stop()

    def _forgive_a_pause(self) -> None:
        """Where the driver itself stood still (a machine that slept, a stopped process), workers may have too."""
        now = time.monotonic()
        pause, self._turned = now - self._turned, now
        if pause > self._door.lease_seconds / 2:
            for lease in self._leases:
                lease.begun, lease.worked = lease.begun + pause, lease.worked + pause
                lease.heard = None if lease.heard is None else lease.heard + pause

    def _begin(self) -> None:
        """Hands out banks while there are workers for them."""
        now, free = time.monotonic(), self._door.count and self._door.count - len(self._leases)
        for waiting in [own for own in self._waiting if own.not_before <= now][:free]:
            self._waiting.remove(waiting)
            old = waiting.task
            folder = new_lease(self._driver.paths, old.composition, old.checkpoints)
            drop(old.checkpoints, old.composition)  # a kill before this leaves both, and either is good to go on from
            task = dataclasses.replace(
                old, checkpoints=folder.bank, lease=folder.token, beat_seconds=min(5.0, self._door.lease_seconds / 4)
            )
            reporter = self._driver.reporter(task, self._board.of(task))
            future = self._door.executor.submit(work, task)
            self._leases.append(_Lease(waiting, task, folder, future, reporter, time.monotonic()))

    def _look_after(self, lease: _Lease, stopping: float | None) -> None:
        self._hear(lease)
        if lease.future.done():
            self._leases.remove(lease)
            self._settle(lease, stopping is not None)
        elif stopping is not None and time.monotonic() - stopping > self._door.lease_seconds:
            self._leases.remove(lease)  # its newest checkpoint stays
            self._door.abandon(lease.future)
        elif why := lease.overdue(self._door.lease_seconds, self._door.queues):
            self._leases.remove(lease)
            self._door.abandon(lease.future)
            self._again(lease, f"worker lost: {why}")

    def _hear(self, lease: _Lease) -> None:
        """Takes the new messages of a worker."""
        if not lease.future.done() and time.monotonic() - lease.listened < _LISTEN_SECONDS:
            return
        lease.listened = time.monotonic()
        messages, lease.offset = lease.folder.read(lease.offset)
        if messages:
            lease.heard = time.monotonic()
        for message in messages:
            kind, content = message.pop("kind", ""), message
            lease.host = content.get("host", lease.host)
            if kind != "beat" or content["work"] != lease.work:
                lease.worked, lease.work = time.monotonic(), content.get("work", lease.work)
            match kind:
                case "say":
                    lease.reporter.say(content["text"])
                case "began":
                    lease.reporter.began(content["device"], content["kernels"])
                case "step":
                    lease.reporter.step(StepRecord(**content))
                case "saved":
                    self._sound.add(lease.host)
                    lease.reporter.saved(content["steps"])
                case "diverged":
                    lease.reporter.diverged(content["run_id"], content["step"], content["what"])
                case "evaluating":
                    lease.reporter.evaluating(content["runs"])

    def _settle(self, lease: _Lease, stopping: bool) -> None:
        """Records what a worker gave back, and decides what becomes of the bank."""
        try:
            outcome = lease.future.result()
        except Exception as error:
            self._again(lease, f"worker lost: {type(error).__name__}: {error}", stopping)
            return
        lease.host = outcome.host or lease.host
        for run_id, step, what in outcome.diverged:
            lease.reporter.diverged(run_id, step, what)
        for result in outcome.results:
            lease.reporter.result(result)
        for run_id, reason in outcome.failed.items():
            lease.reporter.failed(run_id, reason)
        match outcome.ended:
            case Ended.FINISHED:
                self._sound.add(lease.host)
                if not self._driver.unfinished(lease.task):  # else a result could not be kept: it is evaluated again
                    lease.folder.remove()
                self._board.over(lease.task)
            case Ended.STOPPED:
                self._again(lease, "its machine is wanted back", stopping)
            case Ended.OUT_OF_MEMORY:
                self._halve(lease, outcome.error, stopping)
            case Ended.FAILED:
                self._again(lease, outcome.error, stopping)

    def _again(self, lease: _Lease, why: str, stopping: bool = False) -> None:
        """A bank goes on from its newest checkpoint, or is failed where that came to nothing too often."""
        further = self._newest(lease) != lease.task.composition
        tries = 1 if further else lease.waiting.tries + 1
        failed_on = frozenset({lease.host}) | (frozenset() if further else lease.waiting.failed_on)
        elsewhere = self._sound - failed_on
        runs = self._driver.unfinished(lease.task)
        for own in lease.task.runs:  # what it left half made, or nobody took
            shutil.rmtree(lease.task.adapter(own.run_id), ignore_errors=True)
        if not runs:  # all have diverged
            lease.folder.remove()
        if stopping or not runs:
            return
        if tries >= (PATIENT_TRIES if elsewhere else TRIES):
            for run in runs:
                lease.reporter.failed(run.run_id, f"given up after {tries} attempts: {why}")
            self._board.over(lease.task)
            return
        wait = min(FIRST_WAIT_SECONDS * 2 ** (tries - 2), self._door.lease_seconds) if elsewhere and tries > 1 else 0.0
        where = f"elsewhere from their last checkpoint{f', in {wait:.0f} s' if wait else ''}"
        self._driver.listener.stage(f"warning: {len(runs)} runs go on {where}: {why}")
        after = _Waiting(lease.task, tries, failed_on, time.monotonic() + wait)
        self._put_back(lease, runs, self._newest(lease), after)

    def _newest(self, lease: _Lease) -> Composition:
        """Where a bank can go on from: the lease may be over, and what it left is whole."""
        found = read_compositions(lease.folder.bank)
        return max(found, key=updates) if found else lease.task.composition

    def _put_back(self, lease: _Lease, runs: tuple[RunTask, ...], composition: Composition, after: _Waiting) -> None:
        """To the front: what has begun ends first."""
        task = dataclasses.replace(lease.task, runs=runs, composition=composition)
        self._waiting.appendleft(dataclasses.replace(after, task=task))

    def _halve(self, lease: _Lease, why: str, stopping: bool) -> None:
        """Two banks of half the size, each with the checkpoints of the whole."""
        runs, newest = self._driver.unfinished(lease.task), self._newest(lease)
        if stopping or len(runs) < 2:
            self._again(lease, why, stopping)
            return
        parts = runs[: len(runs) // 2], runs[len(runs) // 2 :]
        self._driver.listener.stage(f"out of memory with {len(runs)} adapters; retrying with {len(parts[1])}")
        halves = [newest.half([run.run_id for run in part]) for part in parts]
        if newest.folder:
            replace_composition(lease.folder.bank, newest, *halves)
        for part, half in zip(reversed(parts), reversed(halves), strict=True):
            self._put_back(lease, part, half, _Waiting(lease.task))
