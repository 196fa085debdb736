"""What a study says of its progress, and to whom."""

from __future__ import annotations

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
