"""Exploratory tables of the report: sizes of differences, what they are worth, power, stability."""

from __future__ import annotations

from collections.abc import Mapping

from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import counted
from adaptive_lora.reporting.tables import Column, Row, Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.cost_equivalents import at_equal_compute, baseline_curve, parameter_equivalents
from adaptive_lora.stats.power import POWER, Design, power_by_arm
from adaptive_lora.stats.stability import summaries

NATS = "nats per token"
ARM = (Column("arm", "arm", "text"), Column("budget", "budget", "text"))
"""What nearly every row is about."""


def sizes(found: Findings) -> Table | None:
    """How large each difference is, in several units, and over what it varies."""
    rows = [
        Row(
            (
                size.arm, size.budget, size.over_seeds, size.over_records, size.effect.perplexity_percent,
                _percent(size.effect.share_of_gain), size.effect.bits_per_byte, size.improvement, size.sd,
            ),
            arm=size.arm,
        )
        for size in found.sizes
    ]  # fmt: skip
    if not rows:
        return None
    columns = (
        *ARM,
        Column("difference", f"minus {found.baseline}, over seeds", "interval", "+.4f", NATS),
        Column("over_records", "the same, over test records", "interval", "+.4f", NATS),
        Column("perplexity_percent", "perplexity", form="+.2f", unit="%"),
        Column("share_of_gain", "share of the gain", form="+.2f", unit="%", optional=True),
        Column("bits_per_byte", "bits per byte", form="+.5f", optional=True),
        Column("improvement", "seeds with the lower loss", "interval", ".2f"),
        Column("sd", "sd over seeds", form=".4f", unit=NATS),
    )
    caption = (
        "Every interval is a 95 % one. Over seeds: what new seeds would give on the same test records (t; BCa "
        "bootstrap from 20 seeds). Over test records: what new records would give with the same seeds. Share of the "
        f"gain: of what {found.baseline} gains over the frozen model, positive is better. Seeds with the lower loss: "
        "ties count half, Clopper-Pearson."
    )
    return Table("sizes", "Sizes of differences", columns, tuple(rows), caption)


def worth(found: Findings) -> Table | None:
    """How many parameters uniform ranks need for the same loss."""
    rows = [
        Row(
            (
                m.arm,
                m.budget,
                m.percent,
                m.low,
                m.high,
                "" if None not in (m.low, m.high) else render("comparisons.parameter_equivalent", m),
            ),
            arm=m.arm,
        )
        for m in parameter_equivalents(found.arms)
    ]
    if not rows:
        return None
    columns = (
        *ARM,
        Column("percent", f"{found.baseline} needs so many more", form="+.0f", unit="%"),
        Column("percent_low", "from", form="+.0f", unit="%"),
        Column("percent_high", "to", form="+.0f", unit="%"),
        Column("note", "note", "text", optional=True),
    )
    curve = baseline_curve(found.arms)
    caption = (
        f"Trainable parameters that {found.baseline} needs for the arm's loss, against the budget: read off its own "
        f"loss at {len(curve.parameters)} budgets ({curve.parameters[0]:,} to {curve.parameters[-1]:,} parameters), "
        "linear between their logarithms. From and to: for the ends of the difference's 95 % interval over seeds, the "
        "curve taken as it is; empty beyond its ends."
    )
    return Table("worth", "Worth in parameters", columns, tuple(rows), caption)


def compute(found: Findings) -> Table | None:
    """Arms that train before they have a plan, beside the baseline at equal total compute."""
    controls: Mapping[str, str] = found.facts.get("lock", {}).get("controls", {}).get("compute", {})
    rows = [
        Row((equal.arm, equal.budget, equal.control, equal.difference, equal.difference.n), arm=equal.arm)
        for equal in at_equal_compute(found.runs, controls)
    ]
    if not rows:
        return None
    columns = (
        *ARM,
        Column("control", "against", "text"),
        Column("difference", "difference, 95 % interval", "interval", "+.4f", NATS),
        Column("seeds", "seeds"),
    )
    caption = (
        f"These arms train before they have a plan. Against: {found.baseline} trained for as many updates in all. "
        "Differences paired by seed; negative: the arm is better for the same compute."
    )
    return Table("equal-compute", "At equal compute", columns, tuple(rows), caption)


def power(found: Findings) -> Table | None:
    """What the seeds could tell apart, by the spread they had."""
    spec, asked = found.facts["spec"], max(1, len(found.judged))
    seeds = len(spec["seeds"]["evaluation"])
    question = Design(seeds, found.analysis["alpha"], asked, found.analysis["margin"])
    rows = [
        Row((o.arm, o.budget, o.sd, o.detectable, o.seeds_for_margin, o.seeds_for_equivalence), arm=o.arm)
        for o in power_by_arm(found.arms, question)
    ]
    if not rows:
        return None
    columns = (
        *ARM,
        Column("sd", "sd over seeds", form=".4f", unit=NATS),
        Column("detectable", "smallest detectable", form=".4f", unit=NATS, optional=True),
        Column("seeds_for_margin", "seeds to find the margin", form=",d", optional=True),
        Column("seeds_for_equivalence", "seeds to show equivalence", form=",d", optional=True),
    )
    caption = (
        f"Smallest detectable: the difference that {seeds} seeds find in {100 * POWER:.0f} % of studies at Holm's "
        f"first step over {counted(asked, 'comparison')}; empty where they can decide nothing. Seeds to find the "
        f"margin: so many find a difference of {question.margin:g} as often. Seeds to show equivalence: so many show "
        "it as often, were there no difference. All from the spread in this study."
    )
    return Table("power", "Power", columns, tuple(rows), caption)


def stability(found: Findings) -> Table | None:
    """How training went, by arm, budget and rate."""
    rows = [
        Row(
            (
                s.arm, s.budget, s.scaling, s.learning_rate, s.seeds, s.diverged, s.excess, _percent(s.clipped),
                s.gradient_norm, s.spikes, _percent(s.largest_update),
            ),
            arm=s.arm,
        )
        for s in summaries(found.stability)
    ]  # fmt: skip
    if not rows:
        return None
    columns = (
        *ARM,
        Column("scaling", "scaling", "text"),
        Column("learning_rate", "learning rate", form="g"),
        Column("runs", "runs"),
        Column("diverged", "diverged"),
        Column("excess", f"validation loss minus {found.baseline}, 95 % interval", "interval", "+.4f", NATS),
        Column("clipped", "steps clipped", form=".0f", unit="%", optional=True),
        Column("gradient_norm", "gradient norm", form=".3g"),
        Column("spikes", "spikes a run", form=".2f"),
        Column("largest_update", "largest update", form=".1f", unit="% of the weight", optional=True),
    )
    caption = (
        "Every run, tuning and evaluation. Validation loss against the baseline at the same budget, rate and seed; "
        "steps clipped, gradient norm (before clipping) and spikes: medians or means over runs; largest update: "
        "Frobenius norm of a module's update over that of its frozen weight."
    )
    return Table("stability", "Stability", columns, tuple(rows), caption)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
