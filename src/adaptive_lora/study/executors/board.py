"""One progress for several banks at a time: their updates are added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptive_lora.study.executors.task import BankTask
from adaptive_lora.study.progress import ProgressListener, Silent

if TYPE_CHECKING:
    from adaptive_lora.training.checkpoint import StepRecord


class Board:
    """Gathers what the banks of a phase say, and tells a listener of them as of one."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener
        self._done: dict[str, int] = {}
        self._total = 0

    def begin(self, tasks: Sequence[BankTask], workers: int | None) -> None:
        """These banks are to be trained."""
        self._done, self._total = {}, sum(task.steps for task in tasks)
        if tasks:
            runs, phase = sum(len(task.runs) for task in tasks), tasks[0].runs[0].run.phase
            at_once = f", up to {workers} at a time" if workers else ""
            self._listener.begin(f"{runs} {phase} runs in {len(tasks)} banks{at_once}", self._total)

    def of(self, task: BankTask) -> ProgressListener:
        """What one bank speaks to."""
        return _Place(self, task)

    def step(self, task: BankTask, record: StepRecord) -> None:
        """How far a bank has come: a later attempt at it may be behind the one before."""
        self._done[task.runs[0].run_id] = record.step + 1
        step = min(sum(self._done.values()), self._total) - 1
        self._listener.step(dataclasses.replace(record, step=step))

    def over(self, task: BankTask) -> None:
        """All updates of a bank are done, or it is given up."""
        self._done[task.runs[0].run_id] = task.steps

    def stage(self, text: str) -> None:
        """Passed on as it is."""
        self._listener.stage(text)


class _Place(Silent):
    """A bank's own listener."""

    def __init__(self, board: Board, task: BankTask) -> None:
        self._board, self._task = board, task

    def step(self, record: StepRecord) -> None:
        self._board.step(self._task, record)

    def stage(self, text: str) -> None:
        self._board.stage(text)
