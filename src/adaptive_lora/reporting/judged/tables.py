"""Verdicts on results made elsewhere as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from adaptive_lora.foreign.judging import Outcome
from adaptive_lora.reporting.tables import Cell, Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval


def verdict_table(outcomes: Sequence[Outcome], baseline: str) -> Table:
    """One row a comparison."""
    columns = (
        Column("arm", kind="text"),
        Column("task", kind="text", optional=True),
        Column("metric", kind="text"),
        Column("mean", form=".4g"),
        Column("baseline_mean", baseline, form=".4g"),
        Column("difference", f"minus {baseline}", "interval", "+.4f"),
        Column("adjusted_p", form=".3g", optional=True),
        Column("verdict", kind="text"),
        Column("runs", kind="text"),
        Column("items", form=",d", optional=True),
        Column("resampled", "over new", "text", optional=True),
        Column("cautions", kind="text", optional=True),
    )
    rows = tuple(Row(_cells(o), arm=o.paired.arm) for o in outcomes)
    return Table("verdicts", "Verdicts", columns, rows, render("judge.caption", outcomes, baseline))


def _cells(o: Outcome) -> tuple[Cell, ...]:
    paired = o.paired
    question, over = paired.question, (o.resampled or "").replace("test records", "items").replace("records", "items")
    metric = f"{question.metric} ({question.unit})" if question.unit else question.metric
    return (
        paired.arm, question.task, metric, *paired.means, o.shown, o.adjusted_p, render("judge.short", o),
        f"{paired.runs[0]} and {paired.runs[1]}", paired.items, over, ", ".join(o.cautions),
    )  # fmt: skip


def verdicts_json(outcomes: Sequence[Outcome], baseline: str, others: Sequence[str]) -> dict[str, Any]:
    """Everything that is known, with stable keys; differences are arm less baseline in the metric's unit."""
    return {
        "baseline": baseline,
        "alpha": outcomes[0].alpha,
        "margin": outcomes[0].margin,
        "family": len(outcomes),
        "other_metrics": list(others),
        "comparisons": [_json(o) for o in outcomes],
    }


def _json(o: Outcome) -> dict[str, Any]:
    paired, counts = o.paired, o.paired.counts
    return {
        "arm": paired.arm,
        "task": paired.question.task or None,
        "metric": paired.question.metric,
        "unit": paired.question.unit or None,
        "higher_is_better": paired.question.higher_is_better,
        "verdict": str(o.verdict),
        "mean": paired.means[0],
        "baseline_mean": paired.means[1],
        "difference": o.difference,
        "interval": _ends(o.interval),
        "resampled": o.resampled,
        "interval_over_seeds": _ends(o.over_seeds),
        "interval_over_items": _ends(o.over_records),
        "p": o.p,
        "adjusted_p": o.adjusted_p,
        "equivalence_interval": _ends(o.equivalence_interval),
        "adjusted_equivalence_p": o.adjusted_equivalence_p,
        "runs": list(paired.runs),
        "seeds": len(paired.table.seeds),
        "items": paired.items,
        "items_in_either": paired.all_items,
        "clusters": len(paired.table.tokens) if paired.items is not None else None,
        "items_higher_lower_same": None if counts is None else list(counts),
        "binary": paired.binary,
        "half_width": o.half_width,
        "half_width_at_twice_the_items": o.half_width_at_twice_the_items,
        "half_width_at_twice_the_seeds": o.half_width_at_twice_the_seeds,
        "variances": None if o.components is None else asdict(o.components),
        "cautions": [str(caution) for caution in o.cautions],
        "holds": render("judge.scope", o),
        "notes": list(paired.notes),
    }


def _ends(found: Interval | None) -> list[float] | None:
    return None if found is None or found.low is None or found.high is None else [found.low, found.high]
