"""`by-kind` and `by-depth`: one rank a group, what it costs, and where equal ranks cannot spend the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from adaptive_lora.errors import BudgetError, StrategyError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.contract import network, scores_for

SHAPES = {"attn.q_proj": (32, 32), "attn.c_proj": (32, 32), "mlp.c_proj": (96, 32)}


def blocks(count: int) -> list[ModuleShape]:
    return [
        ModuleShape(f"h.{b}.{role}", "attention" if role.startswith("attn") else "mlp", b, *size)
        for b in range(count)
        for role, size in SHAPES.items()
    ]


def ranks_of(name: str, modules: Sequence[ModuleShape], values: Sequence[float], budget: int, **options: Any) -> Any:
    strategy = find_strategy(name)
    scores = {"output-norm": {m.name: v for m, v in zip(modules, values, strict=True)}}
    asked = check_options(strategy, {"source": "lora-drop", **options})
    found = strategy.allocate(modules, scores, budget, asked)
    return [found[m.name] for m in modules]


def test_a_type_gets_the_mean_of_its_modules() -> None:
    """The source gives q 1 and 5, attn.c_proj 2 and 4, mlp.c_proj 8 and 2."""
    values, budget = [1, 2, 8, 5, 4, 2], 64 * (1 + 2 + 5 + 4) + 128 * 10
    assert ranks_of("by-kind", blocks(2), values, budget) == [3, 3, 5, 3, 3, 5]


def test_a_block_gets_the_mean_by_parameters() -> None:
    """64 (1 + 3) + 128 · 8 is what block 0 gets of the source: 5 in each. Block 1: 64 (4 + 4) + 128 · 2, 3 in each."""
    values, budget = [1, 3, 8, 4, 4, 2], 64 * (4 + 8) + 128 * 10
    assert ranks_of("by-depth", blocks(2), values, budget) == [5, 5, 5, 3, 3, 3]


@pytest.mark.parametrize(("name", "group"), [("by-kind", "name"), ("by-depth", "depth")])
def test_ranks_are_equal_where_equal_ranks_cost_the_budget(name: str, group: str) -> None:
    modules, strategy = network(6), find_strategy(name)
    wide = [m for m in modules if "v_proj" not in m.name]  # v_proj holds rank 8
    scores = scores_for(strategy, modules)
    for rank in (2, 5, 7):
        budget = resolve_budget(f"rank:{rank}", wide).parameters
        ranks = strategy.allocate(wide, scores, budget, strategy.options())
        keys = {m.name: m.name.rpartition(".")[2] if group == "name" else m.depth for m in wide}
        assert len({(keys[name], rank) for name, rank in ranks.items()}) == len(set(keys.values()))
        assert total_cost(wide, ranks) == budget


@pytest.mark.parametrize("name", ["by-kind", "by-depth"])
def test_a_rest_goes_to_single_modules_or_is_left(name: str) -> None:
    modules = blocks(4)
    budget = resolve_budget("rank:3", modules).parameters + 64
    left = ranks_of(name, modules, [1.0] * 12, budget, rest="leave")
    spent = ranks_of(name, modules, [1.0] * 12, budget)
    assert left == [3] * 12
    assert (
        sum(spent) == 37
        and max(spent) == 4
        and total_cost(modules, dict(zip([m.name for m in modules], spent, strict=True))) == budget
    )


def test_a_narrow_module_stops_at_its_cap_and_its_block_goes_on() -> None:
    modules = [ModuleShape("h.0.attn.k", "attention", 0, 16, 4), ModuleShape("h.0.mlp.x", "mlp", 0, 16, 16)]
    assert ranks_of("by-depth", modules, [1.0, 1.0], 4 * 20 + 9 * 32, rest="leave") == [4, 7]
    assert ranks_of("by-depth", modules, [1.0, 1.0], 4 * 20 + 9 * 32) == [4, 9]
    # A least rank above its cap costs no more than the cap.
    assert ranks_of("by-depth", modules, [1.0, 1.0], 4 * 20 + 5 * 32, min_rank=5) == [4, 5]
    with pytest.raises(BudgetError, match="at least 240"):
        ranks_of("by-depth", modules, [1.0, 1.0], 4 * 20 + 5 * 32 - 1, min_rank=5, rest="leave")


def test_types_of_one_leaf_in_attention_and_mlp_are_two() -> None:
    ranks = ranks_of("by-kind", blocks(2), [1, 1, 4, 1, 1, 4], 64 * 4 + 128 * 8)
    assert ranks == [1, 1, 4, 1, 1, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "by-depth"}, "cannot be by-depth: it averages another plan itself"),
        ({"source": "inverted"}, "cannot be inverted: it changes another plan itself"),
        ({"source": "mlp-only"}, "cannot be mlp-only: it leaves modules out"),
        ({"source": "random"}, "cannot be random: its ranks are drawn by chance"),
        ({"rest": "keep"}, "`rest`: .*'spend' or 'leave', got 'keep'"),
    ],
)
def test_what_cannot_be_averaged_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        check_options(find_strategy("by-kind"), options)


def test_they_measure_what_their_source_does_and_can_be_shuffled() -> None:
    by_kind, shuffled = find_strategy("by-kind"), find_strategy("shuffled")
    own = check_options(by_kind, {"source": "lora-drop", "source_options": {"short_run_steps": 7}})
    assert by_kind.needs(own) == ("output-norm",) and by_kind.basis(own) == "data"
    assert own.measuring().updates(100) == 7
    of = {"source": "by-kind", "source_options": {"source": "lora-drop", "source_options": {"short_run_steps": 7}}}
    asked = check_options(shuffled, of)
    assert shuffled.needs(asked) == ("output-norm",) and asked.measuring().updates(100) == 7
    assert asked.model_dump(mode="json")["source_options"]["rest"] == "spend"
