"""All figures of a study, each with its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from adaptive_lora.reporting.choices import ceiling_cells, ladder_rows
from adaptive_lora.reporting.figures.axes import cap, points_each
from adaptive_lora.reporting.figures.break_map import break_map
from adaptive_lora.reporting.figures.budgets import far_losses, frozen_fits, loss_by_budget
from adaptive_lora.reporting.figures.ceiling import ceiling, ceiling_caption
from adaptive_lora.reporting.figures.costs import costs
from adaptive_lora.reporting.figures.curves import curves_in_seconds, learning_curves
from adaptive_lora.reporting.figures.decomposition import decomposition_bars
from adaptive_lora.reporting.figures.differences import Evidence, difference_limits, paired_differences
from adaptive_lora.reporting.figures.ladder import ladder, ladder_caption
from adaptive_lora.reporting.figures.looks import CROWD, Looks, looks_of
from adaptive_lora.reporting.figures.ranks import draws_of, overview, rank_heat_maps
from adaptive_lora.reporting.figures.rates import clip_of, compared_settings, rate_curves, stability
from adaptive_lora.reporting.figures.scores import score_against_rank, score_points
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.assays import Assay
from adaptive_lora.stats.run_table import Phase, Status


@dataclass(frozen=True)
class Wanted:
    """A figure that is yet to be drawn: together they would be large."""

    name: str
    """Of its files."""
    draw: Callable[[], Figure | None]
    """None where there are no results for it."""
    caption: str


def wanted_figures(found: Findings) -> list[Wanted]:
    """All that a report asks for, in its order."""
    looks = looks_in(found)
    return [figure for part in (main_figures, _by_budget, _rates_and_costs) for figure in part(found, looks)]


def looks_in(found: Findings) -> Looks:
    """How every arm looks in all figures of a study."""
    # Arms whose every rate diverged have no evaluation runs and are still arms of the study.
    return looks_of([arm["name"] for arm in found.facts["spec"]["arms"]] + list(dict.fromkeys(found.runs["arm"])))


def main_figures(found: Findings, looks: Looks) -> Iterator[Wanted]:
    """What every report of a study shows: ranks and differences, seed by seed, and losses by size."""
    runs, ranks, arms, baseline = found.runs, found.ranks, list(found.arms), found.baseline
    margins = found.margins
    first = [arm for arm in arms if arm.budget == arms[0].budget and arm.loss is not None]
    far, most = _is_far(found, arms[:1], 0.1), cap([len(arm.differences) for arm in first])
    draws = draws_of(ranks, first, arms[0].budget) if arms else {}
    caption = render("captions.overview_figure", found, far, most, draws)
    yield Wanted("overview", partial(overview, ranks, arms, looks, baseline, margins, found.metric), caption)
    far, most = _is_far(found, arms, 0.05, found.assays), cap([len(arm.differences) for arm in found.compared])
    evidence = Evidence(found.judged, found.differences, found.assays, found.analysis["alpha"])
    halves = [half for budget in dict.fromkeys(a.budget for a in found.compared) if (half := evidence.half(budget))]
    caption = render("captions.differences_figure", found, far, most, halves)
    draw_differences = partial(paired_differences, arms, looks, baseline, margins, found.metric, evidence)
    yield Wanted("differences", draw_differences, caption)
    if cells := ceiling_cells(found):
        yield Wanted("ceiling", partial(ceiling, cells, found.metric.unit), ceiling_caption(cells))
    if rows := ladder_rows(found):
        draw_ladder = partial(ladder, rows, baseline, found.metric)
        yield Wanted("ladder", draw_ladder, ladder_caption(rows, baseline, found.metric))
    if parts := found.decompositions:
        draw = partial(decomposition_bars, parts, baseline, found.metric)
        yield Wanted("decomposition", draw, render("decomposition.figure", found))
    caption = render("captions.budget_figure", found, far_losses(arms), frozen_fits(runs))
    yield Wanted("loss-by-budget", partial(loss_by_budget, runs, arms, looks), caption)


def _by_budget(found: Findings, looks: Looks) -> Iterator[Wanted]:
    runs, ranks, curves, baseline = found.runs, found.ranks, found.curves, found.baseline
    budgets, crowded = found.facts["spec"]["budgets"], len(looks) > CROWD
    for budget in budgets:
        suffix, draws = budget.replace(":", "-"), draws_of(ranks, found.arms, budget)
        sizes: Sequence[int] = score_points(ranks, budget).groupby("arm").size().tolist()
        every = -(-max(sizes, default=0) // points_each(len(sizes)))
        figures = {
            "ranks": (partial(rank_heat_maps, ranks, list(looks), budget, draws), (found, budget, draws)),
            "scores": (partial(score_against_rank, ranks, looks, budget), (budget, every)),
            "curves": (partial(learning_curves, curves, looks, budget, baseline), (found, budget, crowded)),
        }
        # In a bank seconds are shares of tokens, so that one budget shows all there is to see.
        if budget == budgets[0] or set(runs["engine"].dropna()) == {"reference"}:
            draw = partial(curves_in_seconds, curves, runs, looks, budget, baseline)
            figures["seconds"] = draw, (found, budget, crowded, _trained_alone(found))
        for name, (draw, values) in figures.items():
            yield Wanted(f"{name}-{suffix}", draw, render(f"captions.{name}_figure", *values))


def _rates_and_costs(found: Findings, looks: Looks) -> Iterator[Wanted]:
    runs, table, baseline, alpha = found.runs, found.stability, found.baseline, found.analysis["alpha"]
    chosen = {(arm, budget): float(rate) for arm, budget, rate in found.facts.get("chosen_rates", [])}
    compared = {budget for budget, _ in compared_settings(table)}
    lone = [budget for budget in dict.fromkeys(table["budget"]) if budget not in compared]
    yield Wanted("rates", partial(rate_curves, runs, looks, chosen), rates_caption(runs))
    yield Wanted("costs", lambda: costs(found.costs, looks), render("captions.costs_figure", _trained_alone(found)))
    caption = render("captions.stability_map", alpha)
    yield Wanted("stability-map", partial(break_map, table, baseline, alpha, chosen), caption)
    if runs["learning_rate"].nunique() > 1:
        yield Wanted("stability", partial(stability, table, looks), render("captions.stability_figure", found, lone))


def rates_caption(runs: pd.DataFrame) -> str:
    """Of the figure of rates, which ends at the frozen model where some run comes to it."""
    tuned = runs[runs["phase"] == Phase.TUNING]
    return render("captions.rates_figure", clip_of(tuned), bool((tuned["status"] == Status.DIVERGED).any()))


def _is_far(found: Findings, some: Sequence[ArmSummary], room: float, halves: Sequence[Assay] = ()) -> bool:
    """Whether an arm at the budgets of these is so far from all others that it is an arrow, with so much room."""
    budgets = {arm.budget for arm in some}
    shown = [arm for arm in found.compared if arm.budget in budgets]
    low, high = difference_limits(shown, found.margins, room, halves)
    return any(arm.difference and not low <= arm.difference.mean <= high for arm in shown)


def _trained_alone(found: Findings) -> bool:
    return {str(engine).split(" ")[0] for engine in found.runs["engine"].dropna()} <= {"reference"}
