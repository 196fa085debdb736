"""How far a study has come: what has a result, what is missing, what failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.run_table import Phase, Status


@dataclass(frozen=True)
class RunCounts:
    """The runs of a study by status."""

    expected: int
    in_use: bool
    """Whether a process works on the study now."""
    done: int
    """With a result; a divergence is one."""
    started: int
    """Begun and not ended."""
    failed: int
    failures: Sequence[tuple[str, int, Sequence[str]]]
    """(error, runs, arms), the most frequent error first; an empty one was not recorded."""
    diverged: Mapping[tuple[str, str], int]
    """(arm, phase) -> runs."""
    tuned: bool
    """Whether no tuning run is open."""

    @property
    def left(self) -> int:
        """Runs without a result, failed ones among them."""
        return max(self.expected - self.done, self.failed)


def count_runs(found: Findings, in_use: bool = False) -> RunCounts:
    """Counts the runs of a study."""
    by_status = {status: found.runs[found.runs["status"] == status] for status in Status}
    failed, diverged = by_status[Status.FAILED], by_status[Status.DIVERGED]
    errors = failed["error"].fillna("")
    tuning = found.runs.loc[found.runs["phase"] == Phase.TUNING, "status"]
    return RunCounts(
        expected=found.expected,
        in_use=in_use,
        done=found.done,
        started=len(by_status[Status.RUNNING]),
        failed=len(failed),
        failures=[
            (error, n, sorted(set(failed["arm"][errors == error]))) for error, n in Counter(errors).most_common()
        ],
        diverged=Counter(zip(diverged["arm"], diverged["phase"], strict=True)),
        tuned=all(Status(status).is_finished for status in tuning),
    )
