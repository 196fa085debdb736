"""The report's exploratory tables: effect sizes, parameter and compute equivalents, power, stability.

Each is a function `(Findings) -> Table | None`, None where it has no row; its caption is the macro of its name in
`templates/captions.txt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.tables import Cell, Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.cost_equivalents import at_equal_compute, parameter_equivalents
from adaptive_lora.stats.effect_sizes import EffectSize

NATS = "nats per token"
ARM = (Column("arm", kind="text"), Column("budget", kind="text"))


def captioned(
    found: Findings, macro: str, names: tuple[str, str], columns: tuple[Column, ...], cells: Iterable[tuple[Cell, ...]],
    marked: Callable[[tuple[Cell, ...]], bool] = lambda row: False,
) -> Table | None:  # fmt: skip
    """A table of (name of its files, title), whose rows begin with their arm; None where there are none."""
    rows = tuple(Row(row, arm=str(row[0]), marked=marked(row)) for row in cells)
    return Table(*names, columns, rows, render(f"captions.{macro}", found)) if rows else None


def difference(found: Findings, title: str, form: str = "+±", name: str = "difference") -> Column:
    """A column of differences by the study's metric, which is in its name where that is not test loss."""
    own = name if found.metric.is_loss else f"{name}_{found.metric.name}"
    said = title if found.metric.is_loss else f"{found.metric.title} {title}"
    return Column(own, said, "interval", form, found.metric.unit)


def sizes(found: Findings) -> Table | None:
    """How large each difference is, in several units, and over what it varies."""
    columns = (
        *ARM,
        difference(found, f"minus {found.baseline}"),
        Column("over_seeds", "over seeds alone", "ends", "+±"),
        Column("over_records", "over records alone", "ends", "+±", optional=True),
        Column("perplexity_percent", "perplexity", form="+.2f", unit="%", optional=not found.metric.is_loss),
        Column("share_of_gain", "share of the gain", form="+.2f", unit="%", optional=True),
        Column("bits_per_byte", form="+.5f", optional=True),
        Column("improvement", _seeds_better(found), "interval", ".2f"),
        Column("sd", "sd over seeds", form=".4f", unit=found.metric.unit),
    )
    cells = (
        (s.arm, s.budget, s.difference, s.over_seeds, s.over_records, *_in_other_units(s), s.improvement, s.sd)
        for s in found.sizes
    )
    return captioned(found, "sizes", ("sizes", "Sizes of differences"), columns, cells)


def _seeds_better(found: Findings) -> str:
    return "seeds with the lower loss" if found.metric.is_loss else "seeds on which it is better"


def _in_other_units(size: EffectSize) -> tuple[float | None, float | None, float | None]:
    own = size.effect
    return (own.perplexity_percent, _percent(own.share_of_gain), own.bits_per_byte) if own else (None, None, None)


def worth(found: Findings) -> Table | None:
    """How many parameters the baseline needs for the same loss; None of a study by another metric."""
    if not found.metric.is_loss:
        return None
    columns = (
        *ARM,
        Column("percent", f"{found.baseline} needs so many more", form="+.0f", unit="%"),
        Column("percent_low", "from", form="+.0f", unit="%"),
        Column("percent_high", "to", form="+.0f", unit="%"),
        Column("note", kind="text", optional=True),
    )
    cells = (
        (m.arm, m.budget, m.percent, m.low, m.high,
         "" if None not in (m.low, m.high) else render("comparisons.parameter_equivalent", m))
        for m in parameter_equivalents(found.arms)
    )  # fmt: skip
    return captioned(found, "worth", ("worth", "Worth in parameters"), columns, cells)


def compute(found: Findings) -> Table | None:
    """Arms that train before they have a plan, beside the baseline at equal total compute."""
    columns = (
        *ARM,
        Column("control", "against", "text"),
        difference(found, "difference, 95 % interval"),
        Column("seeds"),
        Column("stopped", "stopped at the usual length", optional=True),
    )
    every = at_equal_compute(found.runs, found.lock["controls"]["compute"], found.baseline, found.metric)
    cells = ((e.arm, e.budget, e.control, e.difference, e.difference.n, e.stopped or None) for e in every)
    return captioned(found, "compute", ("equal-compute", "At equal compute"), columns, cells)


def power(found: Findings) -> Table | None:
    """What the seeds and records could show, by the spread they had."""
    unit = found.metric.unit
    columns = (
        *ARM,
        Column("sd", "sd over seeds", form=".4f", unit=unit),
        Column("half_width", "interval reaches either side", form=".4f", unit=unit),
        Column("detectable", "smallest detectable", form=".4f", unit=unit),
        Column("margin", form=".4f", unit=unit, optional=True),
        Column("seeds_for_margin", "seeds to find the margin", form=",d", optional=True),
        Column("seeds_for_equivalence", "seeds to show equivalence", form=",d", optional=True),
    )
    cells = (
        (p.arm, p.budget, p.sd, p.half_width, p.detectable, p.margin, p.seeds_for_margin, p.seeds_for_equivalence)
        for p in found.powers
    )
    return captioned(found, "power", ("power", "Power"), columns, cells)


def stability(found: Findings) -> Table | None:
    """How training went, by arm, budget and rate."""
    alpha = found.analysis["alpha"]
    columns = (
        *ARM,
        Column("scaling", kind="text"),
        Column("learning_rate", form="g"),
        Column("runs"),
        Column("diverged"),
        Column("no_better", "no better than frozen", optional=True),
        Column("kept", "gain kept", form=".0f", unit="% of that at its best rate"),
        Column("state", kind="text"),
        Column(
            "excess",
            f"validation loss minus {found.baseline}, {_percent(1 - alpha):g} % interval",
            "interval",
            "+.4f",
            NATS,
        ),
        Column("clipped", "steps clipped", form=".0f", unit="%", optional=True),
        Column("gradient_norm", form=".3g"),
        Column("spikes", "spikes a run", form=".2f"),
        Column("largest_update", form=".1f", unit="% of the weight", optional=True),
    )
    cells = (
        (s.arm, s.budget, s.scaling, s.learning_rate, s.seeds, s.diverged, s.no_better or None,
         _percent(course.kept(s)), str(state), s.excess, _percent(s.clipped), s.gradient_norm, s.spikes,
         _percent(s.largest_update))
        for course in found.stability_findings.sweeps
        for s, state in course.paired
    )  # fmt: skip
    return captioned(found, "stability", ("stability", "Stability"), columns, cells)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
