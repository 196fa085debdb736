"""What a change of scaling or training does to an arm where either of the two breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from adaptive_lora.stats.breaks import Contrast, Course, contrast, effect_of, rows_at
from adaptive_lora.stats.variants import Variant

Courses = Mapping[tuple[str, str], Course]


@dataclass(frozen=True)
class Change:
    """A changed arm beside its plain one, at the lowest rate at which either breaks."""

    arm: str
    variant: Variant
    budget: str
    learning_rate: float
    against: Contrast
    """Changed less plain, validation loss."""
    effect: str
    """In words, see `breaks.effect_of`."""


def changes(
    table: pd.DataFrame, courses: Courses, variants: Mapping[str, Variant]
) -> tuple[list[Change], list[tuple[str, str]]]:
    """Of a `stability_table`: the changes where either arm breaks, and (arm, budget) of those where neither does."""
    found, untouched = [], []
    for (arm, budget), course in courses.items():
        variant = variants.get(arm)
        plain = courses.get((variant.of, budget)) if variant else None
        if variant is None or plain is None:
            continue
        breaks = [cell.learning_rate for c in (plain, course) if (cell := c.first_break)]
        if not breaks:
            untouched.append((arm, budget))
            continue
        rate = min(breaks)
        rows = [rows_at(table, name, budget, rate) for name in (arm, variant.of)]
        against = contrast(rows[0], rows[1], "validation_loss")
        found.append(
            Change(arm, variant, budget, rate, against, effect_of(course, plain, rate, against, variant.scaling_alone))
        )
    return found, untouched
