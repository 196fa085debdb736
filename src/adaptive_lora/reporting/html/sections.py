"""What stands on the page and in which order: sections of tables, figures and remarks.

A new table is a function `(Findings) -> Table | None`, its name in one of the `SECTIONS` and its caption's macro. Its
files are written by `build`; a figure finds its section by the beginning of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html import evidence
from adaptive_lora.reporting.html.ceiling import ceiling
from adaptive_lora.reporting.html.decomposition import decomposition
from adaptive_lora.reporting.html.evidence import ARM, NATS, captioned
from adaptive_lora.reporting.html.forgetting import forgetting
from adaptive_lora.reporting.html.rate_table import rate_choices
from adaptive_lora.reporting.tables import Column, Table
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.estimators import Interval, mean_interval
from adaptive_lora.stats.metrics import EXACT_MATCH
from adaptive_lora.stats.run_table import Comparison, Phase, Status
from adaptive_lora.stats.verdicts import Judgement

Maker = Callable[[Findings], Table | None]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; one without tables, figures and remarks is left out."""

    name: str
    """The anchor."""
    title: str
    tables: tuple[Maker, ...] = ()
    figures: tuple[str, ...] = ()
    """Beginnings of the names of figures."""
    remarks: Callable[[Findings], Sequence[str]] = lambda found: ()
    """Plain paragraphs below."""
    detail: bool = False
    """Whether its figures summarise its tables: long ones are then folded."""


def verdicts(found: Findings) -> Table | None:
    """The primary comparisons, one family."""
    level = 1 - found.analysis["alpha"]
    columns = (
        *ARM,
        Column("verdict", kind="text"),
        evidence.difference(found, f"minus {found.baseline}, {100 * level:g} % interval"),
        Column("cautions", kind="text", optional=True),
        Column("adjusted_p", "p, adjusted", form=".2g", optional=True),
        Column("equivalence_p", "p of equivalence, adjusted", form=".2g", optional=True),
        Column("margin", kind="interval", form="±", unit=found.metric.unit, optional=True),
        Column("seeds"),
        Column("look", kind="text", optional=True),
        Column("records", form=",d", optional=True),
        Column("over_seeds", "over seeds alone", "ends", "+±", optional=True),
        Column("over_records", "over records alone", "ends", "+±", optional=True),
    )
    cells = (
        (c.arm, c.budget, render("comparisons.verdict", j), _difference(j, level), "; ".join(found.cautions[c]),
         j.adjusted_p, j.adjusted_equivalence_p, _measured(j), j.n, look_of(found, j), j.records, *_alone(found, c, j))
        for c, j in found.judged.items()
    )  # fmt: skip
    return captioned(found, "verdicts", ("verdicts", "Verdicts"), columns, cells)


def _difference(judged: Judgement, level: float) -> Interval | None:
    bare = None if judged.mean is None else Interval(judged.mean, None, None, judged.n, level)
    return judged.interval or bare


def _alone(found: Findings, comparison: Comparison, judged: Judgement) -> tuple[Interval | None, Interval | None]:
    """Over seeds and over records, each beside the interval over both; the latter of an export that has no more."""
    if judged.records is not None:
        return judged.over_seeds, judged.over_records
    kept, _ = found.over_records.get((comparison.arm, comparison.budget), (None, None))
    return None, kept


def _measured(judged: Judgement) -> Interval | None:
    """The margin, where it is not the number that the caption has."""
    return judged.margin.interval


def look_of(found: Findings, judged: Judgement) -> str | None:
    """`2 of 5`; None where the study is judged once."""
    if not found.looks:
        return None
    return "none yet" if judged.look is None else f"{judged.look} of {len(found.looks)}"


def arms(found: Findings) -> Table | None:
    """What the seeds of every arm say together."""
    columns = (
        Column("arm", kind="text"),
        Column("budget", kind="text", optional=True),
        Column("test_loss", "test loss, 95 % interval", "interval", ".4f", NATS),
        Column(
            found.metric.column,
            f"{found.metric.title}, 95 % interval",
            "interval",
            f".{found.metric.places}f",
            found.metric.unit if found.metric.scale != 1 else "",
            optional=True,
        ),
        evidence.difference(found, f"minus {found.baseline}, 95 % interval"),
        Column("perplexity", form=".3f"),
        Column("exact_match", form=".1%", optional=True),
        Column("seeds"),
        Column("trainable_parameters", "parameters", form=",d"),
        Column("learning_rate", form="g"),
        Column("plan_seconds", "planning", form=".2f", unit="s"),
        Column("train_seconds", "training", form=".1f", unit="s"),
        Column("notes", kind="text", optional=True),
    )
    cells = (
        (a.arm, a.budget if found.several_budgets else None, a.loss, a.score, a.difference, a.perplexity,
         None if found.metric == EXACT_MATCH else a.exact_match, a.loss.n if a.loss else 0,
         max(a.trainable_parameters, default=None), a.learning_rate, a.plan_seconds, a.train_seconds,
         render("captions.notes", a, found.left_out))
        for a in found.arms
    )  # fmt: skip
    return captioned(found, "arms", ("arms", "Arms"), columns, cells, lambda row: row[0] == found.baseline)


def rates(found: Findings) -> Table | None:
    """Mean validation loss of every arm, budget and learning rate over the tuning seeds."""
    runs = found.runs[(found.runs["phase"] == Phase.TUNING) & (found.runs["status"] == Status.COMPLETED)]
    columns = (
        *ARM,
        Column("learning_rate", form="g"),
        Column("validation_loss", "validation loss, 95 % interval", "interval", ".4f", NATS),
        Column("seeds"),
        Column("chosen", kind="text", optional=True),
    )
    chosen = {(arm.arm, arm.budget, arm.learning_rate): "chosen" for arm in found.arms}
    cells = []
    for (arm, budget, rate), own in runs.groupby(["arm", "budget", "learning_rate"], sort=False):
        loss, key = mean_interval(own["validation_loss"].tolist()), (str(arm), str(budget), float(str(rate)))
        cells.append((*key, loss, loss.n, chosen.get(key)))
    names = ("learning-rates", "Learning rates")
    return captioned(found, "rates", names, columns, cells, lambda row: row[-1] is not None)


def troubles(found: Findings) -> Table | None:
    """Runs that failed or diverged, and why."""
    columns = (
        *ARM,
        Column("phase", kind="text"),
        Column("seed"),
        Column("learning_rate", form="g"),
        Column("status", kind="text"),
        Column("error", "reason", "text"),
    )
    runs = found.runs.loc[found.runs["status"].isin([Status.DIVERGED, Status.FAILED]), [c.name for c in columns]]
    cells = map(tuple, runs.astype(object).where(runs.notna(), None).to_numpy().tolist())
    return captioned(found, "troubles", ("runs-without-result", "Runs without a result"), columns, cells)


SECTIONS = (
    Section("verdicts", "Verdicts", (verdicts,), (),
            lambda found: [*render_all("comparisons.reach", found),
                           *(render("comparisons.assay", assay) for assay in found.assays)]),
    Section("looks", "Looks", (), (), lambda found: render_all("comparisons.looks", found)),
    Section("arms", "Arms", (arms,), (),
            lambda found: render_all("comparisons.same_as_baseline", found)),
    Section("overview", "Overview", (), ("overview",)),
    Section("ladder", "What choices change", (), ("ladder",)),
    Section("differences", "Differences", (evidence.sizes, evidence.compute), ("differences",)),
    Section("ceiling", "What the best allocation gains", (ceiling,), ("ceiling",),
            lambda found: render_all("ceiling.findings", ceilings_of(found), found)),
    Section("decomposition", "What differences are made of", (decomposition,), ("decomposition",),
            lambda found: render_all("decomposition.findings", found)),
    Section("worth", "Loss by budget", (evidence.worth,), ("loss-by-budget",),
            lambda found: render_all("comparisons.no_parameter_equivalents", found) if found.metric.is_loss else []),
    Section("forgetting", "Forgetting", (forgetting,)),
    Section("ranks", "Ranks", (), ("ranks", "scores")),
    Section("rates", "Learning rates", (rate_choices, rates), ("rates",),
            lambda found: [render("rates.at_edge", edge) for edge in found.edges], detail=True),
    Section("training", "Training", (), ("curves", "seconds")),
    Section("stability", "Stability", (evidence.stability,), ("stability",),
            lambda found: render_all("stability.findings", found.stability_findings), detail=True),
    Section("costs", "Costs", (), ("costs",)),
    Section("power", "Power", (evidence.power,)),
    Section("troubles", "Runs without a result", (troubles,)),
)  # fmt: skip
"""All sections between the verdict in words and the study card."""


def sorted_into(figures: Sequence[str], every: Sequence[Section] = SECTIONS) -> list[tuple[Section, list[str]]]:
    """Every section with the names of its figures; those that no section asks for come last."""
    placed = [(s, [name for name in figures if s.figures and name.startswith(s.figures)]) for s in every]
    unplaced = [name for name in figures if not any(name in own for _, own in placed)]
    return placed + ([(Section("more", "More figures"), unplaced)] if unplaced else [])
