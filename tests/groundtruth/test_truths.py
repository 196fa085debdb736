"""The patterns: what they leave out, what they cost, what chance has to do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from adaptive_lora.groundtruth.truths import TRUTHS, truth_ranks
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.stats.recovery import CONCENTRATED
from adaptive_lora.training.base import FrozenBase

BUDGETS = (1500, 2304, 3001)
BY_CHANCE = ("two-blocks", "few-modules")


def largest_sum(modules: Sequence[ModuleShape], budget: int) -> int:
    """The most that ranks from 1 to the cap can cost within the budget, by trying them all."""
    sums = {0}
    for m in modules:
        sums = {s + r * m.params_per_rank for s in sums for r in range(1, m.largest_rank + 1)}
        sums = {s for s in sums if s <= budget}
    return max(sums)


@pytest.mark.parametrize("truth", TRUTHS)
def test_every_pattern_costs_the_budget_as_far_as_integers_allow(base: FrozenBase, truth: str) -> None:
    modules = base.outline.modules
    for budget in BUDGETS:
        ranks = truth_ranks(truth, modules, budget, seed=5)
        assert list(ranks) == [m.name for m in modules]
        planted = [m for m in modules if ranks[m.name]]
        cost = sum(m.params_per_rank * ranks[m.name] for m in planted)
        assert cost == largest_sum(planted, budget)


def _last_two(m: ModuleShape, depths: Sequence[int]) -> bool:
    return ".mlp." in m.name and m.depth in depths[-2:]


NAMED: Mapping[str, Callable[[ModuleShape, Sequence[int]], bool]] = {
    "last-mlp": _last_two,
    "attention-only": lambda m, depths: "attn" in m.name,
    "mlp-only": lambda m, depths: ".mlp." in m.name,
    "growing": lambda m, depths: m.depth > 0,
    "uniform": lambda m, depths: True,
}


@pytest.mark.parametrize("truth", NAMED)
def test_zeros_stand_exactly_where_the_pattern_says(base: FrozenBase, truth: str) -> None:
    modules = base.outline.modules
    ranks = truth_ranks(truth, modules, 2304, seed=0)
    assert {n for n, r in ranks.items() if r} == {m.name for m in modules if NAMED[truth](m, (0, 1, 2))}
    assert ranks == truth_ranks(truth, modules, 2304, seed=1)  # chance has no part in it


def test_every_pattern_is_tested() -> None:
    assert {*NAMED, *BY_CHANCE} == set(TRUTHS)
    assert set(CONCENTRATED) == {*BY_CHANCE, "last-mlp"}


def test_two_blocks_are_whole_blocks(base: FrozenBase) -> None:
    modules = base.outline.modules
    drawn = set()
    for seed in range(8):
        ranks = truth_ranks("two-blocks", modules, 2304, seed)
        blocks = {m.depth for m in modules if ranks[m.name]}
        assert len(blocks) == 2
        assert all(bool(ranks[m.name]) == (m.depth in blocks) for m in modules)
        drawn.add(frozenset(blocks))
    assert len(drawn) == 3  # all pairs of three blocks


def test_few_modules_are_one_in_six(base: FrozenBase) -> None:
    modules = base.outline.modules
    drawn = set()
    for seed in range(8):
        chosen = frozenset(n for n, r in truth_ranks("few-modules", modules, 1000, seed).items() if r)
        assert len(chosen) == {12: 2, 21: 4}[len(modules)]
        drawn.add(chosen)
    assert len(drawn) > 5
    assert len(frozenset().union(*drawn)) > len(modules) / 2


@pytest.mark.parametrize("truth", BY_CHANCE)
def test_chance_comes_from_the_seed_and_the_order_of_modules_does_not_matter(base: FrozenBase, truth: str) -> None:
    modules = base.outline.modules
    assert truth_ranks(truth, modules, 2304, 3) == truth_ranks(truth, modules[::-1], 2304, 3)
    assert len({tuple(truth_ranks(truth, modules, 2304, seed).values()) for seed in range(8)}) > 2


def test_growing_follows_the_square_of_the_depth(base: FrozenBase) -> None:
    modules = base.outline.modules
    of_a_block = sum(m.params_per_rank for m in modules if m.depth == 0)
    ranks = truth_ranks("growing", modules, 10 * of_a_block, seed=0)
    assert all(ranks[m.name] == {0: 0, 1: 2, 2: 8}[m.depth] for m in modules)


def test_uniform_is_uniform(base: FrozenBase) -> None:
    modules = base.outline.modules
    assert set(truth_ranks("uniform", modules, 2 * sum(m.params_per_rank for m in modules), 0).values()) == {2}
