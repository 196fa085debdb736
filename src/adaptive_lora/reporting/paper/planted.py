"""What became of planted ranks, as the text of a paper knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptive_lora.reporting.paper.tables import narrowed
from adaptive_lora.reporting.recovered import Recovered, recovery_caption, recovery_table
from adaptive_lora.reporting.tables import Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.recovery import CLEAR, CONTROLS

LEADERS = 3
"""Strategies named on a truth that is not concentrated."""


def planted_context(found: Recovered) -> Mapping[str, Any]:
    """The comparison and lists of names for the templates."""
    shares = {name: found.concentrated_share(name) for name in found.order()}
    ends = {n: (s.low, s.high) for n, s in shares.items() if s and s.low is not None and s.high is not None}
    own = {name: end for name, end in ends.items() if name not in CONTROLS}
    best = next(iter(own), "")
    leaders = {truth: _leaders(found, truth) for truth in found.spread}
    return {
        "found": found,
        "standard_errors": CLEAR,
        "names": list(ends),
        "best": best,
        "not_counting": [truth for truth in found.shown if truth not in found.counting],
        "leaders": leaders,
        "outdone": [truth for truth, names in leaders.items() if best and best not in names[:1]],
        "kept": [truth for truth in found.spread if best and found.is_uniform(truth, best)],
        "above": [name for name, (low, _) in own.items() if low > 0],
        "below": [name for name, (_, high) in own.items() if high < 0],
        "open": [name for name, (low, high) in own.items() if low <= 0 <= high],
        "controls": [name for name in ends if name in CONTROLS],
    }


def _leaders(found: Recovered, truth: str) -> list[str]:
    """Those with the largest shares on a truth, but for one of its own name, which is given the answer."""
    shares = {n: share.mean for n in found.order() if n not in (*CONTROLS, truth) and (share := found.share(truth, n))}
    return sorted(shares, key=lambda name: -shares[name])[:LEADERS]


def planted_tables(found: Recovered) -> Mapping[str, Table]:
    """Strategies by rows, as wide as a page: the concentrated truths, and the others that count."""
    table = recovery_table(found)
    columns = {truth: truth.replace("-", "_") for truth in found.shown}
    kept = narrowed(table, ("strategy", "concentrated", *(columns[t] for t in found.concentrated), "excess"))
    tables = {"planted": replace(kept, name="planted", caption=recovery_caption(found, planned=False))}
    if found.spread:
        kept = narrowed(table, ("strategy", *(columns[t] for t in found.spread), "plan_seconds"))
        title, caption = f"{table.title}: other truths", render("paper.planted_spread")
        tables["planted-spread"] = replace(kept, name="planted-spread", title=title, caption=caption)
    return tables
