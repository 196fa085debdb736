"""`marginal-gain`: where short runs agree, and how much the loss gains by it.

Several adapters of one plan, each with its own draw of A and its own order of the data, are trained side by side in
one bank. Over pairs of runs i ≠ j, for the update ΔW_i = s B_i A_i of one module of rank r,

    a = mean ⟨ΔW_i, ΔW_j⟩ / mean ‖ΔW_i‖²   the share of a run's update that the others confirm
    L = mean ⟨F^½ ΔW_i C^½, F^½ ΔW_j C^½⟩  what they share, as the loss feels it (C = E[x xᵀ], F = E[g gᵀ] on the
                                           frozen model: Kronecker-factored curvature, arXiv 1503.05671)
    w = a √(L / r)                         what the module wants of rank

both of which chance leaves at mean 0. Under Adam every entry moves about as far whether it learns or not, so that the
size of one run's update says little; and one gradient of the frozen model does not see which of many modules will take
an update on. The first round trains uniform plans, the next ones the plan that the round before has made: where rank
has gone, the update can concentrate. The plans of all rounds are then raced against uniform from one beginning, and
judged on records that none of them has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import (
    GroupResult,
    MeasureGroup,
    MeasurementResult,
    Tick,
    calibration_facts,
    no_tick,
)
from adaptive_lora.measures.hooks import hooked
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
from adaptive_lora.training.batches import collate, sequence_losses
from adaptive_lora.training.evaluate import Evaluation

HELD_BACK = (0.15, 64)
"""Share of the training records that judges the race, and at most how many."""
CERTAIN = 2.0
"""Standard errors, over held-back records, by which a plan must beat uniform."""

Gains = Mapping[str, float]
"""w of each module."""


@dataclass(frozen=True)
class Agreement:
    """What runs share in one module; at least 0."""

    confirmed: float
    """a"""
    felt: float
    """L, up to a factor common to all modules."""
    rank: int

    @property
    def wanted(self) -> float:
        """w = a √(L / r)"""
        return self.confirmed * math.sqrt(self.felt / self.rank)


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
        weights = iter(train_short_runs(active[0].short, members, _offset(tick, steps * done, total)))
        for search in active:
            search.finish_round([next(weights) for _ in search.seeds])
            tick(steps * (done + 1), total)
    races = iter(_race([s for s in searches if s.error is None and s.judges], _offset(tick, steps * rounds, total)))
    return [s.error or s.result(next(races) if s.judges else []) for s in searches]


def _offset(tick: Tick, before: int, total: int) -> Tick:
    return lambda step, _: tick(before + step, total)


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


def agreements(
    short: ShortRun, plan: RankPlan, runs: Sequence[Weights], batches: Sequence[Sequence[Example]]
) -> dict[str, Agreement]:
    """Module -> what several trained runs of a plan share."""
    felt = _felt(short, runs, batches)
    found = {}
    for m in short.modules:
        own, square = [run[m.name] for run in runs], plan.scaling_of(m.name) ** 2
        pairs = [inner(one, other) for one, other in combinations(own, 2)]
        shared, size = sum(pairs) / len(pairs), sum(inner(w, w) for w in own) / len(own)
        confirmed = max(0.0, shared / size) if size else 0.0
        found[m.name] = Agreement(confirmed, square * max(0.0, felt[m.name]), plan.ranks[m.name])
    return found


def held_back(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Judges of the race, and the rest."""
    share, most = HELD_BACK
    count = max(1, min(most, round(share * len(examples))))
    order = numpy_stream(seed, "calibration", "held-back").permutation(len(examples))
    chosen = set(order[:count].tolist())
    judges = [e for i, e in enumerate(examples) if i in chosen]
    return judges, [e for i, e in enumerate(examples) if i not in chosen] or list(examples)


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """⟨B1 A1, B2 A2⟩ = Σ (B1ᵀ B2) ⊙ (A1 A2ᵀ), in float64, without making either product."""
    (a1, b1), (a2, b2) = ((a.double(), b.double()) for a, b in (one, other))
    return float(((b1.t() @ b2) * (a1 @ a2.t())).sum())


class _Moments:
    """Σ u uᵀ and Σ h hᵀ with u = A x and h = Bᵀ g of all runs at once, (runs · r, runs · r) a module."""

    def __init__(self, runs: Sequence[Weights], device: torch.device) -> None:
        names = runs[0].keys()
        self.a = {name: torch.cat([run[name][0] for run in runs]).to(device) for name in names}
        self.b = {name: torch.cat([run[name][1] for run in runs], 1).to(device) for name in names}
        self.inputs = {name: torch.zeros(len(a), len(a), dtype=torch.float64) for name, a in self.a.items()}
        self.gradients = {name: torch.zeros_like(moment) for name, moment in self.inputs.items()}

        self.real = torch.empty(0, dtype=torch.bool)
        """Of the batch, which positions are no padding (n,)."""

    def on_input(self, name: str, x: Tensor) -> None:
        """See `hooks.Listener`."""

    def on_gradient(self, name: str, x: Tensor, g: Tensor) -> None:
        """See `hooks.Listener`."""
        a, b = self.a[name], self.b[name]
        u, h = x.to(a.dtype) @ a.t(), g.to(b.dtype) @ b
        if len(u) == len(self.real):  # else those that a router sent here
            u = u[self.real]
        self.inputs[name] += (u.t() @ u).double().cpu()
        self.gradients[name] += (h.t() @ h).double().cpu()

    def on_complete(self, name: str) -> None:
        """See `hooks.Listener`."""


def _felt(short: ShortRun, runs: Sequence[Weights], batches: Sequence[Sequence[Example]]) -> dict[str, float]:
    """L of every module, before scaling: tr(ΔW_iᵀ F ΔW_j C) = Σ (B_iᵀ F B_j) ⊙ (A_i C A_jᵀ)."""
    moments = _Moments(runs, short.base.device)
    with hooked(short.base, moments.a, moments, backward=True) as hooks:
        for examples in batches:
            batch = collate(list(examples)).to(short.base.device)
            moments.real = batch.attention_mask.bool().flatten()
            with hooks.batch(batch.attention_mask.bool()), torch.enable_grad():
                logits = short.base.model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
                sequence_losses(logits, batch.labels).nll.sum().backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, inputs in moments.inputs.items():
        rank = len(inputs) // len(runs)
        both = (inputs * moments.gradients[name]).reshape(len(runs), rank, len(runs), rank).sum((1, 3))  # (runs, runs)
        pairs = [float(both[i, j]) for i, j in combinations(range(len(runs)), 2)]
        found[name] = sum(pairs) / len(pairs)
    return found


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
