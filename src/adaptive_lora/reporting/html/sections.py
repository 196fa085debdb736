"""What stands on the page and in which order: sections of tables, figures and remarks.

A new table is a function `(Findings) -> Table | None` and its name in one of the `SECTIONS`; one of `None` is not
shown. Its files are written by themselves. A figure finds its section by the beginning of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html import evidence
from adaptive_lora.reporting.tables import Column, Row, Table
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.estimators import Interval, mean_interval
from adaptive_lora.stats.run_table import Phase, Status

Maker = Callable[[Findings], Table | None]
Remarks = Callable[[Findings], Sequence[str]]
NATS = "nats per token"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; one without tables and figures is left out."""

    name: str
    """The anchor."""
    title: str
    tables: tuple[Maker, ...] = ()
    figures: tuple[str, ...] = ()
    """Beginnings of the names of figures."""
    remarks: Remarks = lambda found: ()
    """Plain paragraphs below."""
    detail: bool = False
    """Whether its figures say first what its tables say in full: long ones are then folded."""


def verdicts(found: Findings) -> Table | None:
    """The primary comparisons, one family."""
    if not found.judged:
        return None
    columns = (
        *evidence.ARM,
        Column("verdict", "verdict", "text"),
        Column("seeds", "seeds"),
        Column("difference", f"minus {found.baseline}, 90 % interval", "interval", "+.4f", NATS),
        Column("p", "p", form=".3g"),
        Column("holm_p", "p, Holm", form=".3g"),
    )
    rows = tuple(
        Row(
            (
                c.arm,
                c.budget,
                render("comparisons.verdict", j),
                j.n,
                j.equivalence_interval or _alone(j.mean, j.n),
                j.p,
                j.adjusted_p,
            ),
            arm=c.arm,
        )
        for c, j in found.judged.items()
    )
    caption = (
        f"{_when_locked(found)}, one family: exact sign-flip tests over paired seeds, adjusted by Holm at "
        f"{found.analysis['alpha']:g}; equivalent where the 90 % t interval over seeds lies within "
        f"±{found.analysis['margin']:g} nats per token. Everything else on this page is exploratory."
    )
    if any(judged.diverged_pairs.any for judged in found.judged.values()):
        caption += (
            f" An arm that diverged on a seed that {found.baseline} finished is called neither better nor equivalent, "
            f"and neither worse nor equivalent where {found.baseline} did: the pairs that are left compare survivors."
        )
    return Table("verdicts", "Verdicts", columns, rows, caption)


def _when_locked(found: Findings) -> str:
    if found.locked_first:
        return "Locked before the first step"
    return "Changed when there were results already, as the deviations above say"


def _alone(mean: float | None, n: int) -> Interval | None:
    return None if mean is None else Interval(mean, None, None, n, 0.90)


def arms(found: Findings) -> Table | None:
    """What the seeds of every arm say together."""
    if not found.arms:
        return None
    columns = (
        Column("arm", "arm", "text"),
        Column("budget", "budget", "text", optional=True),
        Column("test_loss", "test loss, 95 % interval", "interval", ".4f", NATS),
        Column("difference", f"minus {found.baseline}, 95 % interval", "interval", "+.4f", NATS),
        Column("perplexity", "perplexity", form=".3f"),
        Column("exact_match", "exact match", form=".1%", optional=True),
        Column("seeds", "seeds"),
        Column("trainable_parameters", "parameters", form=",d"),
        Column("learning_rate", "learning rate", form="g"),
        Column("plan_seconds", "planning", form=".2f", unit="s"),
        Column("train_seconds", "training", form=".1f", unit="s"),
        Column("notes", "notes", "text", optional=True),
    )
    rows = tuple(
        Row(
            (
                arm.arm, arm.budget if found.several_budgets else None, arm.loss, arm.difference, arm.perplexity,
                arm.exact_match, arm.loss.n if arm.loss else 0, max(arm.trainable_parameters, default=None),
                arm.learning_rate, arm.plan_seconds, arm.train_seconds, "; ".join(_notes(arm, found.left_out)),
            ),
            arm=arm.arm,
            marked=arm.is_baseline,
        )
        for arm in found.arms
    )  # fmt: skip
    caption = (
        "Losses in nats per completion token on the test split, token-weighted; lower is better, and so is a negative "
        "difference. In brackets: 95 % t intervals over seeds, differences paired by seed. Perplexity is exp of the "
        "mean loss. Times are medians per run on the machine that trained."
    )
    if found.base_loss is not None:
        caption += f" The frozen model without an adapter: {found.base_loss:.4f}."
    return Table("arms", "Arms", columns, rows, caption)


def _notes(arm: ArmSummary, left_out: Mapping[str, str]) -> list[str]:
    notes = ["baseline"] if arm.is_baseline else []
    if arm.strategy == "ranks":
        notes.append("a size of its own")
    if len(arm.trainable_parameters) > 1:
        notes.append(f"sizes from {min(arm.trainable_parameters):,}")
    if arm.arm in left_out:
        notes.append(f"leaves out {left_out[arm.arm]}")
    if arm.diverged:
        notes.append(f"{arm.diverged} diverged")
    if arm.unfinished:
        notes.append(f"{arm.unfinished} unfinished")
    return notes


def rates(found: Findings) -> Table | None:
    """Mean validation loss of every arm, budget and learning rate over the tuning seeds."""
    runs = found.runs[(found.runs["phase"] == Phase.TUNING) & (found.runs["status"] == Status.COMPLETED)]
    if runs.empty:
        return None
    columns = (
        *evidence.ARM,
        Column("learning_rate", "learning rate", form="g"),
        Column("validation_loss", "validation loss, 95 % interval", "interval", ".4f", NATS),
        Column("seeds", "seeds"),
        Column("chosen", "chosen", "text", optional=True),
    )
    chosen = {(arm.arm, arm.budget): arm.learning_rate for arm in found.arms}
    rows = []
    for (arm, budget, rate), own in runs.groupby(["arm", "budget", "learning_rate"], sort=False):
        loss = mean_interval(own["validation_loss"].tolist())
        mark = "chosen" if chosen.get((str(arm), str(budget))) == rate else None
        rows.append(Row((str(arm), str(budget), float(str(rate)), loss, loss.n, mark), arm=str(arm), marked=bool(mark)))
    caption = (
        "Each arm's rate is the one with the lowest mean validation loss over tuning seeds, which are not the seeds "
        "that count above."
    )
    return Table("learning-rates", "Learning rates", columns, tuple(rows), caption)


def troubles(found: Findings) -> Table | None:
    """Runs that failed or diverged, and why."""
    runs = found.runs[found.runs["status"].isin([Status.DIVERGED, Status.FAILED])]
    if runs.empty:
        return None
    columns = (
        *evidence.ARM,
        Column("phase", "phase", "text"),
        Column("seed", "seed"),
        Column("learning_rate", "learning rate", form="g"),
        Column("status", "status", "text"),
        Column("error", "reason", "text"),
    )
    names = ["arm", "budget", "phase", "seed", "learning_rate", "status", "error"]
    cells = runs[names].astype(object).where(runs[names].notna(), None).to_numpy().tolist()
    rows = tuple(Row(tuple(row), arm=row[0]) for row in cells)
    return Table("runs-without-result", "Runs without a result", columns, rows, "A run that diverged counts as one.")


SECTIONS = (
    Section(
        "verdicts",
        "Verdicts",
        (verdicts,),
        remarks=lambda found: [render("comparisons.assay", assay) for assay in found.assays],
    ),
    Section(
        "arms",
        "Arms",
        (arms,),
        remarks=lambda found: [render("comparisons.reach", found), *render_all("comparisons.same_as_baseline", found)],
    ),
    Section("overview", "Overview", figures=("overview",)),
    Section("differences", "Differences", (evidence.sizes, evidence.compute), ("differences",)),
    Section(
        "worth",
        "Loss by budget",
        (evidence.worth,),
        ("loss-by-budget",),
        lambda found: render_all("comparisons.no_parameter_equivalents", found),
    ),
    Section("ranks", "Ranks", figures=("ranks", "scores")),
    Section(
        "rates",
        "Learning rates",
        (rates,),
        ("rates",),
        lambda found: [render("rates.at_edge", edge) for edge in found.edges],
        detail=True,
    ),
    Section("training", "Training", figures=("curves", "seconds")),
    Section(
        "stability",
        "Stability",
        (evidence.stability,),
        ("stability",),
        lambda found: render_all("stability.findings", found.stability_findings),
        detail=True,
    ),
    Section("costs", "Costs", figures=("costs",)),
    Section("power", "Power", (evidence.power,)),
    Section("troubles", "Runs without a result", (troubles,)),
)
"""All sections between the verdict in words and the study card."""


def sorted_into(figures: Sequence[str], every: Sequence[Section] = SECTIONS) -> list[tuple[Section, list[str]]]:
    """Every section with the names of its figures; those that no section asks for come last."""
    placed = [(s, [name for name in figures if s.figures and name.startswith(s.figures)]) for s in every]
    homeless = [name for name in figures if not any(name in own for _, own in placed)]
    return placed + ([(Section("more", "More figures"), homeless)] if homeless else [])
