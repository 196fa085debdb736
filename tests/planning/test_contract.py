"""The contract can fail: a deliberately wrong strategy for every rule."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import find_strategy
from adaptive_lora.planning.strategies.base import Strategy
from adaptive_lora.planning.strategies.contract import RULES, check_strategy

Ranks = dict[str, int]
Allocate = Callable[[Sequence[ModuleShape], Mapping[str, Any], int, Any], Ranks]
GOOD = find_strategy("empirical")
CALLS = itertools.count(1)


class Lenient(BaseModel):
    """Options that take anything."""

    min_rank: int = 1
    max_rank: int | None = None
    importance: str = "weight-gradient"
    power: float = 1.0


def over_budget(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    ranks = GOOD.allocate(modules, scores, budget, options)
    return {name: rank + (name == min(ranks)) for name, rank in ranks.items()}


def stingy(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    return GOOD.allocate(modules, scores, 5_000 if budget > 100_000 else budget, options)


def generous(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    least = sum(m.params_per_rank for m in modules)
    return GOOD.allocate(modules, scores, max(budget, least), options)


def unbounded(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    return GOOD.allocate(modules, scores, budget, options.model_copy(update={"min_rank": 1, "max_rank": None}))


def forgetful(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    first = sorted(m.name for m in modules)[next(CALLS) % 3]
    return spend(modules, {m.name: 9.0 if m.name == first else 1.0 for m in modules}, budget)


def first_come(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    return spend(modules, {m.name: 1.0 / (1 + i) for i, m in enumerate(modules)}, budget)


def meddling(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    ranks = GOOD.allocate(modules, scores, budget, options)
    scores["weight-gradient"].clear()
    return ranks


def in_units(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    return spend(modules, {m.name: 1.0 + scores["weight-gradient"][m.name] for m in modules}, budget)


def dividing(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    own = scores["weight-gradient"]
    return spend(modules, {m.name: own[m.name] / sum(own.values()) for m in modules}, budget)


def leaving_out(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    attention = [m for m in modules if m.kind == "attention"]
    ranks = spend(attention, {m.name: 1.0 for m in attention}, budget)
    return {m.name: ranks.get(m.name, 0) for m in modules}


def unbent(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
    return GOOD.allocate(modules, scores, budget, options.model_copy(update={"power": 1.0}))


WRONG: dict[str, Strategy] = {
    "budget": replace(GOOD, allocate=over_budget),
    "ceiling": replace(GOOD, allocate=stingy),
    "floor": replace(GOOD, allocate=generous),
    "bounds": replace(GOOD, allocate=unbounded),
    "repeatable": replace(GOOD, allocate=forgetful),
    "order": replace(GOOD, allocate=first_come),
    "inputs": replace(GOOD, allocate=meddling),
    "scale": replace(GOOD, allocate=in_units),
    "zeros": replace(GOOD, allocate=dividing),
    "power": replace(GOOD, allocate=unbent),
    "options": replace(GOOD, options=Lenient),  # type: ignore[arg-type]
    "seed": replace(GOOD, chance=True),
    "left out": replace(GOOD, allocate=leaving_out),
    "documented": replace(GOOD, summary=" "),
}


@functools.cache
def came_of(rule: str) -> dict[str, str | None]:
    """Rule -> what came, of the strategy that breaks one of them."""
    return {finding.rule: finding.came for finding in check_strategy(WRONG[rule])}


@pytest.mark.parametrize("rule", RULES)
def test_a_strategy_that_breaks_a_rule_is_caught_by_it(rule: str) -> None:
    assert came_of(rule)[rule]
    assert rule == "documented" or came_of(rule)["documented"] is None  # not everything fails at once


@pytest.mark.parametrize(
    ("rule", "came"),
    [
        ("budget", "4 modules, budget 176: ranks that cost 236 where whole ranks can cost 176"),
        ("ceiling", "rank 7 for layers.0.self_attn.v_proj, which holds 8"),
        ("floor", "ranks that cost 704 on a budget of 703"),
        ("scale", "layers.0.self_attn.q_proj has rank 6, and 4 with all scores times 9.53674e-07"),
        ("zeros", "ZeroDivisionError: float division by zero"),
        ("options", "{'no-such-option': 1} was accepted"),
        ("seed", "chance=True and no option `seed`"),
        ("inputs", "the scores were changed"),
    ],
)
def test_the_findings_say_what_came(rule: str, came: str) -> None:
    assert came_of(rule)[rule] == came


def test_a_drawn_strategy_whose_draws_are_all_alike_is_caught() -> None:
    random = find_strategy("random")

    def stuck(modules: Any, scores: Any, budget: int, options: Any) -> Ranks:
        return random.allocate(modules, scores, budget, options.model_copy(update={"seed": 0}))

    came = {f.rule: f.came for f in check_strategy(replace(random, allocate=stuck))}
    assert came.pop("seed") == "the same ranks for four seeds" and not any(came.values())
