"""The numbers of all committed studies, to the digit: what rests on them is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.estimators import Interval

RESULTS = Path(__file__).parents[2] / "results"
EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "verdicts.json").read_text(encoding="utf-8"))
"""By study: the judgements, arms and assays as they were computed before the statistics were reorganised."""


def interval(found: Interval | None) -> list[float | int | None] | None:
    return None if found is None else [found.mean, found.low, found.high, found.n]


def numbers(found: Findings) -> dict[str, Any]:
    """Every number that a verdict, a summary of an arm or an assay has."""
    return {
        "judged": {
            f"{c.arm}@{c.budget}": {
                "n": j.n, "mean": j.mean, "interval95": interval(j.interval),
                "interval90": interval(j.equivalence_interval), "p": j.p, "adjusted_p": j.adjusted_p,
                "equivalence_p": j.equivalence_p, "improvement": interval(j.improvement), "verdict": str(j.verdict),
                "needed": j.needed,
            }
            for c, j in found.judged.items()
        },
        "arms": {
            f"{a.arm}@{a.budget}": {
                "loss": interval(a.loss), "difference": interval(a.difference), "rate": a.learning_rate,
            }
            for a in found.arms
        },
        "assays": {
            a.budget: {"half": a.half, "loss_of_half": interval(a.loss_of_half), "seen": str(a.result)}
            for a in found.assays
        },
    }  # fmt: skip


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaf by leaf, so that a difference is named."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for place, part in enumerate(value) for k, v in flat(part, f"{path}/{place}").items()}
    return {path: value}


def test_every_committed_study_is_in_the_snapshot() -> None:
    assert {path.parent.name for path in RESULTS.glob("*/facts.json")} == EXPECTED.keys()
    assert sum(len(study["judged"]) for study in EXPECTED.values()) >= 19


@pytest.mark.parametrize("study", EXPECTED)
def test_numbers_are_the_same_to_the_digit(study: str) -> None:
    with open_findings(RESULTS / study) as findings:
        found, expected = flat(numbers(findings)), flat(EXPECTED[study])
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        # Twelve digits: sums may be ordered otherwise on another processor.
        assert found[path] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), path
