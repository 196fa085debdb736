"""Budgets: never overspent, exact whenever integers allow, whatever the shapes and weights."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.errors import BudgetError
from adaptive_lora.planning import budget as planner
from adaptive_lora.planning.budget import _fewest_moves, leaves_no_choice, resolve_budget, spend
from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.planning.modules import ModuleShape, total_cost


def shape(name: str, d_in: int, d_out: int) -> ModuleShape:
    return ModuleShape(name, "mlp", 0, d_in, d_out)


def shapes_of(sizes: list[tuple[int, int]]) -> list[ModuleShape]:
    return [shape(f"m{i}", d_in, d_out) for i, (d_in, d_out) in enumerate(sizes)]


sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=7)
weights = st.lists(st.floats(0, 1e6, allow_nan=False) | st.just(0.0), min_size=7, max_size=7)


def reachable(modules: list[ModuleShape], low: int, cap: int | None) -> set[int]:
    """All costs that some integer ranks within the bounds have, by plain enumeration of sums."""
    sums = {0}
    for m in modules:
        top = min(m.largest_rank, cap or m.largest_rank)
        bottom = min(low, top)
        sums = {s + r * m.params_per_rank for s in sums for r in range(bottom, top + 1)}
    return sums


@settings(max_examples=400)
@given(sizes, weights, st.integers(0, 700), st.integers(1, 3), st.none() | st.integers(1, 6))
def test_spends_the_most_that_integers_allow(
    sizes: list[tuple[int, int]], weights: list[float], extra: int, low: int, cap: int | None
) -> None:
    modules = shapes_of(sizes)
    sums = reachable(modules, low, cap)
    budget = min(sums) + extra

    ranks = spend(modules, dict(zip([m.name for m in modules], weights, strict=False)), budget, low, cap)

    for m in modules:
        top = min(m.largest_rank, cap or m.largest_rank)
        assert min(low, top) <= ranks[m.name] <= top
    assert total_cost(modules, ranks) == max(s for s in sums if s <= budget)


@settings(max_examples=150)
@given(sizes, weights, st.integers(0, 400), st.randoms(use_true_random=False))
def test_order_of_modules_is_irrelevant(sizes, weights, extra, random) -> None:  # noqa: ANN001
    modules = shapes_of(sizes)
    wanted = dict(zip([m.name for m in modules], weights, strict=False))
    budget = min(reachable(modules, 1, None)) + extra
    shuffled = modules.copy()
    random.shuffle(shuffled)

    assert spend(modules, wanted, budget) == spend(shuffled, wanted, budget)


@settings(max_examples=200)
@given(sizes, weights, st.integers(0, 900))
def test_equal_weights_and_shapes_differ_by_one_at_most(
    sizes: list[tuple[int, int]], weights: list[float], extra: int
) -> None:
    modules = shapes_of(sizes + sizes + sizes[:1])  # every shape at least twice, with the same weight
    wanted = {m.name: weights[i % len(sizes)] for i, m in enumerate(modules)}
    budget = min(reachable(modules, 1, None)) + extra

    ranks = spend(modules, wanted, budget)

    for a, b in itertools.combinations(modules, 2):
        if (a.d_in, a.d_out, wanted[a.name]) == (b.d_in, b.d_out, wanted[b.name]):
            assert abs(ranks[a.name] - ranks[b.name]) <= 1


@settings(max_examples=200)
@given(sizes, weights, st.integers(1, 3), st.none() | st.integers(1, 6))
def test_where_there_is_no_choice_weights_change_nothing(
    sizes: list[tuple[int, int]], weights: list[float], low: int, cap: int | None
) -> None:
    modules = shapes_of(sizes)
    wanted = dict(zip([m.name for m in modules], weights, strict=False))
    sums = reachable(modules, low, cap)
    first, last = sorted(sums)[:2], max(sums)
    for budget in {first[0], first[-1] - 1, first[-1], (first[-1] + last) // 2, last - 1, last, last + 1}:
        if budget < first[0]:
            continue
        decided = {s for s in sums if s <= budget} in ({first[0]}, sums)
        assert leaves_no_choice(modules, budget, low, cap) == decided
        if decided:
            even = spend(modules, dict.fromkeys(wanted, 1.0), budget, low, cap)
            assert spend(modules, wanted, budget, low, cap) == even


def test_too_small_a_budget_leaves_no_choice_where_every_module_is_at_its_cap() -> None:
    assert leaves_no_choice([shape("a", 4, 4)], budget=31, min_rank=9)  # and `spend` says that it is too small


def test_the_repair_alone_finds_what_greedy_rounding_misses() -> None:
    # 6·2 + 10·1 = 22 = 10·1 + 6·2: after rounding to 20 (two of the tens) only a swap reaches 22.
    moves = _fewest_moves([6, 10], room_down=[0, 2], room_up=[5, 0], rest=2)
    assert moves == [2, -1]


def test_the_repair_widens_its_search_until_nothing_can_be_missed() -> None:
    # 50·101 - 50·100 = 50 is the shortest way, through partial sums of 5,000: far outside the first window.
    assert _fewest_moves([100, 101], room_down=[60, 60], room_up=[60, 60], rest=50) == [-50, 50]
    assert _fewest_moves([100, 101], room_down=[49, 49], room_up=[60, 60], rest=50) == [-49, 49]  # 49 of 50


def test_the_repair_leaves_least_where_nothing_is_exact() -> None:
    assert _fewest_moves([4, 6], room_down=[0, 0], room_up=[3, 3], rest=5) == [1, 0]


def test_the_repair_searches_no_wider_for_modules_that_cannot_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2-MoE's gate of the shared expert holds rank 1 alone; its price of 2,049 has no divisor with the others'."""
    per_block = {"q": (2048, 2048), "up": (2048, 5632), "down": (5632, 2048), "gate": (2048, 1)}
    modules = [shape(f"{b}.{name}", *size) for b in range(24) for name, size in per_block.items()]
    asked: list[int] = []
    search = planner._search

    def listen(steps: list[int], down: list[int], up: list[int], goal: int, window: int) -> list[int]:
        asked.append(window)
        return search(steps, down, up, goal, window)

    monkeypatch.setattr(planner, "_search", listen)
    gates = 24 * 2049
    budget = gates + 24 * (4096 + 2 * 7680) * 8 - 100  # nothing costs this: the others' prices are multiples of 512
    ranks = spend(modules, {m.name: 1.0 for m in modules}, budget)

    assert {ranks[f"{b}.gate"] for b in range(24)} == {1}
    assert budget - total_cost(modules, ranks) == 512 - 100
    assert asked and max(asked) < 1000


def test_ranks_follow_weights() -> None:
    modules = [shape(f"m{i}", 64, 64) for i in range(4)]
    ranks = spend(modules, {"m0": 1.0, "m1": 2.0, "m2": 3.0, "m3": 4.0}, budget=128 * 40)
    assert ranks == {"m0": 4, "m1": 8, "m2": 12, "m3": 16}


def test_what_a_cap_frees_goes_to_the_others() -> None:
    modules = [shape("small", 4, 60), shape("a", 32, 32), shape("b", 32, 32)]
    ranks = spend(modules, {"small": 100.0, "a": 1.0, "b": 1.0}, budget=64 * 20)
    assert ranks == {"small": 4, "a": 8, "b": 8}


def test_a_budget_beyond_all_caps_is_left_unspent() -> None:
    modules = [shape("a", 4, 4), shape("b", 3, 9)]
    assert spend(modules, {"a": 1.0, "b": 1.0}, budget=10**9) == {"a": 4, "b": 3}


def test_too_small_a_budget_says_what_would_do() -> None:
    with pytest.raises(BudgetError, match=r"at least 16 .*rank 1 in each of 2 .*got 15"):
        spend([shape("a", 4, 4), shape("b", 4, 4)], {"a": 1.0, "b": 1.0}, budget=15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_impossible_weights_are_refused(bad: float) -> None:
    with pytest.raises(BudgetError, match="finite and not negative"):
        spend([shape("a", 4, 4)], {"a": bad}, budget=16)


ODD = ["rank:0", "rank:-1", "rank:1.5", "8", "params:", "ranks:8", "", "params:1" + "0" * 15, "rank:" + "9" * 5_000]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_budgets_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match="Write for example `rank:8`") as found:
        parse_budget(text)
    assert len(str(found.value)) < 400


def test_rank_and_params_budgets_mean_the_same_parameters() -> None:
    modules = [shape("a", 10, 20), shape("b", 30, 40)]
    by_rank = resolve_budget("rank:3", modules)
    by_parameters = resolve_budget("params:300", modules)
    assert by_rank.parameters == by_parameters.parameters == 300
    assert by_rank.reference_rank == by_parameters.reference_rank == 3


def test_a_rank_above_every_module_is_refused() -> None:
    with pytest.raises(BudgetError, match="above rank 20"):
        resolve_budget("rank:21", [shape("a", 10, 20), shape("b", 20, 40)])


def test_large_models_are_planned_exactly() -> None:
    per_block = {"q": (8192, 8192), "k": (8192, 1024), "v": (8192, 1024), "o": (8192, 8192),
                 "gate": (8192, 28672), "up": (8192, 28672), "down": (28672, 8192)}  # fmt: skip
    modules = [shape(f"{b}.{name}", *size) for b in range(80) for name, size in per_block.items()]
    wanted = {m.name: 1.0 + (i * 7919 % 101) / 10 for i, m in enumerate(modules)}
    budget = resolve_budget("rank:16", modules).parameters

    assert total_cost(modules, spend(modules, wanted, budget, 1, 256)) == budget
