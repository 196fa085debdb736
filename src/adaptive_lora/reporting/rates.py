"""What learning rates say of a study's verdicts: how they were chosen, what neighbours say, what is clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptive_lora.stats.cautions import Caution
from adaptive_lora.stats.rate_choice import next_tried
from adaptive_lora.stats.robustness import Cell, RateLine, rate_cautions, rate_lines, tuning_losses
from adaptive_lora.stats.run_table import Comparison, Phase, Status
from adaptive_lora.stats.stability import summaries
from adaptive_lora.study.learning_rate_search import TuningLosses, edges
from adaptive_lora.study.tuning import Edge

if TYPE_CHECKING:
    from adaptive_lora.reporting.findings import Findings


def tuned_by_baseline(facts: Mapping[str, Any]) -> bool:
    """Whether the study file says `tune: baseline`."""
    return bool(facts["spec"]["train"].get("tune") == "baseline")


def edges_of(facts: Mapping[str, Any], runs: pd.DataFrame) -> list[Edge]:
    """Arms whose best learning rate lies at the edge of what was tried."""
    if tuned_by_baseline(facts):
        return _edges_of_choices(facts)
    tuning = runs[runs["phase"] == Phase.TUNING]
    losses: TuningLosses = {}
    for run in tuning[tuning["status"].isin([Status.COMPLETED, Status.DIVERGED])].to_dict("records"):
        missing = run["status"] == Status.DIVERGED or pd.isna(run["validation_loss"])
        at_rate = losses.setdefault((run["arm"], run["budget"]), {}).setdefault(float(run["learning_rate"]), [])
        at_rate.append(None if missing else float(run["validation_loss"]))
    grid = sorted(set(tuning["learning_rate"]))
    return edges(losses, grid) if len(grid) > 1 else []


def _edges_of_choices(facts: Mapping[str, Any]) -> list[Edge]:
    """Of a study tuned by its baseline: what the search has said of edges."""
    found = []
    for row in facts.get("rate_choices", []):
        if row["edge"]:
            rate, beyond = row["edge"]
            found.append(Edge(row["arm"], row["budget"], rate, beyond, row["rate"] is not None, by_steps=True))
    return found


def how_chosen(found: Findings) -> dict[Cell, tuple[str | None, bool]]:
    """(arm, budget) -> how its rate was chosen, None where none was, and whether training breaks one step above."""
    if tuned_by_baseline(found.facts):
        rows = found.facts.get("rate_choices", [])
        return {(row["arm"], row["budget"]): (row["how"], row["cliff"]) for row in rows}
    losses, cells = tuning_losses(found.runs), {}
    for cell, rate in chosen_rates(found).items():
        above = next_tried(rate, losses.get(cell, {}), up=True)
        breaks = above is not None and None in losses[cell][above].values()
        cells[cell] = "grid" if cell in losses else None, breaks
    return cells


def chosen_rates(found: Findings) -> dict[Cell, float]:
    """(arm, budget) -> the rate it is evaluated at."""
    return {(arm.arm, arm.budget): arm.learning_rate for arm in found.arms}


def lines_of(found: Findings) -> dict[Comparison, RateLine]:
    """Of every arm that was tuned, primary or not; always of losses, by which rates are chosen."""
    if not found.metric.is_loss:
        of_loss = {Comparison(a.arm, a.budget): a.of_loss for a in found.arms if not a.is_baseline}
        means = {c: math.fsum(d for _, d in own) / len(own) if own else None for c, own in of_loss.items()}
        return rate_lines(found.runs, means, chosen_rates(found), found.baseline)
    differences = {
        Comparison(arm.arm, arm.budget): arm.difference.mean if arm.difference else None
        for arm in found.arms
        if not arm.is_baseline
    }
    differences |= {c: judged.mean for c, judged in found.judged.items() if c in differences}
    return rate_lines(found.runs, differences, chosen_rates(found), found.baseline)


def unclipped_arms(facts: Mapping[str, Any]) -> set[str]:
    """Arms and controls whose gradients are not clipped where those of the study are."""
    own = {arm["name"] for arm in facts["spec"]["arms"] if not (arm.get("train") or {}).get("clip", True)}
    return own | set(facts["lock"]["controls"].get("unclipped", []))


def clipped_shares(found: Findings) -> dict[Cell, float]:
    """(arm, budget) -> the share of clipped steps at the rate it is evaluated at, median over runs."""
    chosen = chosen_rates(found)
    return {
        (s.arm, s.budget): s.clipped
        for s in summaries(found.stability)
        if s.clipped is not None and s.learning_rate == chosen.get((s.arm, s.budget))
    }


def cautions_with_rates(found: Findings) -> dict[Comparison, tuple[Caution, ...]]:
    """All cautions of every primary comparison: its own, and those that its rates give cause for.

    What losses at other rates say of a verdict on anything else than loss is not known.
    """
    at_edge = [(edge.arm, edge.budget) for edge in found.edges]
    lines = lines_of(found) if found.metric.is_loss else {}
    of_rates = rate_cautions(lines, found.judged, found.baseline, at_edge, clipped_shares(found))
    return {c: (*judged.cautions, *of_rates[c]) for c, judged in found.judged.items()}
