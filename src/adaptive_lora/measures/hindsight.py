"""`loss-attribution`: rounds of over-ranked runs, and what each direction of a module is worth to them.

The first round trains uniform plans with several times the budget's parameters, the next ones as many parameters in
proportion to the ranks that the round before would give on the budget itself: where rank has gone, the update can
concentrate. Directions are valued on training records
that no run has seen (`attribution`), k-th by k-th averaged over the runs of a round.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.attribution import Trained, Values, attributed, descending
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, no_tick, part_of
from adaptive_lora.measures.marginal_gain import held_back
from adaptive_lora.measures.request import Measurement, Request
from adaptive_lora.measures.short_run import INPUTS, ShortRun, Weights, first_error, short_run_of, train_short_runs
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies.base import HindsightOptions
from adaptive_lora.planning.strategies.hindsight import cut
from adaptive_lora.streams import derive_seed

AT_ONCE = 4
"""Records of a backward pass that values directions."""


@dataclass
class Hindsight:
    """One measurement in progress: the newest plan, and what its runs were worth."""

    short: ShortRun
    options: HindsightOptions
    batches: Sequence[Sequence[Example]]
    """Records held back."""
    budget: int
    """Of the plan that is looked for; the runs have more."""
    plan: RankPlan = field(init=False)
    values: Values = field(default_factory=dict)
    error: TrainingError | None = None

    def __post_init__(self) -> None:
        self.plan = self.short.plan()

    @property
    def seeds(self) -> list[int]:
        """Of the runs of a round."""
        return [derive_seed(self.short.seed, "calibration", "fat", i) for i in range(self.options.runs)]

    def trained(self, runs: Sequence[Weights | TrainingError]) -> list[Trained]:
        """The runs of the newest plan, whose directions are to be valued; none where one of them diverged."""
        self.error = first_error(runs)
        return [Trained(self.plan, run, self.batches) for run in runs if isinstance(run, Mapping) and not self.error]

    def finish_round(self, found: Sequence[Values], last: bool) -> None:
        """Takes what directions were worth to the runs of the newest plan, and makes the next one from it."""
        self.values = {name: descending(_means([own[name] for own in found])) for name in self.plan.ranks}
        if not last and any(map(any, self.values.values())):
            modules, options = self.short.modules, self.options
            ranks = cut(modules, self.values, self.budget, options)
            wider = spend(modules, ranks, self.plan.trainable_parameters, options.min_rank, options.max_rank)
            self.plan = replace(self.plan, ranks=wider)

    def result(self) -> MeasurementResult:
        """The values of the last round, and what all rounds cost."""
        facts: dict[str, Any] = self.short.facts(self.seeds)
        rounds = self.options.rounds
        facts |= {name: rounds * facts[name] for name in ("short_runs", "short_run_tokens")} | {"rounds": rounds}
        return MeasurementResult(dict(self.values), {**facts, "valued_on": sum(map(len, self.batches))})


def _means(runs: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(runs) for values in zip(*runs, strict=True)]


def hindsight_of(request: Request) -> Hindsight:
    """What a request asks for."""
    judges, rest = held_back(request.examples, request.seed)
    judges.sort(key=lambda example: len(example.ids))  # less padding
    batches = [judges[at : at + AT_ONCE] for at in range(0, len(judges), AT_ONCE)]
    short = short_run_of(replace(request, examples=rest), round(request.hindsight.over_rank * request.budget))
    return Hindsight(short, request.hindsight, batches, request.budget)


def looked_back(searches: Sequence[Hindsight], tick: Tick = no_tick) -> list[MeasurementResult | TrainingError]:
    """The values of every search; an error where a run of it diverged. A round of all is trained in one bank."""
    rounds = max(search.options.rounds for search in searches)
    steps = max(search.short.steps for search in searches)
    for done in range(rounds):
        active = [s for s in searches if s.error is None and done < s.options.rounds]
        if not active:
            break
        members = [s.short.member(seed, s.plan) for s in active for seed in s.seeds]
        runs = iter(train_short_runs(active[0].short, members, part_of(tick, steps * done, steps * rounds)))
        trained = [search.trained([next(runs) for _ in search.seeds]) for search in active]
        beat = functools.partial(tick, steps * (done + 1), steps * rounds)
        found = iter(attributed(active[0].short, [run for own in trained for run in own], beat))
        for search, own in zip(active, trained, strict=True):
            if own:
                search.finish_round([next(found) for _ in own], done + 1 == search.options.rounds)
        beat()
    return [search.error or search.result() for search in searches]


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    searches = [hindsight_of(measurement.request) for measurement in measurements]
    runs = sum(search.options.rounds * search.options.runs for search in searches)
    return GroupResult(looked_back(searches, tick), {"short_runs": runs}, 1 / len(searches))


GROUP = MeasureGroup(
    "hindsight",
    {"loss-attribution": ("parameters", *INPUTS, "hindsight")},
    _take,
    together=lambda measurement: "all",
    at_once=8,
)
