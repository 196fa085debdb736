"""Where a study stands: the one answer that runner, `status`, report and memory bank give."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.folder import is_in_use
from adaptive_lora.study.ledger import Ledger, open_to_read

_SHOWN = ("run_id", "phase", "arm", "budget", "seed", "learning_rate", "status", "step", "steps", "error")


@dataclass(frozen=True)
class StudyStatus:
    """Counts, what is under way, and what went wrong."""

    name: str
    in_use: bool
    """Whether a process works on it now."""
    expected: int
    """Runs the study will have in the end."""
    counts: dict[str, int]
    """Registered runs by status; a run that was begun and that nobody works on is `interrupted`."""
    current: tuple[dict[str, Any], ...]
    """Runs begun and not finished, with their last saved step."""
    troubles: tuple[dict[str, Any], ...]
    """Runs that failed or diverged, with the reason."""

    @property
    def completed(self) -> int:
        """Runs with losses."""
        return self.counts.get(Status.COMPLETED, 0)

    @property
    def diverged(self) -> int:
        """Runs whose loss or gradient was not finite."""
        return self.counts.get(Status.DIVERGED, 0)

    @property
    def failed(self) -> int:
        """Runs that the next `run` tries again."""
        return self.counts.get(Status.FAILED, 0)

    @property
    def done(self) -> int:
        """Runs with a result; a divergence is one."""
        return self.completed + self.diverged

    @property
    def left(self) -> int:
        """Runs without a result."""
        return max(self.expected - self.done, self.failed)

    @property
    def finished(self) -> bool:
        """Whether every run gave a result."""
        return self.left == 0

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "name": self.name, "in_use": self.in_use, "expected": self.expected, "left": self.left,
            "counts": self.counts, "current": list(self.current), "troubles": list(self.troubles),
        }  # fmt: skip


def study_status(folder: Path) -> StudyStatus:
    """Reads the ledger of a study folder; StudyFolderError where there is none."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return status_of(ledger.facts(), ledger.runs(), is_in_use(folder))


def ledger_status(ledger: Ledger) -> StudyStatus:
    """Of an open ledger, which its own process works on."""
    return status_of(ledger.facts(), ledger.runs(), in_use=True)


def status_of(facts: Mapping[str, Any], runs: Iterable[Mapping[str, Any]], in_use: bool = False) -> StudyStatus:
    """From a study's facts and the rows of its runs, whether a ledger has them or an export."""
    rows = [{key: run[key] for key in _SHOWN if key in run} for run in runs]
    for row in rows:
        if row["status"] == Status.RUNNING and not in_use:
            row["status"] = "interrupted"
    return StudyStatus(
        name=str(facts["name"]),
        in_use=in_use,
        expected=sum(facts["expected_runs"].values()),
        counts=dict(Counter(str(row["status"]) for row in rows)),
        current=tuple(row for row in rows if row["status"] in (Status.RUNNING, "interrupted")),
        troubles=tuple(row for row in rows if row["status"] in (Status.FAILED, Status.DIVERGED)),
    )
