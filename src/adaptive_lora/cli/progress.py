"""Progress on stderr: bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adaptive_lora.training.checkpoint import StepRecord

_QUIET_SECONDS = 10.0
"""Between two lines about the same training, where lines are all there is."""


class PlainProgress:
    """A line when something begins or ends, and one every ten seconds between.

    Each line begins with the time since the start and the stage, so that a log says how long things took.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._spoke = time.monotonic()
        self._done, self._total = 0, 0
        self._at_first: tuple[float, int] | None = None
        self._label, self._steps, self._training = "", 0, self._began

    def stage(self, text: str) -> None:
        self._say(text)

    def planning(self, text: str, done: int, total: int) -> None:
        self._at_first = time.monotonic(), self._done  # what it takes says nothing of runs
        if self._is_due():
            self._say(f"planning {done}/{total}: {text}")

    def runs(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._at_first is None:
            self._at_first = time.monotonic(), done

    def begin(self, label: str, steps: int) -> None:
        self._label, self._steps = label, steps
        self._training = self._spoke = time.monotonic()
        self._say(f"training {label}, {steps} steps")

    def step(self, record: StepRecord) -> None:
        if self._is_due():
            text = f"{self._label}: step {record.step + 1}/{self._steps}, loss {record.loss:.4f}"
            self._say(f"{text}; {self._done}/{self._total} runs done{self._left(record.step + 1)}")

    def result(self, label: str, outcome: str) -> None:
        self._say(f"{label}: {outcome}")

    def close(self) -> None:
        self._label = ""

    def _is_due(self) -> bool:
        due = time.monotonic() - self._spoke > _QUIET_SECONDS
        if due:
            self._spoke = time.monotonic()
        return due

    def _left(self, steps: int) -> str:
        """What all runs that are left will take, by the pace of those since the last planning; before the first of them
        what this training will, after so many of its steps."""
        now = time.monotonic()
        if self._at_first is None or self._done <= self._at_first[1]:
            return f", about {_duration((now - self._training) / steps * (self._steps - steps))} left of this training"
        pace = (now - self._at_first[0]) / (self._done - self._at_first[1])
        return f", about {_duration(pace * (self._total - self._done))} left"

    def _say(self, text: str) -> None:
        line = f"[{_duration(time.monotonic() - self._began)}] {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarProgress(PlainProgress):
    """Bars: the study with the time that is left, planning, and the current training with its loss."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._study: TaskID | None = None
        self._now: TaskID | None = None

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # a terminal that hung up
            self._bars.stop()

    def planning(self, text: str, done: int, total: int) -> None:
        if self._now is None:
            self._now = self._bars.add_task("  planning", total=total, note=text)
        self._bars.update(self._now, completed=done, total=total, note=text)
        if done >= total:
            self.close()

    def runs(self, done: int, total: int) -> None:
        super().runs(done, total)
        if self._study is None:
            self._study = self._bars.add_task("study", total=total, note="runs")
        self._bars.update(self._study, completed=done, total=total)

    def begin(self, label: str, steps: int) -> None:
        self.close()
        self._label, self._steps = label, steps
        self._now = self._bars.add_task("  training", total=steps, note=label)

    def step(self, record: StepRecord) -> None:
        if self._now is not None:
            self._bars.update(self._now, completed=record.step + 1, description=f"  loss {record.loss:.3f}")

    def close(self) -> None:
        super().close()
        if self._now is not None:
            self._bars.remove_task(self._now)
            self._now = None


def progress_for(console: Console) -> PlainProgress | BarProgress:
    """Bars on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else PlainProgress(console)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(75), _duration(7505)
    ('0:01:15', '2:05:05')
    """
    return str(datetime.timedelta(seconds=round(seconds)))
