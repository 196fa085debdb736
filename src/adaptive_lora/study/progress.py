"""What a study says of its progress, and to whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # whoever starts a study listens, and may do so before torch is imported
    from adaptive_lora.training.checkpoint import StepRecord


class ProgressListener(Protocol):
    """Hears how a study comes along; `Silent` ignores it all, the command line draws bars."""

    def stage(self, text: str) -> None:
        """Something that takes over a second begins, or a warning."""

    def planning(self, text: str, done: int, total: int) -> None:
        """`done` of `total` measurements are taken; `text` says which one is under way and how far it is."""

    def runs(self, done: int, total: int) -> None:
        """`done` of `total` runs of the study have a result."""

    def begin(self, label: str, steps: int) -> None:
        """Training of a run, or of a bank of runs, begins."""

    def step(self, record: StepRecord) -> None:
        """One update; of a bank, the mean of its runs."""

    def result(self, label: str, outcome: str) -> None:
        """A run is over, for better or worse; the others of its bank may go on."""

    def close(self) -> None:
        """Training that `begin` announced is over, or was given up."""


class Silent:
    """A listener that does nothing."""

    def stage(self, text: str) -> None: ...
    def planning(self, text: str, done: int, total: int) -> None: ...
    def runs(self, done: int, total: int) -> None: ...
    def begin(self, label: str, steps: int) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def result(self, label: str, outcome: str) -> None: ...
    def close(self) -> None: ...


class Sturdy:
    """Passes everything on to a listener, until it cannot be reached: its terminal hung up, its pipe was closed.

    The study goes on in silence then, as nothing that it does depends on being watched.
    """

    def __init__(self, listener: ProgressListener) -> None:
        self._listener: ProgressListener = listener
        self._updated: float | None = None
        self.update_seconds: float | None = None
        """What the last update took, until it was heard of; None before there were two in a row."""

    def stage(self, text: str) -> None:
        """See `ProgressListener`, here and below."""
        self._tell(lambda to: to.stage(text))

    def planning(self, text: str, done: int, total: int) -> None:
        self._tell(lambda to: to.planning(text, done, total))

    def runs(self, done: int, total: int) -> None:
        self._tell(lambda to: to.runs(done, total))

    def begin(self, label: str, steps: int) -> None:
        self._updated = time.monotonic()
        self._tell(lambda to: to.begin(label, steps))

    def step(self, record: StepRecord) -> None:
        now, before = time.monotonic(), self._updated
        self._updated, self.update_seconds = now, None if before is None else now - before
        self._tell(lambda to: to.step(record))

    def result(self, label: str, outcome: str) -> None:
        self._tell(lambda to: to.result(label, outcome))

    def close(self) -> None:
        self._updated = self.update_seconds = None
        self._tell(lambda to: to.close())

    def _tell(self, what: Callable[[ProgressListener], None]) -> None:
        try:
            what(self._listener)
        except OSError:
            self._listener = Silent()
