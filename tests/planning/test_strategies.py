"""One contract for every strategy in the registry, then what is each one's own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape, kind_of, total_cost
from adaptive_lora.planning.strategies import STRATEGIES, Strategy, check_options, coverage_warnings, find_strategy

PER_BLOCK = {
    "self_attn.q_proj": (16, 16),
    "self_attn.v_proj": (16, 8),
    "mlp.up_proj": (16, 44),
    "mlp.down_proj": (44, 16),
}


def network(blocks: int) -> list[ModuleShape]:
    return [
        ModuleShape(f"layers.{b}.{role}", kind_of(f"layers.{b}.{role}"), b, *size)
        for b in range(blocks)
        for role, size in PER_BLOCK.items()
    ]


SPECTRA = {"input-spectrum", "update-spectrum"}


def scores_for(strategy: Strategy, modules: list[ModuleShape], seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)

    def score(need: str) -> float | tuple[float, ...]:
        return tuple(sorted(rng.dirichlet(np.ones(8)), reverse=True)) if need in SPECTRA else float(rng.lognormal())

    return {need: {m.name: score(need) for m in modules} for need in strategy.needs(strategy.options())}


def most_spendable(modules: Sequence[ModuleShape], budget: int) -> int:
    """The largest cost up to `budget` that any whole ranks from 1 to the caps have."""
    sums = 1  # bit n: some ranks cost n
    for m in modules:
        sums = functools.reduce(operator.or_, (sums << m.params_per_rank * r for r in range(1, m.largest_rank + 1)))
    return (sums & ((1 << budget + 1) - 1)).bit_length() - 1


contract = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


@contract
@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 6), rank=st.integers(1, 8), seed=st.integers(0, 100))
def test_contract_exactly_on_budget_within_bounds(strategy: Strategy, blocks: int, rank: int, seed: int) -> None:
    modules = network(blocks)
    budget = resolve_budget(f"rank:{rank}", modules).parameters

    try:
        ranks = strategy.allocate(modules, scores_for(strategy, modules, seed), budget, strategy.options())
    except StrategyError:
        assert strategy.name == "shuffled"  # it alone refuses plans: those that it cannot change
        reject()

    covered = strategy.covered(modules)
    assert ranks.keys() == {m.name for m in modules}
    assert all(1 <= ranks[m.name] <= m.largest_rank for m in covered)
    assert all(ranks[m.name] == 0 for m in modules if m not in covered)
    assert total_cost(modules, ranks) == most_spendable(covered, budget)
    assert strategy.covers or total_cost(modules, ranks) == budget  # these shapes always allow it


@contract
def test_contract_pure_deterministic_and_blind_to_order(strategy: Strategy) -> None:
    modules = network(4)
    scores = scores_for(strategy, modules)
    budget = resolve_budget("rank:4", modules).parameters

    first = strategy.allocate(modules, scores, budget, strategy.options())
    again = strategy.allocate(modules[::-1], scores, budget, strategy.options())

    assert first == again
    assert modules == network(4)


@contract
def test_contract_bounds_are_options(strategy: Strategy) -> None:
    modules = network(4)
    options = check_options(strategy, {"min_rank": 2, "max_rank": 7})
    ranks = strategy.allocate(
        modules,
        scores_for(strategy, modules),
        total_cost(modules, dict.fromkeys([m.name for m in modules], 4)),
        options,
    )
    assert {ranks[m.name] for m in strategy.covered(modules)} <= set(range(2, 8))


@contract
def test_contract_bounds_that_no_rank_lies_between_are_refused(strategy: Strategy) -> None:
    check_options(strategy, {"min_rank": 3, "max_rank": "3"})
    with pytest.raises(StrategyError, match=rf"^{strategy.name}: `min_rank` 4 is above `max_rank` 3; .* other\.$"):
        check_options(strategy, {"min_rank": 4, "max_rank": 3})


@contract
def test_contract_is_documented(strategy: Strategy) -> None:
    assert strategy.summary and strategy.source
    assert strategy.rests_on in ("nothing", "data", "chance")
    assert strategy.chance == ("seed" in strategy.options.model_fields)


def ranks_of(name: str, modules: list[ModuleShape], rank: int, **options: object) -> dict[str, int]:
    strategy = find_strategy(name)
    budget = resolve_budget(f"rank:{rank}", modules).parameters
    return strategy.allocate(modules, scores_for(strategy, modules), budget, check_options(strategy, options))


def test_uniform_is_uniform() -> None:
    assert set(ranks_of("uniform", network(5), 6).values()) == {6}


@pytest.mark.parametrize(("slope", "expected"), [(1.0, [6, 5, 4, 3, 2]), (-1.0, [2, 3, 4, 5, 6]), (0.0, [4] * 5)])
def test_linear_decay_is_a_line_of_either_sign(slope: float, expected: list[int]) -> None:
    ranks = ranks_of("linear-decay", network(5), 4, slope=slope)
    assert [ranks[f"layers.{b}.self_attn.q_proj"] for b in range(5)] == expected


DEPTHS = [
    ("linear-growth", {}, [2, 3, 4, 5, 6]),
    ("linear-growth", {"slope": -1}, [6, 5, 4, 3, 2]),
    ("u-shape", {"dip": 0.75}, [8, 4, 2, 4, 8]),  # weights 1, 7/16, 1/4, spent on 5 blocks of rank 5.2
    ("u-shape", {"dip": 0}, [5] * 5),
    ("u-shape", {"dip": -3}, [2, 6, 8, 6, 2]),
]


@pytest.mark.parametrize(("name", "options", "expected"), DEPTHS)
def test_shapes_over_depth(name: str, options: dict[str, float], expected: list[int]) -> None:
    modules = [ModuleShape(f"h.{b}.mlp.x", "mlp", b, 64, 64) for b in range(5)]
    strategy = find_strategy(name)
    assert (
        list(strategy.allocate(modules, {}, 128 * sum(expected), check_options(strategy, options)).values()) == expected
    )


@pytest.mark.parametrize("name", ["linear-decay", "linear-growth", "u-shape"])
def test_one_block_has_no_depth(name: str) -> None:
    assert set(ranks_of(name, network(1), 4).values()) == {4}


@pytest.mark.parametrize(("name", "kind"), [("attention-heavy", "attention"), ("mlp-heavy", "mlp")])
def test_family_ratio_is_met(name: str, kind: str) -> None:
    modules = [ModuleShape(f"h.{b}.{k}", k, b, 64, 64) for b in range(4) for k in ("attention", "mlp")]
    ranks = ranks_of(name, modules, 8, ratio=3.0)
    assert {m.kind: ranks[m.name] for m in modules} == {kind: 12, "attention" if kind == "mlp" else "mlp": 4}


def test_empirical_follows_its_scores_and_power_flattens() -> None:
    modules = [ModuleShape(f"h.{i}.mlp.x", "mlp", i, 64, 64) for i in range(3)]
    strategy = find_strategy("empirical")
    scores = {"weight-gradient": {"h.0.mlp.x": 1.0, "h.1.mlp.x": 4.0, "h.2.mlp.x": 9.0}}
    plain = strategy.allocate(modules, scores, 128 * 28, strategy.options())
    bent = strategy.allocate(modules, scores, 128 * 24, check_options(strategy, {"power": 0.5}))
    assert list(plain.values()) == [2, 8, 18]
    assert list(bent.values()) == [4, 8, 12]


def test_strategies_that_cannot_differ_from_uniform_say_so() -> None:
    attention = [m for m in network(2) if m.kind == "attention"]
    assert coverage_warnings(network(2), list(STRATEGIES)) == []
    assert "attention-heavy is the same as uniform here: all" in coverage_warnings(attention, ["attention-heavy"])[0]
    assert "mlp-heavy is the same as uniform here: none" in coverage_warnings(attention, ["mlp-heavy"])[0]
    odd = [ModuleShape("project_in", "other", 0, 4, 4)]
    assert "1 target modules are neither attention nor MLP" in coverage_warnings(odd, ["uniform"])[0]


def test_random_is_a_function_of_its_seed() -> None:
    modules = network(4)
    assert ranks_of("random", modules, 6, seed=1) == ranks_of("random", modules, 6, seed=1)
    assert ranks_of("random", modules, 6, seed=1) != ranks_of("random", modules, 6, seed=2)


def test_unknown_strategies_and_options_get_the_nearest_name() -> None:
    with pytest.raises(StrategyError, match="did you mean 'uniform'"):
        find_strategy("unifrom")
    with pytest.raises(
        StrategyError, match=r"no option `slop` \(did you mean 'slope'\?\).*`min_rank`|`min_rank`.*`slop`"
    ):
        check_options(find_strategy("linear-decay"), {"slop": 1, "min_rank": 0})
