"""Progress on stderr: bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adaptive_lora.training.checkpoint import StepRecord


class PlainWatcher:
    """A line when something begins or ends, and one every ten seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._position = ""
        self._steps, self._spoke = 0, 0.0

    def stage(self, text: str) -> None:
        self._say(text)

    def planned(self, done: int, total: int) -> None:
        self._position = f"{done + 1}/{total}"

    def begin(self, label: str, steps: int) -> None:
        self._steps, self._spoke = steps, time.monotonic()

    def step(self, record: StepRecord) -> None:
        if time.monotonic() - self._spoke > 10:
            self._spoke = time.monotonic()
            self._say(f"[{self._position}] step {record.step + 1}/{self._steps}, loss {record.loss:.4f}")

    def end(self, label: str, outcome: str) -> None:
        self._say(f"[{self._position}] {label}: {outcome}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class BarWatcher(PlainWatcher):
    """Two bars: the study, with the time that is left, and the current run with its loss."""

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
        self._run: TaskID | None = None

    def __enter__(self) -> BarWatcher:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def planned(self, done: int, total: int) -> None:
        super().planned(done, total)
        if self._study is None:
            self._study = self._bars.add_task("study", total=total, note="runs")
        self._bars.update(self._study, completed=done, total=total)

    def begin(self, label: str, steps: int) -> None:
        super().begin(label, steps)
        self._run = self._bars.add_task("  run", total=steps, note=label)

    def step(self, record: StepRecord) -> None:
        if self._run is not None:
            self._bars.update(self._run, completed=record.step + 1, description=f"  loss {record.loss:.3f}")

    def end(self, label: str, outcome: str) -> None:
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None
        super().end(label, outcome)


def watcher_for(console: Console) -> PlainWatcher | BarWatcher:
    """Bars on a terminal, lines elsewhere."""
    return BarWatcher(console) if console.is_terminal else PlainWatcher(console)
