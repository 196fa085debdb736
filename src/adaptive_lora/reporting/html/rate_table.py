"""The table of chosen rates, and of what comparisons say one rate lower and one higher."""

from __future__ import annotations

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.evidence import ARM, NATS, captioned
from adaptive_lora.reporting.rates import clipped_shares, how_chosen, lines_of
from adaptive_lora.reporting.tables import Cell, Column, Table
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.robustness import AtRate
from adaptive_lora.stats.run_table import Comparison


def rate_choices(found: Findings) -> Table | None:
    """How each rate was chosen, and how the difference from the baseline stands beside it; None without tuning."""
    if not found.tuned:
        return None
    beside = f"minus {found.baseline}, one rate"
    columns = (
        *ARM,
        Column("learning_rate", form="g"),
        Column("how", "chosen by", "text"),
        Column("flags", "remarks", "text", optional=True),
        Column("lower", f"{beside} lower, 95 % interval", "interval", "+.4f", NATS),
        Column("here", f"minus {found.baseline}, tuning runs", "interval", "+.4f", NATS),
        Column("higher", f"{beside} higher, 95 % interval", "interval", "+.4f", NATS),
        Column("clipped", "steps clipped", form=".0f", unit="%", optional=True),
    )
    lines, how, clipped = lines_of(found), how_chosen(found), clipped_shares(found)
    at_edge = {(edge.arm, edge.budget) for edge in found.edges}
    cells: list[tuple[Cell, ...]] = []
    for arm in found.arms:
        cell, line = (arm.arm, arm.budget), lines.get(Comparison(arm.arm, arm.budget))
        by, cliff = how.get(cell, (None, False))
        flags = {"edge": cell in at_edge, "cliff": cliff, "changes sign": line is not None and line.changes_sign}
        sides = (line.lower, line.chosen, line.higher) if line else (None, None, None)
        share = clipped.get(cell)
        cells.append(
            (*cell, arm.learning_rate, by, ", ".join(flag for flag, there in flags.items() if there) or None,
             *map(_shown, sides), None if share is None else 100 * share)
        )  # fmt: skip
    names = ("rate-choices", "Rates chosen, and their neighbours")
    return captioned(found, "rate_choices", names, columns, cells, lambda row: row[0] == found.baseline)


def _shown(side: AtRate | None) -> Interval | None:
    return None if side is None else side.difference
