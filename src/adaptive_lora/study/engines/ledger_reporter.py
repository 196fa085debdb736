"""Writes into the ledger how a bank comes along, wherever it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.executors.task import BankTask, RunResult, RunTask
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.training.reference import Diverged

if TYPE_CHECKING:
    from adaptive_lora.training.checkpoint import StepRecord


@dataclass(frozen=True)
class LedgerReporter:
    """The driver's `BankReporter`."""

    engine: Engine
    task: BankTask
    listener: ProgressListener
    """What hears of stages and updates."""

    def say(self, text: str) -> None:
        """Passed on."""
        self.listener.stage(text)

    def began(self, device: str, kernels: str) -> None:
        """The size of the bank is recorded with each run: its seconds are a share of the bank's."""
        for own in self.task.runs:
            if self._is_open(own.run_id):
                name = f"bank of {len(self.task.runs)}"
                self.engine.ledger.begin(own.run_id, name, device, own.run.cell.steps, kernels)
        self.listener.begin(f"{len(self.task.runs)} {self.task.runs[0].run.phase} runs", self.task.steps)

    def step(self, record: StepRecord) -> None:
        """Passed on."""
        self.listener.step(record)

    def saved(self, steps: Mapping[str, int]) -> None:
        """How far each has come, for `status`."""
        for run_id, done in steps.items():
            self.engine.ledger.record_step(run_id, done)

    def diverged(self, run_id: str, step: int, what: str) -> None:
        """A result too; it may be told twice."""
        if self._is_open(run_id):
            self.engine.diverged(run_id, self._own(run_id).run, Diverged(step, what))

    def evaluating(self, runs: int) -> None:
        """Passed on."""
        self.listener.stage(f"evaluating {runs} runs")

    def result(self, result: RunResult) -> None:
        """Recorded whole; what cannot be is a failure of this run alone."""
        own = self._own(result.run_id)
        try:
            self.engine.record(own, result, self.task.adapter(result.run_id))
        except Exception as error:
            self.failed(result.run_id, error)

    def failed(self, run_id: str, error: Exception | str) -> None:
        """The next `run` tries it again."""
        self.engine.failed(run_id, self._own(run_id).run, error)

    def _own(self, run_id: str) -> RunTask:
        return next(own for own in self.task.runs if own.run_id == run_id)

    def _is_open(self, run_id: str) -> bool:
        return not self.engine.ledger.status_of(run_id).is_finished
