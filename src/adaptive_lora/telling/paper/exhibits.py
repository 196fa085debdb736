"""The tables of a paper: those of the report, narrowed to what a page can hold, and all arms in the appendix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adaptive_lora.telling.findings import Findings
from adaptive_lora.telling.report import evidence, sections
from adaptive_lora.telling.tables import Table

Maker = Callable[[Findings], Table | None]

_SHOWN: tuple[tuple[Maker, str, tuple[str, ...]], ...] = (
    (sections.verdicts, "verdicts", ("arm", "budget", "verdict", "seeds", "difference", "p", "holm_p")),
    (sections.arms, "arms", ("arm", "budget", "test_loss", "difference", "perplexity", "seeds")),
    (sections.arms, "every-arm", ("arm", "budget", "exact_match", "trainable_parameters", "learning_rate",
                                  "plan_seconds", "train_seconds", "notes")),
    (evidence.sizes, "sizes", ("arm", "budget", "over_records", "perplexity_percent", "share_of_gain", "improvement",
                               "sd")),
    (evidence.compute, "equal-compute", ("arm", "budget", "control", "difference", "seeds")),
    (evidence.worth, "worth", ("arm", "budget", "percent", "percent_low", "percent_high")),
    (evidence.power, "power", ("arm", "budget", "sd", "detectable", "seeds_for_margin", "seeds_for_equivalence")),
    (sections.rates, "learning-rates", ("arm", "budget", "learning_rate", "validation_loss", "seeds", "chosen")),
    (evidence.stability, "stability", ("arm", "budget", "learning_rate", "runs", "diverged", "excess", "clipped",
                                       "spikes")),
    (sections.troubles, "runs-without-result", ("arm", "budget", "phase", "seed", "learning_rate", "status")),
)  # fmt: skip
_CAPTIONS = {
    "every-arm": "Parameters are counted from the built adapter; times are medians per run.",
}
_TITLES = {
    "every-arm": "Size, rate and time of every arm",
    "arms": "Test losses",
}


def exhibits(found: Findings) -> dict[str, Table]:
    """Name -> table, of those that have something to show."""
    made = {}
    one_budget = found.runs["budget"].nunique() == 1
    for maker, name, columns in _SHOWN:
        table = maker(found)
        if table is not None:
            named = replace(
                table, name=name, title=_TITLES.get(name, table.title), caption=_CAPTIONS.get(name, table.caption)
            )
            made[name] = narrowed(named, tuple(c for c in columns if c != "budget" or not one_budget))
    return made


def narrowed(table: Table, names: tuple[str, ...]) -> Table:
    """The table with these columns, of those it has."""
    kept = [i for i, column in enumerate(table.columns) if column.name in names]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    caption = table.caption.replace("on this page ", "")
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows, caption=caption)
