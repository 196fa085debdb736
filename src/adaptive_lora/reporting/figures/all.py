"""All figures of a study, each with its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from adaptive_lora.reporting.figures.axes import cap_note, points_each
from adaptive_lora.reporting.figures.break_map import break_map
from adaptive_lora.reporting.figures.budgets import far_losses, frozen_fits, frozen_loss, loss_by_budget
from adaptive_lora.reporting.figures.costs import costs
from adaptive_lora.reporting.figures.curves import curves_in_seconds, learning_curves
from adaptive_lora.reporting.figures.differences import difference_limits, paired_differences
from adaptive_lora.reporting.figures.looks import CROWD, Looks, looks_of
from adaptive_lora.reporting.figures.ranks import overview, rank_heat_maps
from adaptive_lora.reporting.figures.rates import rate_curves
from adaptive_lora.reporting.figures.scores import score_against_rank, score_points
from adaptive_lora.reporting.figures.stability import compared_settings, stability
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.stats.arms import ArmSummary

MAP_CAPTION = (
    "Validation loss minus that of {baseline} at the same budget, learning rate and seed, mean over tuning and "
    "evaluation runs, nats per token. Framed: training breaks there, with a diverged run or an excess above {margin:g} "
    "with its whole 95 % interval. Bold: the rate that validation chooses for the arm. Grey, {baseline} itself: its "
    "loss less that at its own rate. Colours grow with the logarithm beyond ±0.02."
)

_ARROWS = " Arrows: beyond the axis."
_Parts = Iterator[tuple[str, Callable[[], Figure | None], str]]


@dataclass(frozen=True)
class Wanted:
    """A figure that is yet to be drawn: together they would be large."""

    name: str
    """Of its files."""
    draw: Callable[[], Figure | None]
    """Nothing where there are no results for it."""
    caption: str


def wanted_figures(found: Findings) -> list[Wanted]:
    """All that a report asks for, in its order."""
    looks = looks_in(found)
    parts = (main_figures, _by_budget, _choices_and_costs)
    return [Wanted(*wanted) for part in parts for wanted in part(found, looks)]


def looks_in(found: Findings) -> Looks:
    """How every arm looks in all figures of a study."""
    # Arms whose every rate diverged have no evaluation runs and are still arms of the study.
    return looks_of([arm["name"] for arm in found.facts["spec"]["arms"]] + list(dict.fromkeys(found.runs["arm"])))


def main_figures(found: Findings, looks: Looks) -> _Parts:
    """What every account of a study shows: ranks and differences, seed by seed, and losses by size."""
    runs, ranks, arms = found.runs, found.ranks, list(found.arms)
    baseline, analysis = found.baseline, found.analysis
    margin = f"band: the margin of {analysis['margin']:g} within which differences do not matter."
    compared = [len(arm.differences) for arm in arms if arm.difference is not None]
    first = [len(arm.differences) for arm in arms if arm.budget == arms[0].budget and arm.loss is not None]
    yield (
        "overview",
        lambda: overview(ranks, arms, looks, baseline, analysis["margin"]) if arms else None,
        "One column an arm. Above: where the rank goes, mean over seeds. Below: what that "
        f"changed in test loss against {baseline} (negative: better), circles: seeds, filled sign: mean, line: 95 % t "
        f"interval over seeds, {margin}{_left_out(found)}{_beyond(found, arms[:1], 0.1)}{cap_note(first)}",
    )
    yield (
        "differences",
        lambda: paired_differences(arms, looks, baseline, analysis["margin"]),
        f"Test loss of each arm minus {baseline} at the same seed (negative: better). Open circles: seeds; sign and "
        f"line, and the numbers: their mean and 95 % t interval over seeds; {margin} Controls, which spend rank "
        f"without a reason, stand last.{_beyond(found, arms, 0.05)}{cap_note(compared)}",
    )
    yield (
        "loss-by-budget",
        lambda: loss_by_budget(runs, arms, looks),
        "Mean test loss against trainable parameters. Bars: 95 % t intervals over seeds; faint circles: seeds. Arms of "
        "one size are moved apart sideways so that each can be seen."
        f"{_ARROWS if far_losses(arms) else ''}{_frozen(runs)}{cap_note([arm.loss.n for arm in arms if arm.loss])}",
    )


def _by_budget(found: Findings, looks: Looks) -> _Parts:
    runs, ranks, curves, baseline = found.runs, found.ranks, found.curves, found.baseline
    first = found.facts["spec"]["budgets"][0]
    # In a bank seconds are shares of tokens, so that one budget shows all there is to see.
    alone = set(runs["engine"].dropna()) == {"reference"}
    behind = f" Grey: {baseline}." if len(looks) > CROWD else ""
    for budget in found.facts["spec"]["budgets"]:
        suffix = budget.replace(":", "-")
        yield (
            f"ranks-{suffix}",
            partial(rank_heat_maps, ranks, list(looks), budget),
            f"Where {budget} goes: rank per block and module, mean over seeds, one colour scale.{_left_out(found)}",
        )
        yield (
            f"scores-{suffix}",
            partial(score_against_rank, ranks, looks, budget),
            f"What was measured before planning against the rank that came of it, at {budget}. One point a module, "
            f"both means over seeds; Spearman's correlation is that of the points.{_thinned(ranks, budget)}",
        )
        yield (
            f"curves-{suffix}",
            partial(learning_curves, curves, looks, budget, baseline),
            f"Training loss at {budget}, running mean over a tenth of the run; line: mean of the seeds, band: range."
            f"{behind}",
        )
        if budget != first and not alone:
            continue
        yield (
            f"seconds-{suffix}",
            partial(curves_in_seconds, curves, runs, looks, budget, baseline),
            f"Training loss at {budget} against time: the share of a run's steps times its seconds, mean over seeds. "
            f"Line: mean of the seeds, band: range. {_seconds(runs)}{behind}",
        )


def _choices_and_costs(found: Findings, looks: Looks) -> _Parts:
    runs = found.runs
    chosen = {(arm, budget): float(rate) for arm, budget, rate in found.facts.get("chosen_rates", [])}
    yield (
        "rates",
        lambda: rate_curves(runs, looks, chosen),
        "Mean validation loss over tuning seeds against learning rate. Bars: range over seeds; ring: the rate chosen; "
        "cross at the top edge: diverged with some seed, and so no candidate. Arms are moved apart sideways.",
    )
    yield (
        "costs",
        lambda: costs(found.costs, looks),
        "What a run costs: planning (with the scores it needs, each time anew) and training, medians over runs; beside "
        "it the most that scores held in memory between batches, the model and its activations not counted, where "
        f"plans recorded it. {_seconds(runs)}",
    )
    yield (
        "stability-map",
        lambda: break_map(found.stability, found.baseline, found.analysis["margin"], chosen),
        MAP_CAPTION.format(baseline=found.baseline, margin=found.analysis["margin"]),
    )
    yield (
        "stability",
        lambda: stability(found.stability, looks) if runs["learning_rate"].nunique() > 1 else None,
        f"How training goes over learning rates, tuning and evaluation runs together, mean and range over runs: "
        f"validation loss minus that of {found.baseline} at the same budget, rate and seed; share of steps whose "
        "gradient was clipped; median gradient norm before clipping. Cross at the top edge: a run diverged."
        f"{_alone(found)}",
    )


def _beyond(found: Findings, some: Sequence[ArmSummary], room: float) -> str:
    """Whether an arm at the budgets of these is so far from all others that it is an arrow, with so much room."""
    budgets = {arm.budget for arm in some}
    shown = [arm for arm in found.arms if arm.budget in budgets and arm.difference is not None]
    low, high = difference_limits(shown, found.analysis["margin"], room)
    far = any(arm.difference and not low <= arm.difference.mean <= high for arm in shown)
    return _ARROWS if far else ""


def _left_out(found: Findings) -> str:
    return " Grey, –: left out, no adapter." if found.left_out else ""


def _frozen(runs: pd.DataFrame) -> str:
    frozen = frozen_loss(runs)
    if frozen is None:
        return ""
    return " Dashed: the frozen model." if frozen_fits(runs) else f" The frozen model's loss is {frozen:.4f}."


def _alone(found: Findings) -> str:
    compared = {budget for budget, _ in compared_settings(found.stability)}
    alone = [budget for budget in dict.fromkeys(found.stability["budget"]) if budget not in compared]
    return f" Left out, as one arm alone trained there: {', '.join(alone)}." if alone else ""


def _thinned(ranks: pd.DataFrame, budget: str) -> str:
    points = score_points(ranks, budget)
    sizes: Sequence[int] = points.groupby("arm").size().tolist()
    most = points_each(len(sizes))
    every = -(-max(sizes, default=0) // most)
    return f" Of each arm one module in {every} is shown, all are counted." if every > 1 else ""


def _seconds(runs: pd.DataFrame) -> str:
    """What the engine's seconds mean."""
    engines = {str(engine).split(" ")[0] for engine in runs["engine"].dropna()}
    if engines <= {"reference"}:
        return "Each run was trained alone (reference engine)."
    return (
        "In a bank a run's seconds are its share of the bank's, by tokens: arms are to be compared in time only on the "
        "reference engine."
    )
