"""Where a study stands: what has a result, what is missing, what failed and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.reporting.findings import Findings, lock_of
from adaptive_lora.reporting.formatting import counted
from adaptive_lora.reporting.memory.words import few, safe
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.results import plain_name

AGAIN = "`adaptive-lora run study.yaml --out .`"
"""Goes on with a study, from its folder."""


@dataclass(frozen=True)
class Standing:
    """Runs that the study asks for now; after a deviation the ledger can hold others."""

    runs: pd.DataFrame
    expected: int
    in_use: bool
    """Whether a process works on the study now."""

    def count(self, status: Status) -> int:
        """Of one status."""
        return int((self.runs["status"] == status).sum())

    @property
    def done(self) -> int:
        """Runs with a result; a divergence is one."""
        return self.count(Status.COMPLETED) + self.count(Status.DIVERGED)

    @property
    def left(self) -> int:
        """Runs without one, those that failed among them."""
        return max(self.expected - self.done, self.count(Status.FAILED))

    @property
    def tuned(self) -> bool:
        """Whether no tuning run is open."""
        tuning = self.runs[self.runs["phase"] == Phase.TUNING]
        return bool(tuning["status"].isin([Status.COMPLETED, Status.DIVERGED]).all())

    @property
    def text(self) -> str:
        """In one sentence."""
        have = f"{self.done:,} of {counted(self.expected, 'run')} have a result"
        if not self.left:
            return f"Finished: {have}, none is open."
        if self.in_use:
            return f"Running: a process works on this study now; {have}."
        begun, failed = self.count(Status.RUNNING), self.count(Status.FAILED)
        if not (self.done or begun or failed):
            return f"Nothing has been trained yet: {have}."
        parts = [f"{begun:,} stopped under way"] * bool(begun) + [f"{failed:,} failed"] * bool(failed)
        return f"Unfinished: {'; '.join([have, *parts])}."


def standing_of(found: Findings, in_use: bool = False) -> Standing:
    """How far the study has come."""
    return Standing(_asked_for(found), found.expected, in_use)


def _asked_for(found: Findings) -> pd.DataFrame:
    """Without runs of seeds, arms or budgets that a deviation took out of the study."""
    spec, controls, runs = found.facts["spec"], lock_of(found.facts).get("controls"), found.runs
    if controls is None:  # folders of earlier versions do not say which arms are controls
        return runs
    names = [arm["name"] for arm in spec["arms"]] + [*controls["arms"], *controls["compute"].values()]
    budgets = [*spec["budgets"], *controls["baseline_alone_at"]]
    seeds = [seed for phase in Phase for seed in spec["seeds"][phase]]
    return runs[
        runs["arm"].isin([plain_name(name) for name in names])
        & runs["budget"].isin([plain_name(budget) for budget in budgets])
        & runs["seed"].isin(seeds)
    ]


def reasons(standing: Standing, most: int = 3) -> list[str]:
    """Why runs failed, the most frequent reason first."""
    failed = standing.runs[standing.runs["status"] == Status.FAILED]
    counts = Counter(str(error) if isinstance(error, str) and error else "no reason recorded"
                     for error in failed["error"])  # fmt: skip
    said = []
    for error, number in counts.most_common(most):
        own = failed[failed["error"].fillna("no reason recorded").astype(str) == error]
        said.append(f"{number:,} failed ({few(sorted(set(own['arm'])), 4)}): {safe(error)}")
    rest = len(counts) - len(said)
    return [*said, f"{counted(rest, 'other reason')}: `adaptive-lora status .`"] if rest else said


def diverged(standing: Standing) -> str:
    """Which arms diverged and how often; nothing where none did."""
    lost = standing.runs[standing.runs["status"] == Status.DIVERGED]
    if lost.empty:
        return ""
    counts = Counter(zip(lost["arm"], lost["phase"], strict=True))
    names = [f"{arm} ({number} {phase})" for (arm, phase), number in counts.items()]
    return f"Diverged, which counts as a result and is not tried again: {few(names)}."
