"""One contract for every strategy in the registry, then what is each one's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import STRATEGIES, Strategy, check_options, coverage_warnings, find_strategy
from adaptive_lora.planning.strategies.contract import budget_complaints, check_strategy, network, scores_for


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_contract(strategy: Strategy) -> None:
    assert [finding for finding in check_strategy(strategy) if finding.came is not None] == []


@settings(max_examples=80)
@given(st.sampled_from(list(STRATEGIES.values())), st.integers(1, 6), st.integers(1, 8), st.integers(0, 400))
def test_contract_exactly_on_any_budget(strategy: Strategy, blocks: int, rank: int, more: int) -> None:
    modules = network(blocks)
    budget = resolve_budget(f"rank:{rank}", modules).parameters + more
    assert list(budget_complaints(strategy, modules, budget, seed=more)) == []


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
