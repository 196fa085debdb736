"""What goes through the door between driver and worker, both ways: plain frozen values that can be pickled.

The driver alone writes the ledger. A worker gets a `BankTask`, reads checkpoints and writes new ones and adapters into
places that the task names, and gives back a `BankOutcome`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adaptive_lora.study.matrix import Run
from adaptive_lora.study.study_file import Study

if TYPE_CHECKING:  # a driver that only looks on needs no torch
    from adaptive_lora.planning.plan import RankPlan
    from adaptive_lora.study.engines.resume import Composition
    from adaptive_lora.training.checkpoint import StepRecord
    from adaptive_lora.training.evaluate import Evaluation


@dataclass(frozen=True)
class RunTask:
    """One run of a bank, with its plan."""

    run_id: str
    run: Run
    plan: RankPlan
    plan_seconds: float


@dataclass(frozen=True)
class BankTask:
    """A bank to be trained: everything that a worker must be told."""

    study: Study
    context: str
    """`context_hash` of the driver's model and data: a worker that sees others must not go on."""
    runs: tuple[RunTask, ...]
    folder: Path
    """The study folder, absolute."""
    checkpoints: Path
    """The `bank.json` that the worker writes, beside the checkpoints it names."""
    composition: Composition
    """Run ids in their order, and where the bank goes on from."""
    checkpoint_seconds: float
    lease: str = ""
    """The name of this attempt; empty where the bank is trained by the driver itself."""
    device: str | None = None
    """None leaves it to the worker."""
    beat_seconds: float = 5.0
    """How often the worker shows that it is alive."""

    @property
    def steps(self) -> int:
        """Updates of the longest of its runs."""
        return max(task.run.cell.steps for task in self.runs)

    def adapter(self, run_id: str) -> Path:
        """Where the worker leaves an adapter, for the driver to take: beside its place, so that it can be renamed."""
        return self.folder / "adapters" / (f".{run_id}-{self.lease}" if self.lease else f".{run_id}")


@dataclass(frozen=True)
class RunResult:
    """A trained and evaluated run; its adapter lies at `BankTask.adapter`."""

    run_id: str
    curve: tuple[StepRecord, ...]
    train_seconds: float
    results: Mapping[str, Evaluation]
    """By split."""
    updates: Mapping[str, float]
    """Module -> how far training moved it; see `update_sizes`."""


class Ended(StrEnum):
    """How a worker came back from a bank."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """It was asked to, and has saved a checkpoint."""
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


@dataclass(frozen=True)
class BankOutcome:
    """What became of a bank in another process."""

    ended: Ended
    results: tuple[RunResult, ...] = ()
    diverged: tuple[tuple[str, int, str], ...] = ()
    """(run id, step, what was not finite): messages have said so already, if they came."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Run id -> why it alone gave no result."""
    error: str = ""
    """Why the whole bank failed."""
    host: str = ""
    """The worker's machine."""


class BankReporter(Protocol):
    """Hears how a bank comes along; in its own process this writes the ledger, in another it sends messages."""

    def say(self, text: str) -> None:
        """Something for a person to read: which checkpoint it goes on from, say."""

    def began(self, device: str, kernels: str) -> None:
        """Training begins, or goes on."""

    def step(self, record: StepRecord) -> None:
        """One update; the mean of the bank's runs."""

    def saved(self, steps: Mapping[str, int]) -> None:
        """A checkpoint is on disk, with every run at so many updates."""

    def diverged(self, run_id: str, step: int, what: str) -> None:
        """A run's loss or gradient (`what`) was not finite."""

    def evaluating(self, runs: int) -> None:
        """Training is over, and so many runs are evaluated."""

    def result(self, result: RunResult) -> None:
        """A run has its result."""

    def failed(self, run_id: str, error: Exception | str) -> None:
        """A run could not be brought to its end; the others go on."""


def context_hash(context: Mapping[str, Any]) -> str:
    """Of what all runs share: model, data, tokenizer, modules, training."""
    return hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:16]
