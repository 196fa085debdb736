"""The worker's side of the door: `work` is what an executor is given, with a `BankTask`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptive_lora.study.engines.bank_training import train_bank
from adaptive_lora.study.executors.lease import LeaseFolder
from adaptive_lora.study.executors.task import BankOutcome, BankTask, Ended, RunResult, context_hash
from adaptive_lora.study.prepare import PreparedStudy, prepare

if TYPE_CHECKING:
    from adaptive_lora.training.checkpoint import StepRecord

_QUIET_SECONDS = 0.5
"""Between two messages about steps."""
_GLANCE_SECONDS = 0.2
"""Between two looks for a wish to stop."""
_GRACE_SECONDS = 60.0
"""What a worker whose driver is gone has to save a checkpoint."""


@dataclass
class _Process:
    """What a worker's process knows of itself."""

    device: str | None = None
    busy: bool = False
    asked: threading.Event = field(default_factory=threading.Event)
    """Set where the process was told to end, or its driver is gone."""


_PROCESS = _Process()
_ONE_BANK = threading.Lock()
"""An open bank is the process's: which one a backward pass belongs to is not known in autograd's own threads."""
_OWN = threading.local()
"""The model and data that a thread has loaded: kept from one bank to the next."""


def work(task: BankTask) -> BankOutcome:
    """Trains and evaluates a bank under its lease; whatever goes wrong is part of the outcome."""
    lease = LeaseFolder(task.checkpoints.parent)
    if not lease.folder.is_dir():
        return BankOutcome(
            Ended.FAILED, error=f"{platform.node()} has no {lease.folder}: the study folder must be on a path "
            "that all workers share", host=platform.node(),
        )  # fmt: skip
    messages = _Messages(lease)
    ended, error = Ended.FINISHED, ""
    with _ONE_BANK, _busy(), _beating(messages, task.beat_seconds):
        try:
            train_bank(_prepared(task), task, messages, messages.should_stop)
        except KeyboardInterrupt:
            ended = Ended.STOPPED
        except Exception as caught:
            from adaptive_lora.training.memory import is_out_of_memory

            short = is_out_of_memory(caught) and len(task.runs) > 1
            ended, error = Ended.OUT_OF_MEMORY if short else Ended.FAILED, f"{type(caught).__name__}: {caught}"
    results, lost = tuple(messages.results), tuple(messages.lost)
    return BankOutcome(ended, results, lost, messages.failures, error, platform.node())


def start_worker(device: str | None, threads: int | None) -> None:
    """Once in a new process of this machine: its device, its share of the cores, and what ends it.

    Ctrl-C is the driver's, which tells its workers; SIGTERM asks for a checkpoint. A worker whose driver is gone saves
    one and ends.
    """
    import multiprocessing

    import torch

    _PROCESS.device = device
    if threads:
        torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_terminate)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_without, args=(parent,), daemon=True).start()


def _on_terminate(signum: int, frame: Any) -> None:
    if not _PROCESS.busy:
        raise SystemExit(128 + signum)
    _PROCESS.asked.set()


def _end_without(parent: Any) -> None:
    parent.join()
    _PROCESS.asked.set()
    until = time.monotonic() + _GRACE_SECONDS
    while _PROCESS.busy and time.monotonic() < until:
        time.sleep(0.1)
    os._exit(1)


def _prepared(task: BankTask) -> PreparedStudy:
    """Model and data, loaded once and kept; TrainingError where they are not the driver's."""
    from adaptive_lora.errors import TrainingError

    device = task.device or _PROCESS.device
    key = hashlib.sha256(repr((task.study.text, str(task.study.path), device)).encode()).hexdigest()
    if getattr(_OWN, "key", None) != key:
        _OWN.key = _OWN.prepared = None  # two models may not fit
        _OWN.prepared, _OWN.key = prepare(task.study, device, checked=True), key
    prepared: PreparedStudy = _OWN.prepared
    if context_hash(prepared.context) != task.context:
        raise TrainingError(
            f"{platform.node()} has another model or other data under the names of this study than the driver: "
            f"{prepared.context['model']}, data {prepared.fingerprint}. Bring the same files there."
        )
    return prepared


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    _PROCESS.asked.clear()  # of the bank before; a process that still has to end will be told again
    _PROCESS.busy = True
    try:
        yield
    finally:
        _PROCESS.busy = False


class _Messages:
    """A `BankReporter` that writes messages, and keeps what is to be given back."""

    def __init__(self, lease: LeaseFolder) -> None:
        self._lease = lease
        self.results: list[RunResult] = []
        self.lost: list[tuple[str, int, str]] = []
        self.failures: dict[str, str] = {}
        self.work = 0
        """Counts signs of work: a thread can show that a process lives, and not that it is not stuck."""
        self._told = self._looked = 0.0
        self._stop = False

    def say(self, text: str) -> None:
        self.send("say", text=text)

    def began(self, device: str, kernels: str) -> None:
        self.send("began", device=device, kernels=kernels, host=platform.node(), pid=os.getpid())

    def step(self, record: StepRecord) -> None:
        self.work += 1
        if time.monotonic() - self._told >= _QUIET_SECONDS:
            self._told = time.monotonic()
            self.send("step", **vars(record))

    def saved(self, steps: Mapping[str, int]) -> None:
        self.send("saved", steps=dict(steps))

    def diverged(self, run_id: str, step: int, what: str) -> None:
        self.lost.append((run_id, step, what))
        self.send("diverged", run_id=run_id, step=step, what=what)

    def evaluating(self, runs: int) -> None:
        self.send("evaluating", runs=runs)

    def result(self, result: RunResult) -> None:
        self.work += 1
        self.results.append(result)

    def failed(self, run_id: str, error: Exception | str) -> None:
        self.failures[run_id] = error if isinstance(error, str) else f"{type(error).__name__}: {error}"

    def should_stop(self) -> bool:
        """Asked after every update and between passes, and so a sign of work itself."""
        self.work += 1
        if not self._stop and time.monotonic() - self._looked >= _GLANCE_SECONDS:
            self._looked = time.monotonic()
            self._stop = self._lease.must_stop()
        return self._stop or _PROCESS.asked.is_set()

    def send(self, kind: str, **content: Any) -> None:
        self._lease.send(kind, **content)


@contextlib.contextmanager
def _beating(messages: _Messages, seconds: float) -> Iterator[None]:
    """Signs of life from a thread of its own: loading a model, or one long update, gives none by itself."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(seconds):
            with contextlib.suppress(OSError):  # a lease that is over is noticed where the bank asks
                messages.send("beat", work=messages.work)

    thread = threading.Thread(target=beat, daemon=True)
    messages.send("beat", work=0, host=platform.node())
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
