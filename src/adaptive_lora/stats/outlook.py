"""What a number of seeds can tell apart, and how many it takes: from the spread that a pilot found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptive_lora.stats.arms import ArmSummary
from adaptive_lora.stats.power import seeds_to_call_equivalent, seeds_to_detect, smallest_detectable
from adaptive_lora.stats.words import counted

POWER = 0.8
"""Chance of showing what is there: a difference, or that there is none beyond the margin."""


@dataclass(frozen=True)
class Outlook:
    """Of one arm's comparison with the baseline, were its differences spread as in the pilot."""

    arm: str
    budget: str
    sd: float
    """Of the paired differences by seed, nats per token."""
    pilot_seeds: int
    detectable: float | None
    """The smallest difference found with a power of `POWER`; nothing where the seeds can decide nothing."""
    seeds_for_margin: int | None
    """Seeds that find a difference as large as the margin with that power."""
    seeds_for_equivalence: int | None
    """Seeds that show equivalence with that power, were there no difference."""


@dataclass(frozen=True)
class Question:
    """What a study will ask of its seeds."""

    seeds: int
    alpha: float
    comparisons: int
    """How many share alpha; Holm's first step."""
    margin: float


def outlooks(pilot: Sequence[ArmSummary], question: Question) -> list[Outlook]:
    """One for each arm of the pilot that has differences of two seeds or more."""
    found = []
    for arm in pilot:
        differences = [difference for _, difference in arm.differences]
        if len(differences) > 1:
            found.append(_outlook(arm, differences, question))
    return found


def _outlook(arm: ArmSummary, differences: Sequence[float], question: Question) -> Outlook:
    sd, comparisons = float(np.std(differences, ddof=1)), max(1, question.comparisons)
    return Outlook(
        arm=arm.arm,
        budget=arm.budget,
        sd=sd,
        pilot_seeds=len(differences),
        detectable=smallest_detectable(sd, question.seeds, question.alpha, comparisons, POWER),
        seeds_for_margin=seeds_to_detect(question.margin, sd, question.alpha, comparisons, POWER),
        seeds_for_equivalence=seeds_to_call_equivalent(0.0, sd, question.margin, POWER),
    )


def outlook_text(found: Sequence[Outlook], question: Question) -> str:
    """In plain words, by the arm with the median spread and the one with the widest."""
    if not found:
        return "The pilot has no arm with differences of two seeds, so that it says nothing of power."
    by_spread = sorted(found, key=lambda outlook: outlook.sd)
    typical, widest = by_spread[len(by_spread) // 2], by_spread[-1]
    if typical.detectable is None:
        asked = f"{max(1, question.comparisons)} comparisons"
        return f"Power: none; {question.seeds} seeds can never decide {asked} at {question.alpha:g}."
    return (
        f"Power: with {question.seeds} seeds and {counted(question.comparisons, 'primary comparison')} a difference of "
        f"{typical.detectable:.4f} nats per token is found in {100 * POWER:.0f} % of studies (median spread of the "
        f"pilot, {typical.sd:.4f}); of the widest, {widest.arm} at {widest.budget}, {widest.detectable:.4f}. To "
        f"find one as large as the margin of {question.margin:g} as often takes {_seeds(typical.seeds_for_margin)}; to "
        f"show equivalence as often, were there none, {_seeds(typical.seeds_for_equivalence)}."
    )


def _seeds(count: int | None) -> str:
    return "more seeds than can be had" if count is None else f"{count} seeds"
