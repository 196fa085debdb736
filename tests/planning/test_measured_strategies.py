"""Strategies that go by a measure: their formulas, on numbers that can be worked out by hand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from adaptive_lora.errors import BudgetError, StrategyError
from adaptive_lora.planning.budget import resolve_budget, spend
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.strategies import STRATEGIES, check_options, find_strategy
from adaptive_lora.planning.strategies.base import bends_weights
from adaptive_lora.planning.strategies.contract import network, scores_for
from adaptive_lora.planning.strategies.eva import component_counts
from adaptive_lora.planning.strategies.gora import shares_of
from adaptive_lora.planning.strategies.posthoc_svd import pooled
from adaptive_lora.planning.strategies.transforms import SourceOptions, why_no_source

SQUARE = [ModuleShape(f"h.{i}.mlp.x", "mlp", i, 64, 64) for i in range(3)]
MIXED = [
    ModuleShape("q", "attention", 0, 128, 128),
    ModuleShape("up", "mlp", 0, 128, 896),  # four times the price of q
]


def ranks(
    name: str, modules: Sequence[ModuleShape], values: Mapping[str, Any], budget: int, **options: Any
) -> list[int]:
    strategy = find_strategy(name)
    checked = check_options(strategy, options)
    (measure,) = strategy.needs(checked)
    found = strategy.allocate(modules, {measure: values}, budget, checked)
    assert total_cost(modules, found) == budget
    return [found[m.name] for m in modules]


def by_module(modules: Sequence[ModuleShape], *values: Any) -> dict[str, Any]:
    return {m.name: value for m, value in zip(modules, values, strict=True)}


@pytest.mark.parametrize("name", ["spectral", "stable-rank"])
def test_rank_follows_the_measure_and_power_flattens(name: str) -> None:
    values = by_module(SQUARE, 10.0, 40.0, 90.0)
    assert ranks(name, SQUARE, values, 128 * 28) == [2, 8, 18]
    assert ranks(name, SQUARE, values, 128 * 24, power=0.5) == [4, 8, 12]
    assert ranks(name, SQUARE, values, 128 * 24, power=0) == [8, 8, 8]


SCORED = [name for name, strategy in STRATEGIES.items() if strategy.needs(strategy.options())
          and why_no_source(strategy) is None and not issubclass(strategy.options, SourceOptions)]  # fmt: skip


def test_every_scored_strategy_has_a_power() -> None:
    assert len(SCORED) == 14 and all(bends_weights(find_strategy(name).options) for name in SCORED)
    others = [name for name, strategy in STRATEGIES.items() if name not in SCORED and bends_weights(strategy.options)]
    assert others == ["page-top-k"]  # within the modules that it chooses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCORED)
def test_power_pulls_the_ranks_towards_uniform(name: str, seed: int) -> None:
    modules, strategy = network(6), find_strategy(name)
    budget, scores = resolve_budget("rank:6", modules).parameters, scores_for(strategy, modules, seed)

    def at(**options: float) -> dict[str, int]:
        found = strategy.allocate(modules, scores, budget, check_options(strategy, options))
        assert total_cost(modules, found) == budget
        return found

    assert at(power=1) == at()
    assert at(power=0) == spend(modules, {m.name: 1.0 for m in modules}, budget)
    uneven = [statistics.pvariance(at(power=p).values()) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert uneven == sorted(uneven) and uneven[0] < uneven[2] < uneven[-1]


def test_half_the_power_is_half_way_on_a_log_scale() -> None:
    values = by_module(SQUARE, 1.0, 4.0, 16.0)
    assert ranks("lora-drop", SQUARE, values, 128 * 21) == [1, 4, 16]
    assert ranks("lora-drop", SQUARE, values, 128 * 21, power=0.5) == [3, 6, 12]
    assert ranks("adalora", SQUARE, values, 128 * 21, power=0.5) == [3, 6, 12]
    with pytest.raises(StrategyError, match="`power`: input should be greater than or equal to 0, got -1"):
        ranks("lora-drop", SQUARE, values, 128 * 21, power=-1)


def test_fim_stops_at_twice_the_uniform_rank_unless_told() -> None:
    values = by_module(SQUARE, 1.0, 1.0, 28.0)
    assert ranks("fim", SQUARE, values, 128 * 30) == [5, 5, 20]
    assert ranks("fim", SQUARE, values, 128 * 30, max_rank=64) == [1, 1, 28]
    assert ranks("fim", SQUARE, values, 128 * 30, max_rank=12) == [9, 9, 12]


def test_page_is_the_energy_of_a_gradient_over_the_width_of_its_input() -> None:
    values = by_module(SQUARE, 1.0, 2.0, 3.0)
    assert ranks("page", SQUARE, values, 128 * 28) == [2, 8, 18]
    assert ranks("page", SQUARE, values, 128 * 24, power=0.5) == [4, 8, 12]
    # ||G||² / d_in with ||G|| = √(d_in d_out) · 1: 128 against 896
    assert ranks("page", MIXED, by_module(MIXED, 1.0, 1.0), 256 * 29) == [1, 7]


def test_gora_divides_by_the_price() -> None:
    values = by_module(MIXED, 1.0, 1.0)
    budget = 256 * 36
    # 1 : 1/f, f the price's root (16 : 32), the price (1 : 1/4), or nearly nothing (log1p 5.5 : 6.9)
    assert ranks("gora", MIXED, values, budget) == [12, 6]
    assert ranks("gora", MIXED, values, 256 * 32, price="identity") == [16, 4]
    assert ranks("gora", MIXED, values, 256 * 21, price="log1p") == [5, 4]


def test_gora_shares_by_softmax() -> None:
    shares = shares_of({"a": 1.0, "b": 2.0, "c": 3.0}, "softmax")
    assert shares["b"] / shares["a"] == pytest.approx(2.718281828)
    assert shares["c"] / shares["a"] == pytest.approx(7.389056099)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares_of({"a": 2.0, "b": 2.0}, "softmax") == {"a": 0.5, "b": 0.5}
    assert shares_of({"a": 0.0, "b": 0.0}, "linear") == {"a": 0.0, "b": 0.0}
    values = by_module(SQUARE, 1.0, 2.0, 3.0)
    assert ranks("gora", SQUARE, values, 128 * 60, share="softmax") == [5, 15, 40]


def test_eva_counts_the_components_that_explain_most() -> None:
    spectra = {"a": (0.9, 0.05, 0.05), "b": (0.4, 0.3, 0.3), "c": (0.5, 0.45, 0.05)}
    assert component_counts(spectra, 6, 3) == {"a": 1, "b": 3, "c": 2}
    assert component_counts(spectra, 6, 2) == {"a": 2, "b": 2, "c": 2}
    assert component_counts(spectra, 1, 3) == {"a": 1, "b": 0, "c": 0}
    assert component_counts({"a": (), "b": (0.5, 0.5)}, 4, 4) == {"a": 0, "b": 2}
    assert component_counts({"b": (0.5,), "a": (0.5,)}, 1, 1) == {"b": 0, "a": 1}  # ties go by name


def test_eva_spends_its_counts_on_the_budget() -> None:
    steep, flat = (0.94, *[0.06 / 19] * 19), (0.05,) * 20
    values = by_module(SQUARE, flat, flat, steep)
    # 24 of the largest: one of `steep`, of the flat ones 23, in turns
    assert ranks("eva", SQUARE, values, 128 * 24) == [12, 11, 1]
    assert ranks("eva", SQUARE, values, 128 * 24, rho=1.0) == [8, 8, 8]
    assert ranks("eva", SQUARE, values, 128 * 24, min_rank=3) == [11, 10, 3]


def test_eva_counts_ranks_and_spends_parameters() -> None:
    even = (0.1,) * 10
    assert ranks("eva", MIXED, by_module(MIXED, even, even), 256 * 20) == [4, 4]


def test_a_pool_of_singular_values_has_one_threshold() -> None:
    spectra = by_module(SQUARE, (9.0, 8.0, 3.0, 2.0), (7.0, 1.0, 1.0, 1.0), (6.0, 5.0, 4.0, 0.5))
    names = [m.name for m in SQUARE]

    def counts(units: int, least: int = 1, most: int | None = None) -> list[int]:
        found = pooled(SQUARE, spectra, 128 * units, least, most)
        return [found[name] for name in names]

    assert counts(7) == [3, 1, 3]  # 9 8 7 6 5 4 3
    assert counts(5) == [2, 1, 2]
    assert counts(7, least=2) == [2, 2, 3]  # the 4 is the only one beyond two each
    assert counts(7, most=2) == [2, 2, 2]  # what is above the most is not in the pool
    assert counts(100) == [4, 4, 4]  # no more than there are
    assert counts(3) == counts(2) == [1, 1, 1]  # what the least costs is not for `pooled` to refuse


def test_ties_in_a_pool_go_by_name_whatever_the_order() -> None:
    spectra = by_module(SQUARE, (5.0, 2.0), (5.0, 2.0), (5.0, 2.0))
    found = pooled(SQUARE[::-1], spectra, 128 * 5, 1, None)
    assert found == {"h.0.mlp.x": 2, "h.1.mlp.x": 2, "h.2.mlp.x": 1}


def test_a_pool_is_cut_at_the_first_value_that_cannot_be_paid_for() -> None:
    spectra = by_module(MIXED, (9.0, 2.0, 1.5, 1.0), (8.0, 7.0, 6.0, 0.1))
    # q costs 256 and up 1024; after one each 1280 are spent, and a 2 is smaller than the 6 that is too dear
    assert pooled(MIXED, spectra, 1280 + 1024 + 512, 1, None) == {"q": 1, "up": 2}
    assert pooled(MIXED, spectra, 1280 + 2048 + 512, 1, None) == {"q": 3, "up": 3}


def test_posthoc_svd_spends_what_the_threshold_leaves() -> None:
    values = by_module(SQUARE, (9.0, 8.0, 3.0, 2.0), (7.0, 1.0, 1.0, 1.0), (6.0, 5.0, 4.0, 0.5))
    for of in ("update", "update-on-inputs"):
        assert ranks("posthoc-svd", SQUARE, values, 128 * 7, of=of) == [3, 1, 3]
        assert ranks("posthoc-svd", SQUARE, values, 128 * 7, of=of, min_rank=2) == [2, 2, 3]
        assert ranks("posthoc-svd", SQUARE, values, 128 * 5, of=of, max_rank=2) == [2, 1, 2]
    # all twelve directions there are, four each, and six more
    assert ranks("posthoc-svd", SQUARE, values, 128 * 18) == [6, 6, 6]
    steep = by_module(MIXED, (9.0, 2.0, 1.5, 1.0), (8.0, 7.0, 6.0, 0.1))
    assert ranks("posthoc-svd", MIXED, steep, 1280 + 2048 + 512) == [3, 3]
    assert ranks("posthoc-svd", MIXED, steep, 1280 + 1024 + 512) == [3, 2]
    with pytest.raises(BudgetError, match="at least 384"):
        ranks("posthoc-svd", SQUARE, values, 128 * 3 - 1)


def test_posthoc_svd_measures_what_it_goes_by() -> None:
    strategy = find_strategy("posthoc-svd")
    needs = {of: strategy.needs(check_options(strategy, {"of": of})) for of in ("update", "update-on-inputs")}
    assert needs == {"update": ("update-spectrum",), "update-on-inputs": ("update-spectrum-on-inputs",)}


def test_nested_spends_by_what_all_ranks_of_a_module_are_worth() -> None:
    values = by_module(SQUARE, (1.0, 1.0), (2.0, 0.0), (2.0, 1.0, 1.0, 0.0))  # Σ σ²: 2, 4, 6
    assert ranks("nested", SQUARE, values, 128 * 28) == [2, 8, 18]
    assert ranks("nested", SQUARE, values, 128 * 24, power=0.5) == [4, 8, 12]
    assert ranks("nested", SQUARE, values, 128 * 20, max_rank=10) == [2, 8, 10]
    assert ranks("nested", SQUARE, by_module(SQUARE, (0.0,), (0.0,), (3.0,)), 128 * 12) == [1, 1, 10]


@pytest.mark.parametrize("name", ["lora-drop", "adalora", "marginal-gain"])
def test_rank_follows_what_a_short_run_says(name: str) -> None:
    values = by_module(SQUARE, 1.0, 4.0, 9.0)
    assert ranks(name, SQUARE, values, 128 * 28) == [2, 8, 18]
    assert ranks(name, SQUARE, values, 128 * 28, min_rank=4, max_rank=16) == [4, 8, 16]
    assert ranks(name, SQUARE, by_module(SQUARE, 0.0, 0.0, 2.0), 128 * 12) == [1, 1, 10]
    assert ranks(name, SQUARE, by_module(SQUARE, 0.0, 0.0, 0.0), 128 * 12) == [4, 4, 4]
    # ranks in proportion, not parameters: 2 of 256 and 1 of 1024
    assert ranks(name, MIXED, by_module(MIXED, 2.0, 1.0), 6 * (512 + 1024)) == [12, 6]
