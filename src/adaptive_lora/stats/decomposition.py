"""What a difference is made of: what uneven ranks cost, and what it is worth to know where they go.

With a control whose ranks are an arm's own at places drawn by chance,

    arm - baseline = (control - baseline) + (arm - control)
                     price of unevenness    value of information

on the same seeds and records. Of losses, a price above zero is a cost and a value below zero a gain; where higher is
better it is the other way round. An arm that comes out like the
baseline may know much and pay for it. Both parts of all arms are one family, the second tier of a study: judged by the
rule and the looks of the first, at alpha, without a margin, so that nothing here is called equivalent.

Where an arm has no shuffle of its own, random ranks (the control `random`) stand in: uneven too, though not like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_lora.stats.crossed import crossed
from adaptive_lora.stats.divergence import diverged_pairs
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.evidence import Cell, StudyTables, rule_of
from adaptive_lora.stats.moderation import moderated
from adaptive_lora.stats.verdicts import Evidence, Judgement, Verdict, judge_family

NOT_MEASURED_BY_CHANCE = (
    "uniform", "random", "shuffled", "inverted", "attention-only", "mlp-only", "only", "last-blocks",
    "page-top-k", "kappa",
)  # fmt: skip
"""Strategies whose difference random ranks say nothing about: without a reason of their own, or leaving modules out."""


@dataclass(frozen=True)
class Part:
    """One of the two."""

    size: Interval
    """Over new seeds and new records, of all seeds that arm, control and baseline share: both sizes add up."""
    judged: Judgement
    """In the family of all parts, at the look that decided it."""

    @property
    def verdict(self) -> Verdict:
        """Whether it is shown to be a gain (better), a cost (worse), or neither."""
        return self.judged.verdict


@dataclass(frozen=True)
class Decomposition:
    """An arm's difference from the baseline in two parts."""

    arm: str
    budget: str
    control: str
    own: bool
    """Whether the control has the arm's own ranks at other places, and not other uneven ranks."""
    price: Part
    """Of unevenness: control less baseline."""
    value: Part
    """Of information: arm less control."""
    total: Interval
    """Arm less baseline, over the same seeds."""

    @property
    def decided(self) -> bool:
        """Whether either part is shown to be other than zero."""
        return any(part.verdict is not Verdict.UNDECIDED for part in (self.price, self.value))


@dataclass(frozen=True)
class _Triple:
    arm: Cell
    control: Cell
    base: Cell
    seeds: tuple[int, ...]
    """That all three have completed."""

    @property
    def price(self) -> _Pair:
        return self.control, self.base, self.seeds

    @property
    def value(self) -> _Pair:
        return self.arm, self.control, self.seeds

    @property
    def total(self) -> _Pair:
        return self.arm, self.base, self.seeds


_Pair = tuple[Cell, Cell, tuple[int, ...]]
"""First less second, on these seeds."""


def decompositions(tables: StudyTables, lock: Mapping[str, Any], spec: Mapping[str, Any]) -> list[Decomposition]:
    """One for each primary comparison that has a control to tell, by the lock and the study file."""
    shadows = shadows_of(lock["controls"], spec["arms"])
    found = []
    for part in lock["primary"]:
        arm, base = (part["arm"], part["budget"]), (spec["analysis"]["baseline"], part["budget"])
        control = _control_of(arm, tables, shadows, _by_chance(lock["controls"], spec["arms"]))
        if control is not None and (seeds := _shared(tables, arm, control, base)):
            found.append(_Triple(arm, control, base, seeds))
    # Random ranks may be the control of several arms: then their price is one comparison and counts once.
    pairs = dict.fromkeys(pair for triple in found for pair in (triple.price, triple.value))
    totals = dict.fromkeys(triple.total for triple in found)
    rule = replace(rule_of(spec), margin=None)
    family = {pair: _evidence(tables, pair) for pair in pairs}
    judged = judge_family(family, rule, [table for pair in totals if (table := _evidence(tables, pair).table)])
    sizes = _sizes(tables, [*pairs, *totals], 1 - rule.alpha)
    if tables.metric.higher_is_better:
        sizes, judged = {p: i.turned() for p, i in sizes.items()}, {p: j.turned() for p, j in judged.items()}
    return [
        Decomposition(
            *t.arm, t.control[0], t.control[0] in shadows, Part(sizes[t.price], judged[t.price]),
            Part(sizes[t.value], judged[t.value]), sizes[t.total],
        )
        for t in found
    ]  # fmt: skip


def shadows_of(controls: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Control -> the arm whose own ranks it has at other places, by the lock's `controls` and the study file's arms.

    The control `shuffled` has those of the first arm of its source.

    >>> arms = [{"name": "falling", "strategy": "linear-decay"}]
    >>> shadows_of({"arms": {"random": None, "shuffled": "linear-decay"}}, arms)
    {'shuffled': 'falling'}
    """
    named: dict[str, str] = dict(controls.get("shadows", {}))
    first: dict[str, str] = {}
    for arm in arms:
        first.setdefault(str(arm["strategy"]), arm["name"])
    plain = {name: first[source] for name, source in controls["arms"].items() if name not in named and source in first}
    return plain | named


def _by_chance(controls: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Arm that random ranks can be compared with -> the arms and controls that have such."""
    chance = [name for name, source in controls["arms"].items() if source is None]
    chance += [arm["name"] for arm in arms if arm["strategy"] == "random"]
    return {arm["name"]: chance for arm in arms if arm["strategy"] not in (None, *NOT_MEASURED_BY_CHANCE)}


def _control_of(
    arm: Cell, tables: StudyTables, shadows: Mapping[str, str], chance: Mapping[str, Sequence[str]]
) -> Cell | None:
    """The cell of its own shuffle, else of random ranks, at its budget."""
    own = [control for control, shadowed in shadows.items() if shadowed == arm[0]]
    cells = [(name, arm[1]) for name in (*own, *chance.get(arm[0], ()))]
    return next((cell for cell in cells if tables.finished(cell)), None)


def _shared(tables: StudyTables, arm: Cell, control: Cell, base: Cell) -> tuple[int, ...]:
    both = [tables.paired(arm, control), tables.paired(arm, base)]
    if any(table is None for table in both):
        return ()
    one, other = (table.seeds for table in both if table is not None)
    return tuple(seed for seed in one if seed in other)


def _evidence(tables: StudyTables, pair: _Pair) -> Evidence:
    first, second, seeds = pair
    table = tables.paired(first, second)
    return Evidence(
        table=None if table is None else table.of_seeds(seeds),
        diverged=diverged_pairs(tables.of(first), tables.of(second)),
        finished=tables.finished(first, second),
    )


def _sizes(tables: StudyTables, pairs: Sequence[_Pair], level: float) -> dict[_Pair, Interval]:
    found = [_evidence(tables, pair).table for pair in pairs]
    estimates = moderated([crossed(table) for table in found if table is not None])
    return {pair: estimate.interval(level) for pair, estimate in zip(pairs, estimates, strict=True)}
