"""What every strategy keeps to, checked on made-up networks and scores: `adaptive-lora check-strategy`."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.errors import BudgetError, StrategyError
from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, kind_of, total_cost
from adaptive_lora.planning.strategies.base import Strategy, bends_weights, check_options
from adaptive_lora.planning.strategies.transforms import ShuffledOptions
from adaptive_lora.streams import numpy_stream

PER_BLOCK = {
    "self_attn.q_proj": (16, 16),
    "self_attn.v_proj": (16, 8),
    "mlp.up_proj": (16, 44),
    "mlp.down_proj": (44, 16),
}
"""Modules of a block of the made-up networks: (d_in, d_out)."""
SPECTRA = frozenset(
    {"input-spectrum", "update-spectrum", "update-spectrum-on-inputs", "update-spectrum-on-loss", "loss-attribution"}
)
"""Measures that give a descending sequence for each module; all others give a number."""

Ranks = dict[str, int]
Check = Callable[[Strategy], Iterator[str]]
"""What came instead of what is asked, once for every case that breaks the rule."""


@dataclass(frozen=True)
class Finding:
    """One rule and how a strategy keeps to it."""

    rule: str
    asked: str
    came: str | None
    """What came instead, of the first case that breaks the rule; None where none does."""


def check_strategy(strategy: Strategy) -> list[Finding]:
    """Every rule of the contract, tried on a strategy with its default options."""
    return [Finding(rule, asked, _first(check, strategy)) for rule, (asked, check) in RULES.items()]


def _first(check: Check, strategy: Strategy) -> str | None:
    try:
        return next(check(strategy), None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def network(blocks: int) -> list[ModuleShape]:
    """A made-up network of attention and MLP modules of four sizes."""
    names = [(f"layers.{block}.{role}", block, size) for block in range(blocks) for role, size in PER_BLOCK.items()]
    return [ModuleShape(name, kind_of(name), block, *size) for name, block, size in names]


def scores_for(strategy: Strategy, modules: Sequence[ModuleShape], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Made-up scores of the measures that a strategy needs."""

    def score(need: str, name: str) -> float | tuple[float, ...]:
        rng = numpy_stream(seed, "contract", need, name)
        drawn = sorted(rng.lognormal(size=8).tolist(), reverse=True)
        return tuple(v / sum(drawn) for v in drawn) if need in SPECTRA else drawn[0]

    return {need: {m.name: score(need, m.name) for m in modules} for need in strategy.needs(strategy.options())}


def most_spendable(modules: Sequence[ModuleShape], budget: int) -> int:
    """The largest cost up to `budget` that any whole ranks from 1 to what each module can hold have."""
    sums = 1  # bit n: some ranks cost n
    for m in modules:
        sums = functools.reduce(operator.or_, (sums << m.params_per_rank * r for r in range(1, m.largest_rank + 1)))
    return (sums & ((1 << budget + 1) - 1)).bit_length() - 1


def budget_complaints(strategy: Strategy, modules: Sequence[ModuleShape], budget: int, seed: int = 0) -> Iterator[str]:
    """What is wrong with a strategy's ranks on one network and budget: names, bounds, cost."""
    scores = scores_for(strategy, modules, seed)
    ranks = _ranks(strategy, modules, budget, scores)
    if ranks is None:
        return
    where = f"{len(modules)} modules, budget {budget:,}"
    covered = strategy.covered(modules, scores, budget)
    if ranks.keys() != {m.name for m in modules}:
        yield f"{where}: ranks for {len(ranks)} names that are not the modules"
    elif bad := [f"{m.name}: {ranks[m.name]!r}" for m in covered if not _is_rank(ranks[m.name], 1, m.largest_rank)]:
        yield f"{where}: {bad[0]}"
    elif (cost := total_cost(modules, ranks)) != (most := most_spendable(covered, budget)):
        yield f"{where}: ranks that cost {cost:,} where whole ranks can cost {most:,}"


def _ranks(
    strategy: Strategy, modules: Sequence[ModuleShape], budget: int, scores: Mapping[str, Any], **options: Any
) -> Ranks | None:
    """The ranks; None where `shuffled` refuses a plan that it cannot change."""
    try:
        return strategy.allocate(modules, scores, budget, check_options(strategy, options))
    except StrategyError:
        if issubclass(strategy.options, ShuffledOptions):
            return None
        raise


def _is_rank(rank: object, least: int, most: int) -> bool:
    return type(rank) is int and least <= rank <= most


def _usual(strategy: Strategy, blocks: int = 4) -> tuple[list[ModuleShape], int, dict[str, dict[str, Any]]]:
    modules = network(blocks)
    return modules, resolve_budget("rank:4", modules).parameters, scores_for(strategy, modules)


def _budget(strategy: Strategy) -> Iterator[str]:
    for blocks, rank, seed in ((1, 1, 0), (1, 8, 1), (2, 3, 2), (3, 1, 3), (4, 5, 4), (6, 2, 5), (6, 8, 6)):
        modules = network(blocks)
        budget = resolve_budget(f"rank:{rank}", modules).parameters
        for more in (0, 1, 29, 333):
            yield from budget_complaints(strategy, modules, budget + more, seed)


def _ceiling(strategy: Strategy) -> Iterator[str]:
    modules, _, scores = _usual(strategy, 2)
    ranks = _ranks(strategy, modules, 10**6, scores) or {}
    for m in strategy.covered(modules, scores, 10**6):
        if ranks and ranks.get(m.name) != m.largest_rank:
            yield f"rank {ranks.get(m.name)} for {m.name}, which holds {m.largest_rank}"


def _floor(strategy: Strategy) -> Iterator[str]:
    modules, _, scores = _usual(strategy)
    least = sum(m.params_per_rank for m in strategy.covered(modules, scores))
    try:
        ranks = strategy.allocate(modules, scores, least - 1, strategy.options())
    except BudgetError:
        return
    yield f"ranks that cost {total_cost(modules, ranks):,} on a budget of {least - 1:,}"


def _bounds(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    bounds = {"min_rank": 2, "max_rank": 7}
    ranks = _ranks(strategy, modules, budget, scores, **bounds) or {}
    for m in strategy.covered(modules, scores, budget, check_options(strategy, bounds)):
        if ranks and not _is_rank(ranks.get(m.name), 2, 7):
            yield f"min_rank 2 and max_rank 7: {m.name} has {ranks.get(m.name)!r}"


def _repeatable(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    first = strategy.allocate(modules, scores, budget, strategy.options())
    other, less, others = _usual(strategy, 3)
    _ranks(strategy, other, less, others)  # what it might remember
    yield from _differences(first, strategy.allocate(modules, scores, budget, strategy.options()), "the second time")


def _order(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    turned = {need: dict(reversed(own.items())) for need, own in scores.items()}
    first = strategy.allocate(modules, scores, budget, strategy.options())
    again = strategy.allocate(modules[::-1], turned, budget, strategy.options())
    yield from _differences(first, again, "with the modules in reverse")


def _inputs(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    before = copy.deepcopy((modules, scores))
    strategy.allocate(modules, scores, budget, strategy.options())
    for name, was, is_ in zip(("modules", "scores"), before, (modules, scores), strict=True):
        if was != is_:
            yield f"the {name} were changed"


def _scale(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    first = strategy.allocate(modules, scores, budget, strategy.options())
    for factor in (2.0**-20, 2.0**20):  # powers of two scale exactly
        scaled = {need: {name: _times(value, factor) for name, value in own.items()} for need, own in scores.items()}
        again = strategy.allocate(modules, scaled, budget, strategy.options())
        yield from _differences(first, again, f"with all scores times {factor:g}")


def _zeros(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    nil = {need: {name: _times(value, 0.0) for name, value in own.items()} for need, own in scores.items()}
    ranks = _ranks(strategy, modules, budget, nil)
    if ranks is not None and total_cost(modules, ranks) != most_spendable(
        strategy.covered(modules, nil, budget), budget
    ):
        yield f"ranks that cost {total_cost(modules, ranks):,} of {budget:,}"


def _power(strategy: Strategy) -> Iterator[str]:
    if not bends_weights(strategy.options):
        return
    modules, budget, scores = _usual(strategy)
    covered = strategy.covered(modules, scores, budget)
    first = strategy.allocate(modules, scores, budget, check_options(strategy, {"power": 1}))
    yield from _differences(first, strategy.allocate(modules, scores, budget, strategy.options()), "without `power` 1")
    uniform = spend(covered, {m.name: 1.0 for m in covered}, budget)
    flat = strategy.allocate(modules, scores, budget, check_options(strategy, {"power": 0}))
    yield from _differences(uniform, flat, "with `power` 0")


def _options(strategy: Strategy) -> Iterator[str]:
    check_options(strategy, {"min_rank": 3, "max_rank": "3"})
    for wrong in ({"no-such-option": 1}, {"min_rank": 4, "max_rank": 3}, {"min_rank": 0}):
        try:
            check_options(strategy, wrong)
        except StrategyError:
            continue
        yield f"{wrong} was accepted"


def _seed(strategy: Strategy) -> Iterator[str]:
    if strategy.chance != ("seed" in strategy.options.model_fields):
        yield f"chance={strategy.chance} and {'an' if not strategy.chance else 'no'} option `seed`"
    elif strategy.chance:
        modules, budget, scores = _usual(strategy)
        drawn = [_ranks(strategy, modules, budget, scores, seed=seed) for seed in range(4)]
        if all(ranks == drawn[0] for ranks in drawn):
            yield "the same ranks for four seeds"


def _left_out(strategy: Strategy) -> Iterator[str]:
    modules, budget, scores = _usual(strategy)
    ranks = strategy.allocate(modules, scores, budget, strategy.options())
    covered = strategy.covered(modules, scores, budget)
    for m in modules:
        if (m in covered) != (ranks.get(m.name, 0) > 0):
            yield f"{'covered' if m in covered else 'not covered'}: {m.name} has rank {ranks.get(m.name)}"


def _documented(strategy: Strategy) -> Iterator[str]:
    for name in ("summary", "source"):
        if not getattr(strategy, name).strip():
            yield f"no {name}; the first line of the docstring is the summary" if name == "summary" else "no source"


def _differences(first: Ranks, again: Ranks, when: str) -> Iterator[str]:
    for name, rank in first.items():
        if again.get(name) != rank:
            yield f"{name} has rank {rank}, and {again.get(name)} {when}"


def _times(value: Any, factor: float) -> Any:
    return tuple(part * factor for part in value) if isinstance(value, Sequence) else value * factor


RULES: Mapping[str, tuple[str, Check]] = {
    "budget": ("the budget spent to the last parameter that whole ranks can reach, and never more", _budget),
    "ceiling": ("all that each module can hold where the budget pays for more", _ceiling),
    "floor": ("a BudgetError below the least rank everywhere", _floor),
    "bounds": ("ranks between the options min_rank and max_rank", _bounds),
    "repeatable": ("the same ranks every time", _repeatable),
    "order": ("the same ranks for modules in any order", _order),
    "inputs": ("modules and scores left as they are", _inputs),
    "scale": ("the same ranks in whatever unit a measure is", _scale),
    "zeros": ("a plan on budget where every score is 0", _zeros),
    "power": ("where it measures: uniform ranks with the option `power` 0, its own with 1", _power),
    "options": ("unknown options and impossible bounds refused", _options),
    "seed": ("an option `seed` where the plan is drawn, and only there", _seed),
    "left out": ("rank 0 for modules that it does not cover, and only for them", _left_out),
    "documented": ("a summary and a source", _documented),
}
"""Rule -> what is asked, and the check."""
