"""`marginal-gain`: rounds of short runs, what they agree on, and a race between the plans that follow.

Several adapters of one plan are trained side by side in one bank, and `agreement` says what each module wants of rank.
The first round trains uniform plans, the next ones the plan that the round before has made: where rank has gone, the
update can concentrate. The plans of all rounds are then raced against uniform from one initialisation, and judged on
records that none of them has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.agreement import agreements
from adaptive_lora.measures.groups import (
    GroupResult,
    MeasureGroup,
    MeasurementResult,
    Tick,
    calibration_facts,
    no_tick,
    part_of,
)
from adaptive_lora.measures.request import Measurement
from adaptive_lora.measures.short_run import (
    INPUTS,
    ShortRun,
    Weights,
    first_error,
    short_run_of,
    train_in_banks,
    train_short_runs,
)
from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies.base import AgreementOptions
from adaptive_lora.streams import derive_seed, numpy_stream
from adaptive_lora.training.bank import Bank
from adaptive_lora.training.evaluate import Evaluation

HELD_BACK = (0.15, 64)
"""Share of the training records that judges the race, and at most how many."""
CERTAIN = 2.0
"""Standard errors, over held-back records, by which a plan must beat uniform."""

Gains = Mapping[str, float]
"""w of each module."""


@dataclass
class Search:
    """One measurement of marginal gains in progress: the plans and gains of its rounds so far."""

    short: ShortRun
    options: AgreementOptions
    batches: Sequence[Sequence[Example]]
    """Calibration batches."""
    judges: Sequence[Example]
    """Held-back records; none: no race."""
    plans: list[RankPlan] = field(default_factory=list)
    gains: list[Gains] = field(default_factory=list)
    """By which each of the plans was made."""
    error: TrainingError | None = None

    def __post_init__(self) -> None:
        self.plans.append(self.short.plan())
        self.gains.append({m.name: 1.0 for m in self.short.modules})

    @property
    def seeds(self) -> list[int]:
        """Of the runs of a round."""
        return [derive_seed(self.short.seed, "calibration", i) for i in range(self.options.runs)]

    @property
    def race_seed(self) -> int:
        """Of all plans in the race."""
        return derive_seed(self.short.seed, "calibration", "race")

    def finish_round(self, runs: Sequence[Weights | TrainingError]) -> None:
        """Makes the next plan from the runs of the newest one."""
        self.error = first_error(runs)
        if self.error is None:
            found = agreements(self.short, self.plans[-1], [run for run in runs if isinstance(run, Mapping)],
                               self.batches)  # fmt: skip
            self.gains.append({name: agreement.wanted for name, agreement in found.items()})
            self.plans.append(self.plan_by(self.gains[-1]))

    def result(self, race: Sequence[tuple[bool, Evaluation]]) -> tuple[Gains, dict[str, Any]]:
        """Gains by the winner of the race, or of the last round, and what was found on the way."""
        facts = self.short.facts(self.seeds)
        rounds = self.options.rounds
        facts |= {name: rounds * facts[name] for name in ("short_runs", "short_run_tokens")} | {"rounds": rounds}
        if not race:
            return self.gains[-1], facts
        winner = race_winner([found for _, found in race], [finished for finished, _ in race])
        names = ["uniform", *(f"round {i}" for i in range(1, len(self.plans)))]
        losses = {name: found.loss for name, (_, found) in zip(names, race, strict=True)}
        tokens = len(self.plans) * self.short.tokens(self.race_seed)
        return self.gains[winner], {**facts, "race_losses": losses, "race_winner": names[winner],
                                    "race_runs": len(race), "race_tokens": tokens}  # fmt: skip

    def plan_by(self, gains: Gains) -> RankPlan:
        """The plan by gains: uniform where all are 0."""
        if not any(gains.values()):
            return self.plans[0]
        plan, options = self.plans[0], self.options
        ranks = spend(plan.modules, gains, plan.trainable_parameters, options.min_rank, options.max_rank)
        return replace(plan, ranks=ranks)


def marginal_gains(
    searches: Sequence[Search], tick: Tick = no_tick
) -> list[tuple[Gains, dict[str, Any]] | TrainingError]:
    """Module -> gain, and facts, of every search; an error where a run of it diverged.

    The runs of a round of all searches are trained in one bank, and so are all races.
    """
    searches = list(searches)
    rounds = max(search.options.rounds for search in searches)
    steps = max(search.short.steps for search in searches)
    total = steps * (rounds + any(search.judges for search in searches))
    for done in range(rounds):
        active = [s for s in searches if s.error is None and done < s.options.rounds]
        if not active:
            break
        members = [s.short.member(seed, s.plans[-1]) for s in active for seed in s.seeds]
        weights = iter(train_short_runs(active[0].short, members, part_of(tick, steps * done, total)))
        for search in active:
            search.finish_round([next(weights) for _ in search.seeds])
            tick(steps * (done + 1), total)
    races = iter(_race([s for s in searches if s.error is None and s.judges], part_of(tick, steps * rounds, total)))
    return [s.error or s.result(next(races) if s.judges else []) for s in searches]


def _race(searches: Sequence[Search], tick: Tick) -> list[list[tuple[bool, Evaluation]]]:
    """Of every search's plans: whether training went to the end, and the judgement of the held-back records."""
    entries = [(search, search.short.member(search.race_seed, plan)) for search in searches for plan in search.plans]
    if not entries:
        return []

    def judge(bank: Bank, i: int, k: int) -> tuple[bool, Evaluation]:
        slot = bank.slots[i]
        (found,) = bank.evaluate(entries[k][0].judges, members=[i])
        return slot.step == slot.member.options.steps, found

    found = iter(train_in_banks(searches[0].short, [member for _, member in entries], judge, tick))
    return [[next(found) for _ in search.plans] for search in searches]


def race_winner(found: Sequence[Evaluation], finished: Sequence[bool]) -> int:
    """The best of the plans that beat the first one for certain; else the first.

    A plan whose run diverged (is not `finished`) cannot win.
    """
    best = 0
    for index, result in enumerate(found):
        difference = result.nll - found[0].nll
        error = difference.std(ddof=1) * np.sqrt(len(difference)) if len(difference) > 1 else math.inf
        certain = difference.sum() < -CERTAIN * error or not finished[0]
        if index and finished[index] and certain and (result.loss < found[best].loss or not finished[best]):
            best = index
    return best


def held_back(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Judges of the race, and the rest."""
    share, most = HELD_BACK
    count = max(1, min(most, round(share * len(examples))))
    order = numpy_stream(seed, "calibration", "held-back").permutation(len(examples))
    chosen = set(order[:count].tolist())
    judges = [e for i, e in enumerate(examples) if i in chosen]
    return judges, [e for i, e in enumerate(examples) if i not in chosen] or list(examples)


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    searches, facts = [], []
    for request in (measurement.request for measurement in measurements):
        options = request.agreement
        judges, rest = held_back(request.examples, request.seed) if options.race else ([], request.examples)
        request = replace(request, examples=rest)
        searches.append(Search(short_run_of(request, request.budget), options, request.batches, judges))
        facts.append(calibration_facts(request))
    results: list[MeasurementResult | Exception] = []
    for found, own in zip(marginal_gains(searches, tick), facts, strict=True):
        results.append(found if isinstance(found, Exception) else MeasurementResult(found[0], {**found[1], **own}))
    runs = sum(s.options.rounds * s.options.runs + (len(s.plans) if s.judges else 0) for s in searches)
    passes = sum(s.options.rounds for s in searches)
    return GroupResult(results, {"short_runs": runs, "gradient_passes": passes}, 1 / len(searches))


GROUP = MeasureGroup(
    "agreement of runs",
    {"marginal-gain": ("parameters", *INPUTS, "calibration", "rounds")},
    _take,
    together=lambda measurement: "all",
    at_once=8,
)
