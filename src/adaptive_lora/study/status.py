"""The status of a study: the one answer that runner, `status`, report and memory bank give."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptive_lora.stats.metrics import metric_of
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths, is_in_use
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.results import read_export, whole
from adaptive_lora.study.scoring import is_to_be_scored, unscored

_FINISHED = (Status.COMPLETED, Status.DIVERGED)
_SHOWN = ("run_id", "phase", "arm", "budget", "seed", "learning_rate", "status", "step", "steps", "error")


@dataclass(frozen=True)
class StudyStatus:
    """Counts, what is under way, and what went wrong."""

    name: str
    in_use: bool
    """Whether a process works on it now."""
    expected: int
    """Runs the study will have in the end; with looks, those that are done and those that the current look asks for."""
    counts: dict[str, int]
    """Registered runs by status; a run that was begun and that nobody works on is `interrupted`."""
    current: tuple[dict[str, Any], ...]
    """Runs begun and not finished, with their last saved step."""
    troubles: tuple[dict[str, Any], ...]
    """Runs that failed or diverged, with the reason."""
    tuned: bool = True
    """Whether no tuning run is open."""
    exported: bool = False
    """Whether the folder is an export, on which no process can work."""
    looking: int | None = None
    """The look that the study is at, after which it may ask for more runs; None where it has none, or had the last."""
    looks: int = 0
    """How many looks the study file plans; a study that is decided before the last of them is finished by then."""
    unscored: int = 0
    """Runs that have still to be scored."""

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
    def started(self) -> int:
        """Runs begun and not ended."""
        return len(self.current)

    @property
    def failures(self) -> list[tuple[str, int, list[str]]]:
        """(error, runs, arms) of failed runs, the most frequent error first; an empty one was not recorded."""
        arms: dict[str, list[str]] = {}
        for run in self.troubles:
            if run["status"] == Status.FAILED:
                arms.setdefault(run["error"] or "", []).append(run["arm"])
        return [
            (error, len(own), sorted(set(own))) for error, own in sorted(arms.items(), key=lambda item: -len(item[1]))
        ]

    @property
    def divergences(self) -> Counter[tuple[str, str]]:
        """(arm, phase) -> runs that diverged."""
        return Counter((run["arm"], run["phase"]) for run in self.troubles if run["status"] == Status.DIVERGED)

    @property
    def left(self) -> int:
        """Runs without a result."""
        return max(self.expected - self.done, self.failed)

    @property
    def finished(self) -> bool:
        """Whether every run gave a result, and a score where it is to have one, and no look is to come."""
        return self.left == 0 and self.looking is None and not self.unscored

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "name": self.name, "in_use": self.in_use, "expected": self.expected, "left": self.left,
            "counts": self.counts, "current": list(self.current), "troubles": list(self.troubles),
            "exported": self.exported, "looking": self.looking, "looks": self.looks, "unscored": self.unscored,
            "finished": self.finished,
        }  # fmt: skip


def study_status(folder: Path) -> StudyStatus:
    """Reads a study folder or an export; StudyFolderError where the folder is neither."""
    in_use = is_in_use(folder)
    if (ledger := open_recorded(folder)) is not None:
        with contextlib.closing(ledger), whole(folder):
            found = ledger_status(ledger, in_use)
    else:
        facts, table = read_export(folder)
        with whole(folder):
            found = status_of(facts, json.loads(table.to_json(orient="records", double_precision=15)))
    return replace(found, exported=StudyPaths(folder).is_export)


def ledger_status(ledger: Ledger, in_use: bool = True) -> StudyStatus:
    """Of an open ledger; by default one that its own process works on. Counts most runs and reads those it shows."""
    shown = ledger.runs(status=(Status.RUNNING, Status.FAILED, Status.DIVERGED))
    facts = ledger.facts()
    waiting = unscored(ledger, metric_of(facts.get("spec", {}).get("analysis", {})))
    return replace(_status(facts, ledger.counts(), shown, in_use), unscored=len(waiting))


def status_of(facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], in_use: bool = False) -> StudyStatus:
    """From a study's facts and the rows of its runs, as tables have them."""
    found = _status(facts, Counter((run["phase"], run["status"]) for run in runs), runs, in_use)
    metric = metric_of(facts.get("spec", {}).get("analysis", {}))
    done = [run for run in runs if run["phase"] == Phase.EVALUATION and run["status"] == Status.COMPLETED]
    open_ = [run for run in done if is_to_be_scored(run, metric) and _missing(run.get(metric.column))]
    return replace(found, unscored=len(open_))


def _missing(value: Any) -> bool:
    return value is None or value != value


def _status(
    facts: Mapping[str, Any], counts: Mapping[tuple[str, str], int], runs: Iterable[Mapping[str, Any]], in_use: bool
) -> StudyStatus:
    rows = [{key: run.get(key) for key in _SHOWN} for run in runs]
    # Begun, and nobody works on it: the status that the ledger has is that of the moment when its process ended.
    running = Status.RUNNING.value if in_use else "interrupted"
    by_status: Counter[str] = Counter()
    for (_, status), count in counts.items():
        by_status[running if status == Status.RUNNING else str(status)] += count
    for row in rows:
        row["error"] = row["error"] if isinstance(row["error"], str) else None  # a table has NaN there
        row["status"] = running if row["status"] == Status.RUNNING else row["status"]
    return StudyStatus(
        name=str(facts["name"]),
        in_use=in_use,
        expected=sum(facts["expected_runs"].values()),
        counts=dict(by_status),
        current=tuple(row for row in rows if row["status"] == running),
        troubles=tuple(row for row in rows if row["status"] in (Status.FAILED, Status.DIVERGED)),
        looking=facts.get("looking"),
        looks=len(facts.get("spec", {}).get("seeds", {}).get("looks") or ()),
        tuned=all(status in _FINISHED for phase, status in counts if phase == Phase.TUNING),
    )
