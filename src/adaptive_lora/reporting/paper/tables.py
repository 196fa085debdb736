"""The tables of a paper: those of the report, narrowed to what a page can hold, and those of other studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html import evidence, sections
from adaptive_lora.reporting.html.ceiling import ceiling
from adaptive_lora.reporting.html.decomposition import decomposition
from adaptive_lora.reporting.paper.study_facts import seeds_used
from adaptive_lora.reporting.tables import Cell, Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.estimators import Interval


def _verdicts(found: Findings) -> Table | None:
    """As narrow as a line: how well an undecided difference is known is what its interval says."""
    if (table := sections.verdicts(found)) is None:
        return None
    short = {"adjusted_p": "p", "equivalence_p": "p of equivalence"}
    rows = tuple(
        replace(row, cells=tuple(c.partition(" (known to ")[0] if isinstance(c, str) else c for c in row.cells))
        for row in table.rows
    )
    columns = tuple(replace(column, title=short.get(column.name, column.title)) for column in table.columns)
    return replace(table, columns=columns, rows=rows)


_SHOWN: tuple[tuple[Callable[[Findings], Table | None], str, tuple[str, ...]], ...] = (
    (_verdicts, "verdicts", ("arm", "budget", "verdict", "difference", "adjusted_p", "equivalence_p", "seeds",
                                         "look")),
    (sections.arms, "arms", ("arm", "budget", "test_loss", "difference", "perplexity", "seeds")),
    (sections.arms, "every-arm", ("arm", "budget", "exact_match", "trainable_parameters", "learning_rate",
                                  "plan_seconds", "train_seconds", "notes")),
    (sections.verdicts, "what-varies", ("arm", "budget", "difference", "over_seeds", "over_records", "margin",
                                            "records", "cautions")),
    (evidence.sizes, "sizes", ("arm", "budget", "difference", "perplexity_percent", "share_of_gain", "improvement",
                               "sd")),
    (ceiling, "ceiling", ("budget", "arm", "gain", "half", "beyond", "p_closed", "verdict")),
    (decomposition, "decomposition", ("arm", "budget", "control", "price", "price_p", "value", "value_p")),
    (evidence.compute, "equal-compute", ("arm", "budget", "control", "difference", "seeds", "stopped")),
    (evidence.worth, "worth", ("arm", "budget", "percent", "percent_low", "percent_high")),
    (evidence.power, "power", ("arm", "budget", "sd", "half_width", "detectable", "seeds_for_margin",
                               "seeds_for_equivalence")),
    (sections.rates, "learning-rates", ("arm", "budget", "learning_rate", "validation_loss", "seeds", "chosen")),
    (evidence.stability, "stability", ("arm", "budget", "learning_rate", "runs", "diverged", "no_better",
                                       "kept", "state", "clipped", "spikes")),
    (sections.troubles, "runs-without-result", ("arm", "budget", "phase", "seed", "learning_rate", "status")),
)  # fmt: skip
_TITLES = {
    "what-varies": "What each difference varies by",
    "arms": "Test losses",
    "every-arm": "Size, rate and time of every arm",
}
_CAPTIONS = {"arms": "arms", "every-arm": "every_arm", "verdicts": "verdicts"}


def study_tables(found: Findings) -> dict[str, Table]:
    """Name -> table, of those that have something to show."""
    made = {}
    for maker, name, columns in _SHOWN:
        if (table := maker(found)) is not None:
            caption = _caption(found, name) or table.caption
            named = replace(table, name=name, title=_TITLES.get(name, table.title), caption=caption)
            made[name] = narrowed(named, tuple(c for c in columns if c != "budget" or _names_budgets(found, table)))
    return made


def _names_budgets(found: Findings, table: Table) -> bool:
    """Whether its rows are of several budgets, or of one of a study that has several."""
    own = {row.cells[i] for i, column in enumerate(table.columns) if column.name == "budget" for row in table.rows}
    return len(own | set(found.facts["spec"]["budgets"])) > 1


def _caption(found: Findings, name: str) -> str | None:
    """Of a table whose caption on the report's page says more than the paper needs, which has it in its text."""
    return render(f"paper.{_CAPTIONS[name]}", found) if name in _CAPTIONS else None


def narrowed(table: Table, names: tuple[str, ...]) -> Table:
    """The table with these columns, of those it has."""
    kept = [i for i, column in enumerate(table.columns) if column.name in names]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    caption = table.caption.replace("on this page ", "")
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows, caption=caption)


def changes_of_training(found: Findings) -> Table | None:
    """What each change of scaling or training does where training breaks with it or without it."""
    every = found.stability_findings.variants.moved
    columns = (
        *(Column(name, name, "text") for name in ("change", "of", "budget")),
        Column("learning_rate", "at rate", form="g"),
        Column("difference", "loss less that without", "interval", "+.3f"),
        Column("effect", "effect", "text"),
    )
    rows = tuple(
        Row((render("stability.differences", c.variant), c.variant.of, c.changed.budget, c.learning_rate,
             c.against.difference, render("stability.effect", c)), arm=c.changed.arm)
        for c in every
    )  # fmt: skip
    return (
        Table(
            "changes", "What moves a break", columns, rows, render("paper.changes", len(every), found.analysis["alpha"])
        )
        if every
        else None
    )


def conclusions(found: Findings) -> Table:
    """What a study says of every arm, in one table."""
    columns = (
        Column("arm", "arm", "text"),
        Column("budget", "budget", "text", optional=True),
        Column("parameters", "parameters", form=",d"),
        Column("learning_rate", "rate", form="g"),
        Column("test_loss", "test loss", form=".4f"),
        Column("difference", f"minus {found.baseline}", "interval", "+±"),
        Column("verdict", "verdict", "text", optional=True),
    )
    rows = []
    for arm in found.arms:
        budget, size = arm.budget if found.several_budgets else None, max(arm.trainable_parameters, default=None)
        judged = found.judgement(arm.arm, arm.budget)
        own = (arm.arm, budget, size, arm.learning_rate, arm.loss.mean if arm.loss else None, arm.difference)
        verdict = render("comparisons.verdict", judged) if judged else None
        rows.append(Row((*own, verdict), arm=arm.arm, marked=arm.is_baseline))
    caption = render("paper.conclusions", seeds_used(found), bool(found.looks), found.resampled)
    return Table("conclusions", f"The study {found.facts['name']}", columns, tuple(rows), caption)


def side_by_side(found: Findings, main: Findings) -> Table | None:
    """Arms that two studies of one model and one source of data share, by name; None where there are none, or where the
    other study has several budgets, so that a name is not one arm.
    """
    names = set(found.contenders) & set(main.contenders)
    shared = [size for size in found.sizes if size.arm in names]
    tasks = [(*map(f.facts["model"].get, ("name", "revision")), f.facts["data"]["source"]) for f in (found, main)]
    if not shared or found.several_budgets or tasks[0] != tasks[1]:
        return None
    there, here, budgets = found.facts["name"], main.facts["name"], main.facts["spec"]["budgets"]
    columns = [
        Column("arm", "arm", "text"),
        Column("difference", f"{there}: mean", "interval", "+.4f"),
        Column("wins", "seeds lower", "text"),
    ]
    for budget in budgets:
        suffix = f"_{budget.replace(':', '_')}"
        columns.append(Column(f"difference{suffix}", f"{here}, {budget}", "interval", "+±"))
        columns.append(Column(f"verdict{suffix}", "verdict", "text", optional=True))
    differences = {(arm.arm, arm.budget): arm.difference for arm in main.arms}
    rows = []
    for size in shared:
        n, mean = size.over_seeds.n, Interval(size.over_seeds.mean, None, None, size.over_seeds.n, 0.95)
        cells: list[Cell] = [size.arm, mean, f"{size.improvement.mean * n:g} of {n}"]
        for budget in budgets:
            judged = main.judgement(size.arm, budget)
            cells += [differences.get((size.arm, budget)), str(judged.verdict) if judged else None]
        rows.append(Row(tuple(cells), arm=size.arm))
    caption = render("paper.side_by_side", found, main)
    return Table("against", "The same arms in two studies", tuple(columns), tuple(rows), caption)
