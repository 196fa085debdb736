"""The table of what the best allocation gains, beside what half the budget costs."""

from __future__ import annotations

from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.tables import Column, Row, Table
from adaptive_lora.reporting.templating import render


def ceiling(found: Findings) -> Table | None:
    """Gain of every such arm, and what it gains beyond a quarter of what half the budget costs."""
    columns = (
        Column("budget", "budget", "text"),
        Column("arm", "arm", "text"),
        Column("gain", "gains", "interval", "+.4f", found.metric.unit),
        Column("half", "half the budget costs", "interval", "+.4f", found.metric.unit),
        Column("beyond", "gain beyond a quarter of that", "interval", "+.4f", found.metric.unit),
        Column("p_closed", "p of less", form=".3g"),
        Column("p_pays", "p of more", form=".3g"),
        Column("verdict", "at this budget", "text"),
        Column("seeds"),
    )
    rows = tuple(
        Row((c.budget, own.arm, own.gain, c.cost_of_half, own.beyond, own.p_closed, own.p_pays, str(c.verdict),
             own.gain.n), arm=own.arm)
        for c in ceilings_of(found)
        for own in c.arms
    )  # fmt: skip
    if not rows:
        return None
    return Table("ceiling", "What the best allocation gains", columns, rows, render("ceiling.table", found))
