"""The machine's clock may be set while a study runs: it tells moments, and no duration, order or age."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import adaptive_lora
from adaptive_lora.reporting.findings import Findings

MOMENTS = {"study/ledger.py", "study/plan_store.py", "study/lock.py"}
"""Where the time of day is recorded, to be shown."""


def test_the_time_of_day_is_read_where_moments_are_recorded_and_nowhere_else() -> None:
    source = Path(adaptive_lora.__file__).parent
    reads = re.compile(
        r"\btime\.time(_ns)?\(|\bdatetime\.(now|today|utcnow)\(|\bdate\.today\(|\btime\.(gmtime|localtime)\(\)"
    )
    assert {str(p.relative_to(source)) for p in source.rglob("*.py") if reads.search(p.read_text())} == MOMENTS


def test_a_period_in_which_the_clock_went_back_is_one() -> None:
    runs = [
        {"started": 500.0, "finished": 90.0},
        {"started": 100.0, "finished": 300.0},
        {"started": None, "finished": 0},
    ]
    period = Findings.period.fget(SimpleNamespace(source=SimpleNamespace(runs=lambda: runs)))  # type: ignore[attr-defined]
    assert period == (90.0, 500.0)
