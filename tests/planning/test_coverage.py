"""Plans that leave modules out: one kind on the whole budget, rank 0 elsewhere, and what is known of the rest."""

from __future__ import annotations

import pytest

from adaptive_lora.cli.terminal import coverage_table, heat_map
from adaptive_lora.errors import BudgetError, StrategyError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape, kind_of, total_cost
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.planning.strategies import STRATEGIES, check_options, coverage_warnings, find_strategy
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.schema import ArmPart, ScalingPart

KINDS = [("attention-only", "attention"), ("mlp-only", "mlp")]


def network() -> list[ModuleShape]:
    return [ModuleShape(f"h.{b}.{kind}.x", kind, b, 32, 32) for b in range(3) for kind in ("attention", "mlp")]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_whole_budget_goes_to_one_kind(name: str, kind: str) -> None:
    modules = network()
    budget = resolve_budget("rank:5", modules).parameters
    ranks = find_strategy(name).allocate(modules, {}, budget, find_strategy(name).options())
    assert ranks == {m.name: 10 if m.kind == kind else 0 for m in modules}
    assert total_cost(modules, ranks) == budget


def test_caps_leave_a_large_budget_unspent() -> None:
    modules = network()
    budget = resolve_budget("rank:20", modules).parameters
    ranks = find_strategy("mlp-only").allocate(modules, {}, budget, find_strategy("mlp-only").options())
    assert {m.kind: ranks[m.name] for m in modules} == {"attention": 0, "mlp": 32}


def test_the_least_rank_counts_for_covered_modules_alone() -> None:
    """A budget that pays for rank 2 in half of the modules is enough, and one that does not is none."""
    modules, strategy = network(), find_strategy("attention-only")
    options = check_options(strategy, {"min_rank": 2})
    assert sorted(strategy.allocate(modules, {}, 3 * 2 * 64, options).values()) == [0, 0, 0, 2, 2, 2]
    with pytest.raises(BudgetError, match="rank 2 in each of 3 target modules"):
        strategy.allocate(modules, {}, 3 * 2 * 64 - 1, options)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_without_modules_of_the_kind_there_is_no_plan(name: str, kind: str) -> None:
    others = [m for m in network() if m.kind != kind]
    with pytest.raises(
        StrategyError, match=f"{name} gives rank to {kind} modules alone, and none of the 3 .*`targets`"
    ):
        find_strategy(name).allocate(others, {}, 10_000, find_strategy(name).options())
    alone = [m for m in network() if m.kind == kind]
    assert coverage_warnings(alone, [name]) == [
        f"{name} is the same as uniform here: all of the target modules are {kind}."
    ]


def test_only_these_leave_modules_out() -> None:
    found = [name for name, strategy in STRATEGIES.items() if strategy.leaves_out]
    assert found == ["attention-only", "mlp-only", "last-blocks", "only", "page-top-k", "kappa"]


def ranks_of(name: str, scores: dict[str, dict[str, float]], budget: int, **options: object) -> list[int]:
    strategy = find_strategy(name)
    modules = network()
    return list(strategy.allocate(modules, scores, budget, check_options(strategy, options)).values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [0, 0, 9, 9, 9, 9]), ({"blocks": 1}, [0, 0, 0, 0, 18, 18]), ({"blocks": 7}, [6] * 6)],
)
def test_the_whole_budget_goes_to_the_last_blocks(options: dict[str, int], expected: list[int]) -> None:
    assert ranks_of("last-blocks", {}, 36 * 64, **options) == expected
    with pytest.raises(StrategyError, match=r"`blocks`: .* greater than or equal to 1, got 0"):
        check_options(find_strategy("last-blocks"), {"blocks": 0})


def test_last_blocks_that_are_all_blocks_are_said_to_be_uniform() -> None:
    one = [m for m in network() if m.depth == 0]
    assert coverage_warnings(network(), ["last-blocks"]) == []
    (warning,) = coverage_warnings(one, ["last-blocks"])
    assert warning == "last-blocks is the same as uniform here: all of the target modules are in the last 1 blocks."


def by_score(*values: float) -> dict[str, float]:
    return {m.name: value for m, value in zip(network(), values, strict=True)}


def test_page_puts_all_rank_into_the_best_modules_until_they_are_full() -> None:
    scores = {"gradient-norm": by_score(1, 5, 3, 2, 4, 1)}
    assert ranks_of("page-top-k", scores, 20 * 64) == [0, 20, 0, 0, 0, 0]
    assert ranks_of("page-top-k", scores, 32 * 64) == [0, 32, 0, 0, 0, 0]
    assert ranks_of("page-top-k", scores, 36 * 64) == [0, 22, 0, 0, 14, 0]  # 25 : 16
    assert ranks_of("page-top-k", scores, 60 * 64) == [0, 32, 0, 0, 28, 0]
    assert ranks_of("page-top-k", scores, 36 * 64, max_rank=12) == [0, 12, 12, 0, 12, 0]
    assert ranks_of("page-top-k", scores, 3 * 64, k=3, power=0) == [0, 1, 1, 0, 1, 0]
    strategy = find_strategy("page-top-k")
    with pytest.raises(BudgetError, match="rank 2 in each of 3 target modules"):
        strategy.check_budget(network(), 5 * 64, check_options(strategy, {"k": 3, "min_rank": 2}))


def test_kappa_takes_the_lowest_condition_numbers() -> None:
    scores = {"condition-number": by_score(9, 2, 3, 8, 2, 7)}
    assert ranks_of("kappa", scores, 20 * 64) == [0, 20, 0, 0, 0, 0]  # a fifth of six is one; ties go by name
    assert ranks_of("kappa", scores, 20 * 64, top_p=0.4) == [0, 10, 0, 0, 10, 0]
    assert ranks_of("kappa", scores, 21 * 64, top_p=0.5) == [0, 7, 7, 0, 7, 0]
    strategy = find_strategy("kappa")
    with pytest.raises(BudgetError, match="rank 1 in each of 6 target modules"):
        strategy.check_budget(network(), 5 * 64, check_options(strategy, {"top_p": 1}))


def llama(blocks: int = 3) -> list[ModuleShape]:
    sizes = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (32, 16), "mlp.up_proj": (32, 88)}
    return [ModuleShape(f"layers.{b}.{role}", kind_of(role), b, *size)
            for b in range(blocks) for role, size in sizes.items()]  # fmt: skip


def test_named_modules_get_the_whole_budget_to_the_last_parameter() -> None:
    """Query and value at what adapters on all modules cost; and by groups it is what the strategies of groups do."""
    modules, only = llama(), find_strategy("only")
    budget = resolve_budget("rank:4", modules).parameters
    for named in (("q_proj", "v_proj"), ("self_attn.v_proj", "q_proj"), "q_proj, v_proj"):
        ranks = only.allocate(modules, {}, budget, check_options(only, {"modules": named}))
        assert {m.name for m in modules if ranks[m.name]} == {m.name for m in modules if ".self_attn." in m.name}
        assert total_cost(modules, ranks) == budget and max(ranks.values()) - 9 <= 1
    for kind in ("attention", "mlp"):
        grouped = find_strategy(f"{kind}-only")
        by_kind = grouped.allocate(modules, {}, budget, grouped.options())
        assert only.allocate(modules, {}, budget, check_options(only, {"modules": [kind]})) == by_kind


def test_names_that_name_no_target_are_refused_with_those_there_are() -> None:
    only = find_strategy("only")
    message = "only: `modules` names 'qproj', 'c_attn', and none of the 9 .*did you mean 'q_proj'.*q_proj, v_proj, up_"
    with pytest.raises(StrategyError, match=message):
        only.allocate(llama(), {}, 10_000, check_options(only, {"modules": ["qproj", "v_proj", "c_attn"]}))
    for nothing in ([], [""], ""):
        with pytest.raises(StrategyError, match="`modules"):
            check_options(only, {"modules": nothing})


@pytest.fixture
def plan() -> RankPlan:
    modules = tuple(network())
    arm = ArmPart(name="mlp-only", strategy="mlp-only")
    return make_plan(None, modules, arm, resolve_budget("rank:2", modules), ScalingPart(), seed=0)


def test_a_plan_knows_what_it_leaves_out(plan: RankPlan) -> None:
    assert [m.name for m in plan.left_out] == ["h.0.attention.x", "h.1.attention.x", "h.2.attention.x"]
    assert plan.ranks == {f"h.{b}.mlp.x": 4 for b in range(3)}
    assert RankPlan.from_json(plan.to_json()) == plan
    older = {key: value for key, value in plan.to_json().items() if key != "left_out"}
    assert RankPlan.from_json(older).left_out == ()
    assert sorted(plan.to_lora_config().target_modules) == ["h.0.mlp.x", "h.1.mlp.x", "h.2.mlp.x"]


def test_tables_show_what_is_left_out(plan: RankPlan) -> None:
    names, *_, ranks = (list(column.cells) for column in coverage_table(plan).columns[:4])
    shown = dict(zip(map(str, names), ranks, strict=True))
    assert shown == {f"h.{b}.{kind}.x": rank for kind, rank in (("mlp", "4"), ("attention", "–")) for b in range(3)}
    block, attention, mlp = (list(map(str, column.cells)) for column in heat_map(plan).columns)
    assert block == ["0", "1", "2"]
    assert {cell.strip() for cell in attention} == {"–"} and {cell.strip() for cell in mlp} == {"4"}
