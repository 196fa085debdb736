"""The numbers of all committed studies, to the digit: what rests on them is published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adaptive_lora.reporting.exported import open_findings
from tests.reporting.snapshot import RESULTS, SNAPSHOT, numbers

EXPECTED: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
"""By study; `python -m tests.reporting.snapshot` writes it anew."""


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
