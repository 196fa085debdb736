"""Two arms on the same items: which runs and items are in both, as a table of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaptive_lora.errors import UsageError
from adaptive_lora.foreign.scores import Item, Question, Run
from adaptive_lora.stats.crossed import PairedTable, clustered, of_seed_means
from adaptive_lora.stats.estimators import Floats

LEAST_IN_COMMON = 0.5
"""Share of all items that both arms must have, unless the user asks for what is in common."""


@dataclass(frozen=True)
class Paired:
    """An arm beside the baseline on one question."""

    arm: str
    question: Question
    table: PairedTable
    """Arm less baseline in the metric's own unit, items of one cluster as one."""
    means: tuple[float, float]
    """Of the arm and of the baseline, over what both have."""
    runs: tuple[int, int]
    """Of the arm and of the baseline."""
    items: int | None = None
    """In common; None where only means are known."""
    all_items: int | None = None
    """In either."""
    counts: tuple[int, int, int] | None = None
    """Items on which the arm scores higher, lower and the same, over its runs together."""
    binary: bool = False
    """Whether every score is 0 or 1 for a whole item."""
    notes: tuple[str, ...] = ()
    """What a reader should know, in words."""


def pair(question: Question, arm: Sequence[Run], baseline: Sequence[Run], common: bool = False) -> Paired:
    """Runs of one arm and of the baseline on the items that all of them have.

    UsageError where they share no seed, other items than half, or items that are not the same.
    """
    pairs, notes = _pairs(question, arm, baseline)
    notes += _other_settings(arm, baseline)
    found = Paired(arm[0].arm, question, _of_means(question, pairs), (0.0, 0.0), (len(arm), len(baseline)))
    if any(question not in run.items for own in pairs.values() for run in own):
        one, two = (np.mean([own[side].mean(question) for own in pairs.values()]) for side in (0, 1))
        return replace(found, means=(float(one), float(two)), notes=tuple(notes))
    return _by_item(replace(found, notes=tuple(notes)), baseline[0].arm, pairs, common)


def _of_means(question: Question, pairs: Mapping[int, tuple[Run, Run]]) -> PairedTable:
    return of_seed_means({seed: one.mean(question) - two.mean(question) for seed, (one, two) in pairs.items()})


def _by_item(found: Paired, baseline: str, pairs: Mapping[int, tuple[Run, Run]], common: bool) -> Paired:
    question, names = found.question, (found.arm, baseline)
    scores = [[run.items[question] for run in own] for own in pairs.values()]
    every = [items for own in scores for items in own]
    shared, total = _shared(question, names, every, common)
    notes = [*found.notes]
    if len(shared) < total:
        notes.append(f"paired on the {len(shared):,} items that all runs have, of {total:,}")
    notes += _checked(question, names, shared, every)
    one, two = (np.array([[own[side][r].value for r in shared] for own in scores]) for side in (0, 1))
    weights = np.array([every[0][r].weight for r in shared])
    summed = (one - two).sum(axis=0)
    return replace(
        found,
        table=_by_cluster(PairedTable((one - two) * weights, weights, tuple(pairs)), shared, every[0]),
        means=(_mean(one, weights), _mean(two, weights)),
        items=len(shared),
        all_items=total,
        counts=(int((summed > 0).sum()), int((summed < 0).sum()), int((summed == 0).sum())),
        binary=bool((weights == 1).all() and np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all()),
        notes=tuple(notes),
    )


def _pairs(
    question: Question, arm: Sequence[Run], baseline: Sequence[Run]
) -> tuple[dict[int, tuple[Run, Run]], list[str]]:
    """Seed -> the two runs; one run beside several is paired with each of them."""
    if len(arm) == 1 or len(baseline) == 1:
        notes = []
        if len(arm) != len(baseline):
            single = (arm if len(arm) == 1 else baseline)[0].arm
            notes = [
                f"{single} has one run, which stands beside every run of the other: its own chance is not resampled"
            ]
        most = max(len(arm), len(baseline))
        ones, twos = (list(own) * (most if len(own) == 1 else 1) for own in (arm, baseline))
        return dict(enumerate(zip(ones, twos, strict=True), 1)), notes
    by_seed = {run.seed: run for run in baseline}
    found = {int(run.seed or 0): (run, by_seed[run.seed]) for run in arm if run.seed in by_seed}
    if not found:
        raise UsageError(
            f"{question.name}: no seed of {arm[0].arm!r} ({_seeds(arm)}) is one of {baseline[0].arm!r}'s "
            f"({_seeds(baseline)}). Give both the same seeds, or none, and runs are paired in their order."
        )
    left = len(arm) + len(baseline) - 2 * len(found)
    return found, [f"left out {left} runs whose seed the other arm does not have"] if left else []


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _shared(
    question: Question, names: tuple[str, str], every: Sequence[Mapping[str, Item]], common: bool
) -> tuple[list[str], int]:
    """(items of all runs, how many there are in any)."""
    shared = [r for r in every[0] if all(r in items for items in every[1:])]
    total = len(set().union(*every))
    if not shared or (len(shared) < LEAST_IN_COMMON * total and not common):
        remedy = "" if not shared else " Judge those alone with --common."
        raise UsageError(
            f"{question.name}: {names[0]!r} and {names[1]!r} have {len(shared):,} of {total:,} items in common.{remedy}"
        )
    return shared, total


def _checked(
    question: Question, names: tuple[str, str], shared: Sequence[str], every: Sequence[Mapping[str, Item]]
) -> list[str]:
    """Notes on prompts; UsageError for items of one name that are not the same, or do not weigh the same."""
    first, asked = every[0], 0
    for record in shared:
        own = [items[record] for items in every]
        if len({item.content for item in own}) > 1:
            raise UsageError(
                f"{question.name}: item {record} is not the same text in {names[0]!r} and {names[1]!r} "
                "(its hash differs): they were run on other data."
            )
        if any(abs(item.weight - first[record].weight) > 1e-9 * first[record].weight for item in own):
            raise UsageError(
                f"{question.name}: item {record} has {own[0].weight:g} tokens in one run and "
                f"{next(i.weight for i in own if i.weight != own[0].weight):g} in another. Losses per token of two "
                "tokenizers are not comparable; per word or per byte they are."
            )
        asked += len({item.prompt for item in own}) > 1
    return [f"{asked:,} of {len(shared):,} items were asked with other prompts"] if asked else []


def _other_settings(arm: Sequence[Run], baseline: Sequence[Run]) -> list[str]:
    one, two = arm[0].settings, baseline[0].settings
    other = [f"{key} ({one[key]}, {two[key]})" for key in one if key in two and one[key] != two[key]]
    return [f"run with other settings than the baseline: {', '.join(other)}"] if other else []


def _by_cluster(table: PairedTable, shared: Sequence[str], items: Mapping[str, Item]) -> PairedTable:
    names = [("cluster", items[r].cluster) if items[r].cluster else ("item", r) for r in shared]
    return clustered(table, names) if len(set(names)) < len(names) else table


def _mean(values: Floats, weights: Floats) -> float:
    return float((values * weights).sum() / (len(values) * weights.sum()))
