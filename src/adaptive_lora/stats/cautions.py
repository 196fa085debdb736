"""What should be kept in mind beside a verdict: one word each, for a column of its own."""

from __future__ import annotations

from enum import StrEnum

from adaptive_lora.stats.crossed import PairedTable
from adaptive_lora.stats.divergence import DivergedPairs
from adaptive_lora.stats.margins import Margin

FEW_SEEDS, FEW_RECORDS = 6, 200
UNCERTAIN_MARGIN = 0.5
"""Half width of the margin's interval over the margin."""


class Caution(StrEnum):
    """Why a comparison deserves less trust than its p says."""

    FEW_SEEDS = "few seeds"
    FEW_RECORDS = "few records"
    ONE_SET_OF_RECORDS = "one set of records"
    """Losses by record are not known, so that all is conditional on the records that were tested."""
    SKEWED = "skewed"
    """Differences by seed lie to one side, in this comparison or in its family: verdicts of few such err more often,
    and their intervals cover less, than they say (`stats.skewness`)."""
    MARGIN = "uncertain margin"
    INSENSITIVE = "task insensitive to rank"
    """Half the budget is not shown to be worse."""
    DIVERGED = "diverged pairs"
    EDGE = "rate at edge of grid"
    RATE = "depends on rate"
    """At a neighbouring learning rate the difference has the other sign."""
    CLIPPED = "every step clipped"


def cautions_of(
    table: PairedTable | None, margin: Margin, diverged: DivergedPairs, skewed: bool
) -> tuple[Caution, ...]:
    """Those that the differences themselves give cause for; `skewed`: whether those of its family do."""
    found = []
    if table is not None:
        seeds, records = len(table.seeds), len(table.tokens) - table.added
        found += [Caution.FEW_SEEDS] if seeds < FEW_SEEDS else []
        found += [Caution.ONE_SET_OF_RECORDS] if records < 2 else [Caution.FEW_RECORDS] if records < FEW_RECORDS else []
        found += [Caution.SKEWED] if skewed else []
    if margin.interval is not None and not margin.usable:
        found.append(Caution.INSENSITIVE)
    elif margin.interval is not None and margin.value and margin.interval.high is not None:
        wide = (margin.interval.high - margin.value) / margin.value > UNCERTAIN_MARGIN
        found += [Caution.MARGIN] if wide else []
    return (*found, *([Caution.DIVERGED] if diverged.any else []))
