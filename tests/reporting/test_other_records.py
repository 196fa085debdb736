"""The same runs judged on two disjoint sets of records: no two verdicts, and no two intervals, may exclude each other.

The rule before failed here: with one set of ten seeds, four of the main study's ten verdicts changed between its 400
test records and its 100 validation records, and half the budget at rank:8 had two intervals without a common point.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from adaptive_lora.planning.budget_text import halved
from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.stats.crossed import PairedTable, crossed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import StudyTables, judge_primary
from adaptive_lora.stats.moderation import moderated
from adaptive_lora.stats.verdicts import Judgement, Verdict
from adaptive_lora.study.archive import open_recorded

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = ("alpaca-babyllama-full", "alpaca-stories260k", "gsm8k-stories260k")


def exclude(one: Judgement, other: Judgement) -> bool:
    """Whether not both can be true: opposite signs, or within the margin and wholly beyond it."""
    pair = {one.verdict, other.verdict}
    if pair == {Verdict.BETTER, Verdict.WORSE}:
        return True
    beyond = (one.verdict is Verdict.EQUIVALENT and other.beyond_margin) or (
        other.verdict is Verdict.EQUIVALENT and one.beyond_margin
    )
    return beyond and Verdict.EQUIVALENT in pair


def disjoint(one: Interval | None, other: Interval | None) -> bool:
    assert one is not None and other is not None and None not in (one.low, one.high, other.low, other.high)
    return one.high < other.low or other.high < one.low  # type: ignore[operator]


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_on_other_records_do_not_exclude_each_other(study: str) -> None:
    ledger = open_recorded(RESULTS / study)
    assert ledger is not None, f"{study} was exported without its losses by record"
    with contextlib.closing(ledger):
        found = read_findings(ledger)
        spec, primary = found.facts["spec"], found.facts["lock"]["primary"]
        sides = [StudyTables(found.runs, ledger.by_record, split) for split in ("test", "validation")]
        one, other = (judge_primary(side, primary, spec) for side in sides)
        halves = [_halves(side, found.baseline, spec["budgets"]) for side in sides]
    records = {judged.records for judged in (*one.values(), *other.values())}
    assert len(records) == 2 and min(r or 0 for r in records) >= 100
    assert not [c for c in one if exclude(one[c], other[c])]
    assert not [c for c in one if disjoint(one[c].interval, other[c].interval)]
    assert halves[0] and not [b for b in halves[0] if disjoint(halves[0][b], halves[1][b])]


def test_verdicts_that_exclude_each_other_are_seen() -> None:
    ledger = open_recorded(RESULTS / "gsm8k-stories260k")
    assert ledger is not None
    with contextlib.closing(ledger):
        judged = {c.arm: j for c, j in read_findings(ledger).judged.items()}
    better, worse, same = (judged[arm] for arm in ("lora-drop", "linear-decay", "attention-heavy"))
    assert exclude(better, worse) and disjoint(better.interval, worse.interval)
    assert not exclude(better, same) and not exclude(same, replace(same, verdict=Verdict.UNDECIDED))
    low = replace(worse, interval=replace(worse.interval, low=0.03, high=0.05))  # wholly beyond the margin
    assert exclude(same, low) and exclude(low, same)


def _halves(tables: StudyTables, baseline: str, budgets: list[str]) -> dict[str, Interval]:
    """What half of each budget costs."""
    found: dict[str, PairedTable] = {}
    for budget in budgets:
        half = halved(budget)
        table = tables.paired((baseline, half), (baseline, budget)) if half else None
        if table is not None:
            found[budget] = table
    return {b: own.interval() for b, own in zip(found, moderated([crossed(t) for t in found.values()]), strict=True)}
