"""Who is told how a study comes along."""

from __future__ import annotations

from typing import Protocol

from adaptive_lora.training.checkpoint import StepRecord


class Watcher(Protocol):
    """Who is told how a study comes along; the default is told and says nothing."""

    def stage(self, text: str) -> None:
        """Something over a second begins."""

    def planned(self, done: int, total: int) -> None:
        """How many runs stand and how many there will be."""

    def begin(self, label: str, steps: int) -> None:
        """A run, or a bank of runs, begins."""

    def step(self, record: StepRecord) -> None:
        """One update of the current run; of a bank, the mean of its runs."""

    def end(self, label: str, outcome: str) -> None:
        """A run is over, for better or worse."""


class Silent:
    """A watcher that says nothing."""

    def stage(self, text: str) -> None: ...
    def planned(self, done: int, total: int) -> None: ...
    def begin(self, label: str, steps: int) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def end(self, label: str, outcome: str) -> None: ...
