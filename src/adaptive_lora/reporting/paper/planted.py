"""What became of planted ranks, as the text of a paper knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.recovery import recovery_figure
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.paper.exhibits import narrowed
from adaptive_lora.reporting.paper.facts import Collected, Facts
from adaptive_lora.reporting.recovered import Recovered, recovery_table
from adaptive_lora.reporting.tables import Table
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.recovery import CLEAR, CONTROLS

NATS = "nats per token"
PATTERNS: Mapping[str, str] = {
    "last-mlp": "the MLPs of the last two blocks",
    "two-blocks": "two blocks drawn by chance",
    "few-modules": "one module in six, drawn by chance",
    "attention-only": "all attention, no MLP",
    "mlp-only": "all MLPs, no attention",
    "growing": "rank as the square of the depth",
    "real": "the update of a real fine-tuning, truncated, its directions as large as found",
}
"""What is planted where."""
LEADERS = 3
"""Strategies named on a truth that is not concentrated."""


def planted_context(found: Recovered) -> Mapping[str, Any]:
    """Facts and lists of names for the templates."""
    facts = gather_planted(found)
    shares = {name: found.concentrated_share(name) for name in found.order()}
    known = {name: share for name, share in shares.items() if share is not None and share.low is not None}
    own = [name for name in known if name not in CONTROLS]
    leaders = {truth: _leaders(found, truth) for truth in found.spread}
    best = own[0] if own else ""
    return {
        "n": lambda name: facts[name].text,
        "has": lambda name: name in facts,
        "shown": [f"{truth} ({PATTERNS[truth]})" if truth in PATTERNS else truth for truth in found.shown],
        "concentrated": found.concentrated,
        "counting": found.counting,
        "not_counting": [truth for truth in found.shown if truth not in found.counting],
        "provisional": found.provisional,
        "best": best,
        "spread": found.spread,
        "uneven": found.uneven,
        "every_concentrated": found.every_concentrated,
        "gains": {truth: found.truths[truth]["oracle_gain"] for truth in found.counting},
        "leaders": leaders,
        "outdone": [truth for truth, names in leaders.items() if best and best not in names[:1]],
        "kept": [truth for truth in found.spread if best and found.is_uniform(truth, best)],
        "above": [name for name in own if _low(known[name]) > 0],
        "below": [name for name in own if _high(known[name]) < 0],
        "open": [name for name in own if _low(known[name]) <= 0 <= _high(known[name])],
        "controls": [name for name in known if name in CONTROLS],
        "with_uniform": "uniform" in found.truths,
        "names": list(known),
    }


def _leaders(found: Recovered, truth: str) -> list[str]:
    """Those with the largest shares on a truth, but for one of its own name, which is told the answer."""
    shares = {n: share.mean for n in found.order() if n not in (*CONTROLS, truth) and (share := found.share(truth, n))}
    return sorted(shares, key=lambda name: -shares[name])[:LEADERS]


def _low(share: Interval) -> float:
    return -float("inf") if share.low is None else share.low


def _high(share: Interval) -> float:
    return float("inf") if share.high is None else share.high


def gather_planted(found: Recovered) -> Facts:
    """`marginal-gain.share` and the like."""
    facts, said = Collected(), found.circumstances
    for name in ("model", "data", "budget"):
        facts.add(name, said.get(name))
    for name in ("steps", "batch_size", "length"):
        facts.add(name, said.get(name), ",d")
    facts.add("rate", said.get("learning_rate"), "g")
    for truth, held in found.truths.items():
        facts.add(f"{truth}.gain", held["oracle_gain"], ".4f", NATS)
        facts.add(f"{truth}.uniform", held["strategies"]["uniform"]["divergence"], ".4f", NATS)
        facts.add(f"{truth}.seeds", held["seeds"], "d")
    seeds = [held["seeds"] for held in found.truths.values()]
    facts.add("seeds.least", min(seeds), "d")
    facts.add("seeds.most", max(seeds), "d")
    facts.add("truths", len(found.shown), "d")
    facts.add("standard_errors", CLEAR, "d")
    names = found.order()
    facts.add("strategies", sum(name not in CONTROLS for name in names), "d")
    for name in names:
        facts.add(f"{name}.share", found.concentrated_share(name), ".2f")
        facts.add(f"{name}.every", found.concentrated_share(name, every=True), ".2f")
        facts.add(f"{name}.seconds", found.planning_seconds(name), ".0f", "s")
        facts.add(f"{name}.excess", found.excess(name), ".2f")
        each = [f"{share.mean:.2f} on {truth}" for truth in found.concentrated if (share := found.share(truth, name))]
        facts.add(f"{name}.each", listed(each) if each else None)
        for truth in found.spread:
            facts.add(f"{truth}.{name}", found.share(truth, name), ".2f")
    return facts.done()


def planted_tables(found: Recovered) -> Mapping[str, Table]:
    """Strategies by rows, as wide as a page: the concentrated truths, and the others that count."""
    table = recovery_table(found)
    columns = {truth: truth.replace("-", "_") for truth in found.shown}
    kept = narrowed(table, ("strategy", "concentrated", *(columns[t] for t in found.concentrated), "excess"))
    tables = {"planted": replace(kept, name="planted", caption=kept.caption.replace(" Planning: median seconds.", ""))}
    if found.spread:
        kept = narrowed(table, ("strategy", *(columns[t] for t in found.spread), "plan_seconds"))
        caption = "As in the table before, for truths that do not lie in few layers. Planning: median seconds."
        tables["planted-spread"] = replace(
            kept, name="planted-spread", title=f"{table.title}: other truths", caption=caption
        )
    return tables


def planted_picture(found: Recovered) -> tuple[Figure, str]:
    """The figure with its caption."""
    return recovery_figure(found), (
        "Planted ranks. Left: by strategy, the share of the oracle's gain over uniform ranks that is recovered at "
        "equal parameters; filled: mean of the concentrated truths with its 95 % interval over seeds, small marks: "
        "every truth by itself. Right: excess loss over uniform where uniform ranks are the truth, in units of the "
        "median gain of the concentrated truths. Arrows: beyond the axis; single truths beyond it are left to the "
        "table. Controls stand last."
    )
