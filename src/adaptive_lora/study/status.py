"""Where a study stands, from its ledger."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths, is_in_use
from adaptive_lora.study.results import read_export


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
    """Runs begun and not finished, with their last kept step."""
    troubles: tuple[dict[str, Any], ...]
    """Runs that failed or diverged, with the reason."""
    exported: bool = False
    """Whether the folder is an export, on which no process can work."""

    @property
    def left(self) -> int:
        """Runs without a result."""
        return self.expected - self.counts.get(Status.COMPLETED, 0) - self.counts.get(Status.DIVERGED, 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "in_use": self.in_use, "expected": self.expected, "left": self.left,
            "counts": self.counts, "current": list(self.current), "troubles": list(self.troubles),
            "exported": self.exported,
        }  # fmt: skip


def study_status(folder: Path) -> StudyStatus:
    """Where a study folder or an export stands; StudyFolderError where the folder is neither."""
    in_use = is_in_use(folder)
    if (ledger := open_recorded(folder)) is None:
        facts, table = read_export(folder)
        runs = [{**run, "steps": None} for run in json.loads(table.to_json(orient="records", double_precision=15))]
    else:
        with contextlib.closing(ledger):
            facts, runs = ledger.facts(), ledger.runs()
    for run in runs:
        if run["status"] == Status.RUNNING and not in_use:
            run["status"] = "interrupted"
    keys = ("run_id", "phase", "arm", "budget", "seed", "learning_rate", "status", "step", "steps", "error")
    short = [{key: run[key] for key in keys} for run in runs]
    return StudyStatus(
        name=str(facts.get("name", folder.name)),
        in_use=in_use,
        expected=sum(facts.get("expected_runs", {}).values()),
        counts=dict(Counter(str(run["status"]) for run in runs)),
        current=tuple(run for run in short if run["status"] in (Status.RUNNING, "interrupted")),
        troubles=tuple(run for run in short if run["status"] in (Status.FAILED, Status.DIVERGED)),
        exported=StudyPaths(folder).is_export,
    )
