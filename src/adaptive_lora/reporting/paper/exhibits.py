"""The tables of a paper: those of the report, narrowed to what a page can hold, and all arms in the appendix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html import evidence, sections
from adaptive_lora.reporting.paper.beside import is_same_task, seeds_won
from adaptive_lora.reporting.paper.gather import contenders
from adaptive_lora.reporting.tables import Cell, Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval

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


def beside_exhibits(found: Findings, main: Findings) -> dict[str, Table]:
    """Name -> table, of a study that a paper tells beside its own."""
    made = {"conclusions": conclusions(found)}
    if (table := set_against(found, main)) is not None:
        made["against"] = table
    if (table := changed(found)) is not None:
        made["changes"] = table
    return made


def changed(found: Findings) -> Table | None:
    """What each change of scaling or training does where training breaks with it or without it."""
    if not (every := found.stability_findings.variants):
        return None
    columns = (
        Column("change", "change", "text"),
        Column("of", "of", "text"),
        Column("budget", "budget", "text"),
        Column("learning_rate", "at rate", form="g"),
        Column("difference", "loss less that without", "interval", "+.3f"),
        Column("effect", "effect", "text"),
    )
    rows = tuple(
        Row(
            (
                render("stability.differences", c.variant),
                c.variant.of,
                c.changed.budget,
                c.learning_rate,
                c.against.difference,
                render("stability.effect", c),
            ),
            arm=c.changed.arm,
        )
        for c in every
    )
    caption = (
        "Changes to a plain arm, at the lowest rate at which the arm breaks with the change or without it: validation "
        "loss with it less that without, same rate and seeds, nats per token, 95 % intervals. Not corrected for their "
        f"number ({len(every)})."
    )
    return Table("changes", "What moves a break", columns, rows, caption)


def conclusions(found: Findings) -> Table:
    """What a study says of every arm, in one table."""
    verdicts = {(c.arm, c.budget): render("comparisons.verdict", j) for c, j in found.judged.items()}
    columns = (
        Column("arm", "arm", "text"),
        Column("budget", "budget", "text", optional=True),
        Column("parameters", "parameters", form=",d"),
        Column("learning_rate", "rate", form="g"),
        Column("test_loss", "test loss", form=".4f"),
        Column("difference", f"minus {found.baseline}", "interval", "+.4f"),
        Column("verdict", "verdict", "text", optional=True),
    )
    rows = tuple(
        Row(
            (
                arm.arm, arm.budget if found.several_budgets else None, max(arm.trainable_parameters, default=None),
                arm.learning_rate, arm.loss.mean if arm.loss else None, arm.difference,
                verdicts.get((arm.arm, arm.budget)),
            ),
            arm=arm.arm,
            marked=arm.is_baseline,
        )
        for arm in found.arms
    )  # fmt: skip
    seeds = len(found.facts["spec"]["seeds"]["evaluation"])
    caption = (
        f"Losses in nats per completion token, means over {seeds} seeds; differences paired by seed, with 95 % "
        "intervals over seeds."
    )
    return Table("conclusions", f"The study {found.facts['name']}", columns, rows, caption)


def set_against(found: Findings, main: Findings) -> Table | None:
    """Arms that two studies of one model and one source of data share, by name; None where there are none.

    Nothing either where the other study has several budgets: its arms are not each one thing then.
    """
    if not is_same_task(found, main) or found.several_budgets:
        return None
    ours = {(arm.arm, arm.budget): arm.difference for arm in main.arms}
    verdicts = {(c.arm, c.budget): str(j.verdict) for c, j in main.judged.items()}
    budgets = main.facts["spec"]["budgets"]
    rows = []
    for arm in found.arms:
        if arm.arm in contenders(found) and arm.arm in contenders(main) and arm.difference:
            here: list[Cell] = []
            for budget in budgets:
                here += [ours.get((arm.arm, budget)), verdicts.get((arm.arm, budget))]
            wins = f"{seeds_won(arm.differences):g} of {len(arm.differences)}"
            own = Interval(arm.difference.mean, None, None, arm.difference.n, 0.95)
            rows.append(Row((arm.arm, own, wins, *here), arm=arm.arm))
    if not rows:
        return None
    columns = [
        Column("arm", "arm", "text"),
        Column("difference", f"{found.facts['name']}: mean", "interval", "+.4f"),
        Column("wins", "seeds lower", "text"),
    ]
    for budget in budgets:
        suffix = f"_{budget.replace(':', '_')}"
        columns += [
            Column(f"difference{suffix}", f"{main.facts['name']}, {budget}", "interval", "+.4f"),
            Column(f"verdict{suffix}", "verdict", "text", optional=True),
        ]
    caption = (
        f"Differences in test loss, nats per completion token: on the left from {found.baseline} in "
        f"{found.facts['name']}, with the number of seeds on which the arm's loss is lower; on the right from "
        f"{main.baseline} in {main.facts['name']}, with 95 % intervals."
    )
    return Table("against", "The same arms in two studies", tuple(columns), tuple(rows), caption)


def narrowed(table: Table, names: tuple[str, ...]) -> Table:
    """The table with these columns, of those it has."""
    kept = [i for i, column in enumerate(table.columns) if column.name in names]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    caption = table.caption.replace("on this page ", "")
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows, caption=caption)
