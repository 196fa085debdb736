"""What a study found, as data frames: `load_results`, and its page: `report`. Neither needs torch."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adaptive_lora.errors import UsageError
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.stats.verdicts import Judgement
from adaptive_lora.study.archive import open_recorded
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.results import load_results as load_runs

LOSS_COLUMNS = ("run_id", "split", "record", "nll", "tokens")
DIFFERENCE_COLUMNS = (
    "arm", "budget", "family", "n", "records", "mean", "low", "high", "seeds_low", "seeds_high", "records_low",
    "records_high",
)  # fmt: skip
JUDGED_COLUMNS = (
    *DIFFERENCE_COLUMNS, "p", "adjusted_p", "equivalence_low", "equivalence_high", "equivalence_p",
    "adjusted_equivalence_p", "margin", "margin_low", "margin_high", "verdict", "decided", "look", "cautions",
    "metric",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The results of a study folder or an export; each frame is read when it is first asked for."""

    folder: Path

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run: arm, budget, seed, losses in nats per completion token, parameters, seconds, status."""
        return load_runs(self.folder)

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """One row per finished run and module: rank, scaling, parameters, score, and the trained update's norm."""
        with open_findings(self.folder) as found:
            return found.ranks

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """One row per step of every finished evaluation run: training loss, gradient norm, learning rate, tokens.

        An export without its archive has every tenth step.
        """
        with open_findings(self.folder) as found:
            return found.curves

    @functools.cached_property
    def records(self) -> pd.DataFrame:
        """One row per run, split and record: summed negative log-likelihood in nats and completion tokens.

        Without rows where an export lacks its archive.
        """
        if (ledger := open_recorded(self.folder)) is None:
            return pd.DataFrame(columns=list(LOSS_COLUMNS))
        with contextlib.closing(ledger):
            return records_table(ledger)

    def judge(self) -> pd.DataFrame:
        """One row per comparison with the baseline: paired differences by the study's metric, and the verdicts.

        `mean` in the unit of `metric` (of `test_loss` nats per token, and negative: the arm is better), over `n` seeds
        and so many `records`, with the interval `low`, `high` of level 1 - alpha over new seeds and new records, then
        over either alone; `records` is missing where losses by record are, and the interval is over seeds then.
        `adjusted_p` by step-down max-T over the primary comparisons and the looks; the interval and the tests of
        equivalence; the `margin`, with its own interval where it was measured; `look`: which of the study's looks this
        is of; `cautions`, joined by `; `. Comparisons that the study did not name beforehand are `exploratory`: 95 %
        intervals, no test, no verdict.
        """
        with open_findings(self.folder) as found:
            rows = [_judged_row(found, c, j) for c, j in found.judged.items()]
            rows += [
                _explored_row(found, arm.arm, arm.budget)
                for arm in found.arms
                if arm.difference is not None and Comparison(arm.arm, arm.budget) not in found.judged
            ]
        kinds = {"records": "Int64", "look": "Int64", "decided": "boolean"}
        named = [(*row, found.metric.name) for row in rows]
        return pd.DataFrame(named, columns=list(JUDGED_COLUMNS)).astype(kinds)


def load_results(path: str | Path) -> Results:
    """The results of a study folder, or of one that `results --out` wrote; StudyFolderError where it is neither."""
    with open_findings(Path(path)):
        return Results(Path(path))


def report(path: str | Path, out: str | Path | None = None) -> Path:
    """Writes a study's HTML page with its figures and tables, by default into its folder, and returns the page's path.

    An export stays as it is: it needs `out`. Raises StudyFolderError and UsageError.
    """
    folder = Path(path)
    with open_findings(folder) as found:
        if out is None and StudyPaths(folder).is_export:
            raise UsageError(f"{folder} is an export, which stays as it is: name a folder for its page with `out`.")
        return write_report(found, folder if out is None else Path(out))


def _judged_row(found: Findings, comparison: Comparison, judged: Judgement) -> tuple[Any, ...]:
    margin = judged.margin
    return (
        comparison.arm, comparison.budget, "primary", judged.n, judged.records, judged.mean, *_ends(judged.interval),
        *_ends(judged.over_seeds), *_ends(judged.over_records), judged.p, judged.adjusted_p,
        *_ends(judged.equivalence_interval), judged.equivalence_p, judged.adjusted_equivalence_p, margin.value,
        *_ends(margin.interval), str(judged.verdict), judged.decided, judged.look if found.looks else None,
        "; ".join(found.cautions[comparison]),
    )  # fmt: skip


def _explored_row(found: Findings, arm: str, budget: str) -> tuple[Any, ...]:
    own = found.differences[arm, budget]
    records = own.test_records if own.records > 1 else None
    numbers = own.n, records, own.shown, *_ends(own.interval()), *_ends(own.over_seeds()), *_ends(own.over_records())
    return arm, budget, "exploratory", *numbers, *[None] * (len(JUDGED_COLUMNS) - len(DIFFERENCE_COLUMNS) - 1)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def records_table(ledger: Ledger) -> pd.DataFrame:
    """Every finished run's and the base model's (`base`) loss on each record of a split."""
    parts = []
    for run_id, split in ledger.totals():
        if (found := ledger.by_record(run_id, split)) is not None:
            numbers = {"record": range(len(found.nll)), "nll": found.nll, "tokens": found.tokens}
            parts.append(pd.DataFrame({"run_id": run_id, "split": split, **numbers}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(LOSS_COLUMNS))
