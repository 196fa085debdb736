"""Every arm's difference from the baseline, over new seeds and new records, as verdicts have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.crossed import Crossed, crossed
from adaptive_lora.stats.evidence import Cell, StudyTables
from adaptive_lora.stats.moderation import moderated


def differences_of(tables: StudyTables, baseline: str) -> dict[Cell, Crossed]:
    """(arm, budget) -> its difference in the metric's own unit and sign; variances of few seeds are drawn towards those
    of all these comparisons.

    With one look at the end these are what verdicts rest on, so that an arm has one interval wherever it is shown.
    """
    pairs = {cell: tables.paired(cell, (baseline, cell[1])) for cell in tables.cells if cell[0] != baseline}
    known = {cell: crossed(table) for cell, table in pairs.items() if table is not None}
    return {cell: _as_metric(own, tables) for cell, own in zip(known, moderated(list(known.values())), strict=True)}


def with_differences(arms: Sequence[ArmSummary], found: Mapping[Cell, Crossed]) -> list[ArmSummary]:
    """Arms whose difference is over new seeds and new records, at 95 %."""
    cells = [found.get((arm.arm, arm.budget)) for arm in arms]
    return [
        arm if own is None or arm.difference is None else replace(arm, difference=own.interval())
        for arm, own in zip(arms, cells, strict=True)
    ]


def between(tables: StudyTables, one: Cell, other: Cell) -> Crossed | None:
    """Of any two cells, the first less the second, paired; None where no seed has both."""
    table = tables.paired(one, other)
    return None if table is None else _as_metric(crossed(table), tables)


def _as_metric(found: Crossed, tables: StudyTables) -> Crossed:
    return found.turned() if tables.metric.higher_is_better else found
