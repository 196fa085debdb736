"""`random-search`: plans drawn by chance, trained as planned and compared on records that none of them has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.groups import GroupResult, MeasureGroup, MeasurementResult, Tick, no_tick
from adaptive_lora.measures.marginal_gain import held_back
from adaptive_lora.measures.request import Measurement, Request
from adaptive_lora.measures.short_run import INPUTS, ShortRun, short_run_of, train_in_banks
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import chance
from adaptive_lora.planning.strategies.base import SearchOptions
from adaptive_lora.streams import derive_seed
from adaptive_lora.training.bank import Bank


@dataclass(frozen=True)
class Candidates:
    """The plans of one search, and what they are trained and compared on."""

    short: ShortRun
    plans: tuple[RankPlan, ...]
    judges: Sequence[Example]

    @property
    def seed(self) -> int:
        """Of all runs: they differ in their ranks alone."""
        return derive_seed(self.short.seed, "calibration", "search")


def candidates(request: Request) -> Candidates:
    """What a request asks for: so many draws, each from a stream of its own."""
    options = request.options if isinstance(request.options, SearchOptions) else SearchOptions()
    judges, rest = held_back(request.examples, request.seed)
    short = short_run_of(replace(request, examples=rest), request.budget)
    plans = []
    for draw in range(options.draws):
        seed = derive_seed(request.seed, "calibration", "search", draw)
        own = chance.Options(concentration=options.concentration, seed=seed,
                             min_rank=options.min_rank, max_rank=options.max_rank)  # fmt: skip
        ranks = chance.allocate(request.modules, {}, request.budget, own)
        plans.append(replace(short.plan(), strategy="random", ranks=ranks))
    return Candidates(short, tuple(plans), judges)


def searched(searches: Sequence[Candidates], tick: Tick = no_tick) -> list[MeasurementResult | TrainingError]:
    """The ranks of the best plan of every search, by its loss on the held-back records; all runs in one bank."""
    entries = [(search, search.short.member(search.seed, plan)) for search in searches for plan in search.plans]

    def judge(bank: Bank, i: int, k: int) -> float | None:
        slot = bank.slots[i]
        (found,) = bank.evaluate(entries[k][0].judges, members=[i])
        return found.loss if slot.step == slot.member.options.steps else None

    losses = iter(train_in_banks(searches[0].short, [member for _, member in entries], judge, tick))
    return [_best(search, [next(losses) for _ in search.plans]) for search in searches]


def _best(search: Candidates, losses: Sequence[float | None]) -> MeasurementResult | TrainingError:
    finished = [(loss, at) for at, loss in enumerate(losses) if loss is not None]
    if not finished:
        return TrainingError(
            f"All {len(losses)} plans of the search diverged, so none is the best. Try a lower learning rate, or a "
            "lower `short_run_learning_rate` for these runs alone."
        )
    _, best = min(finished)
    facts: dict[str, Any] = search.short.facts([search.seed] * len(search.plans))
    facts |= {"search_losses": list(losses), "search_winner": best, "search_records": len(search.judges)}
    return MeasurementResult({name: float(rank) for name, rank in search.plans[best].ranks.items()}, facts)


def _take(measurements: Sequence[Measurement], tick: Tick) -> GroupResult:
    searches = [candidates(measurement.request) for measurement in measurements]
    runs = sum(len(search.plans) for search in searches)
    return GroupResult(searched(searches, tick), {"short_runs": runs}, 1 / len(searches))


GROUP = MeasureGroup(
    "random search",
    {"random-search": ("parameters", *INPUTS, "search")},
    _take,
    together=lambda measurement: "all",
    at_once=8,
)
