"""`inverted` and `shuffled`: another strategy's plan, changed; what they take from it and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from adaptive_lora.errors import StrategyError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.strategies import STRATEGIES, check_options, find_strategy
from adaptive_lora.planning.strategies.base import Strategy
from adaptive_lora.planning.strategies.transforms import why_no_source
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.schema import ArmPart, ScalingPart

BOTH = ["inverted", "shuffled"]


def modules_of(count: int, d_out: int = 32) -> list[ModuleShape]:
    return [ModuleShape(f"h.{i}.mlp.x", "mlp", i, 32, d_out) for i in range(count)]


def ranks_of(
    name: str, modules: list[ModuleShape], scores: Any = None, rank: int = 5, **options: Any
) -> dict[str, int]:
    strategy = find_strategy(name)
    budget = resolve_budget(f"rank:{rank}", modules).parameters
    return strategy.allocate(modules, scores or {}, budget, check_options(strategy, options))


def test_inverted_turns_the_order_round_with_ties_by_name() -> None:
    modules = modules_of(5)
    scores = {"weight-gradient": dict(zip((m.name for m in modules), [1.0, 2.0, 9.0, 9.0, 4.0], strict=True))}
    assert list(ranks_of("empirical", modules, scores).values()) == [1, 2, 9, 9, 4]
    assert list(ranks_of("inverted", modules, scores).values()) == [9, 9, 2, 1, 4]


def test_inverted_of_a_line_is_the_other_line() -> None:
    modules = modules_of(5)
    falling = ranks_of("linear-decay", modules)
    assert ranks_of("inverted", modules, source="linear-decay") == ranks_of("linear-growth", modules) != falling
    assert ranks_of("inverted", modules, source="linear-growth", source_options={"slope": 1}) == falling


@pytest.mark.parametrize("name", BOTH)
def test_modules_of_other_price_are_paid_for(name: str) -> None:
    modules = [*modules_of(3), *(ModuleShape(f"h.{i}.attn.y", "attention", i, 32, 16) for i in (3, 4))]
    ranks = ranks_of(name, modules, source="linear-decay")
    own = ranks_of("linear-decay", modules)
    assert total_cost(modules, ranks) == total_cost(modules, own) and sorted(ranks.values()) != sorted(own.values())


def test_shuffled_keeps_the_ranks_and_moves_at_least_half_of_them() -> None:
    modules = modules_of(8)
    own = ranks_of("linear-decay", modules)
    drawn = [ranks_of("shuffled", modules, source="linear-decay", seed=seed) for seed in range(20)]
    for ranks in drawn:
        assert sorted(ranks.values()) == sorted(own.values())
        assert sum(ranks[name] != own[name] for name in own) >= 4
    assert drawn[3] == ranks_of("shuffled", modules[::-1], source="linear-decay", seed=3)
    assert len({tuple(ranks[m.name] for m in modules) for ranks in drawn}) > 15


def test_shuffled_draws_again_where_too_little_changes() -> None:
    """Of two large ranks in six both must move; six permutations of ten leave one where it was."""
    modules = modules_of(6)
    scores = {"weight-gradient": dict(zip((m.name for m in modules), [13.0, 13.0, 1, 1, 1, 1], strict=True))}
    own = ranks_of("empirical", modules, scores)
    assert list(own.values()) == [13, 13, 1, 1, 1, 1]
    for seed in range(30):
        ranks = ranks_of("shuffled", modules, scores, seed=seed)
        assert sum(ranks[name] != own[name] for name in own) == 4


def test_a_uniform_plan_cannot_be_shuffled() -> None:
    with pytest.raises(
        StrategyError, match=r"cannot change the plan of uniform: it gives rank 5 to every module.*`source`"
    ):
        ranks_of("shuffled", modules_of(6), source="uniform")


def test_a_plan_with_one_odd_rank_is_not_worth_shuffling() -> None:
    """Moving one rank of eight changes two at the most."""
    modules = modules_of(8)
    scores = {"weight-gradient": {m.name: 13.0 if m.depth == 0 else 1.0 for m in modules}}
    with pytest.raises(StrategyError, match=r"fewer than half of the ranks of empirical in each of 20 draws.*`source`"):
        ranks_of("shuffled", modules, scores)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "inverted"}, "cannot be inverted: it changes another plan itself; name that plan's strategy"),
        ({"source": "shuffled"}, "cannot be shuffled: it changes another plan"),
        ({"source": "random"}, "cannot be random: its ranks are drawn by chance"),
        ({"source": "mlp-only"}, "cannot be mlp-only: it leaves modules out"),
        ({"source": "only"}, "cannot be only: it leaves modules out"),
        ({"source": "empiricl"}, r"no strategy 'empiricl' \(did you mean 'empirical'\?\)"),
        ({"source_options": {"powr": 1}}, r"empirical: no option `powr` \(did you mean 'power'\?\)"),
        ({"source": "linear-decay", "source_options": {"slope": 5}}, "linear-decay: `slope`: .* less than 2, got 5"),
        ({"max_rank": 2, "source_options": {"min_rank": 3}}, "empirical: `min_rank` 3 is above `max_rank` 2"),
        ({"source_options": 3}, "`source_options`: .*dictionary"),
    ],
)
def test_what_cannot_be_a_source_is_refused_at_the_door(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        check_options(find_strategy(name), options)
    with pytest.raises(ValueError, match=message):
        ArmPart(name="a", strategy=name, options=options)


def sources() -> dict[str, Strategy]:
    return {name: strategy for name, strategy in STRATEGIES.items() if why_no_source(strategy) is None}


def test_every_other_strategy_is_a_source() -> None:
    assert sources().keys() == {name for name, strategy in STRATEGIES.items() if not strategy.leaves_out} - {
        "inverted",
        "shuffled",
        "random",
    }


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("source", list(sources()))
def test_they_need_and_rest_on_what_their_source_does(name: str, source: str) -> None:
    strategy, of = find_strategy(name), find_strategy(source)
    options = check_options(strategy, {"source": source, "min_rank": 2})
    own = of.options(min_rank=2)
    assert strategy.needs(options) == of.needs(own)
    assert strategy.effort_of(options) == of.effort_of(own)
    assert options.measuring() == own.measuring()
    expected = "data" if of.rests_on == "data" else "chance" if name == "shuffled" else "none"
    assert strategy.basis(options) == expected


def test_options_of_the_source_reach_it() -> None:
    options = check_options(
        find_strategy("inverted"),
        {"max_rank": 9, "source_options": {"importance": "gradient-norm", "calibration_batches": "2", "min_rank": 3}},
    )
    assert find_strategy("inverted").needs(options) == ("gradient-norm",)
    assert (options.measuring().calibration_batches, options.measuring().max_rank) == (2, 9)
    told = options.model_dump(mode="json")
    assert told["source"] == "empirical" and told["source_options"]["importance"] == "gradient-norm"
    assert told["source_options"]["power"] == 1.0  # what was not said stands in the record too
    assert (told["min_rank"], told["source_options"]["min_rank"]) == (1, 3)
    assert check_options(find_strategy("inverted"), told).model_dump(mode="json") == told


def test_a_plan_records_its_source_and_takes_its_draw_from_the_runs_seed() -> None:
    modules = tuple(modules_of(8))
    budget = resolve_budget("rank:5", modules)

    def plan(of: int, **options: Any) -> Any:
        arm = ArmPart(name="s", strategy="shuffled", options={"source": "linear-decay", **options})
        return make_plan(None, modules, arm, budget, ScalingPart(), of)

    first, again, other = plan(1), plan(1), plan(2)
    assert first.ranks == again.ranks != other.ranks
    assert first.options["source"] == "linear-decay" and first.options["source_options"]["slope"] == 1.0
    assert first.options["seed"] == again.options["seed"] != other.options["seed"]
    assert plan(1, seed=7).ranks == plan(2, seed=7).ranks


def test_a_draw_that_need_not_differ_is_the_first() -> None:
    """A control of an arm whose plan comes out uniform for a seed is uniform there too, and no failure."""
    modules = modules_of(6)
    same = {"weight-gradient": dict.fromkeys((m.name for m in modules), 1.0)}
    with pytest.raises(StrategyError, match="gives rank 5 to every module"):
        ranks_of("shuffled", modules, same)
    assert set(ranks_of("shuffled", modules, same, must_differ=False).values()) == {5}
    one = {"weight-gradient": {m.name: 1.0 if m.depth else 2.0 for m in modules}}
    own = ranks_of("empirical", modules, one)
    drawn = [ranks_of("shuffled", modules, one, must_differ=False, seed=seed) for seed in range(40)]
    assert own in drawn and all(sorted(ranks.values()) == sorted(own.values()) for ranks in drawn)
