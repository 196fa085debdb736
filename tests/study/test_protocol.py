"""Which comparisons a study decides, and the controls beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.stats.run_table import Comparison, Phase
from adaptive_lora.study.matrix import Role, matrix_of
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.protocol import assay_budgets, compute_controls, control_arms, primary_comparisons
from adaptive_lora.study.schema import ArmPart, ScalingPart, StudySpec
from adaptive_lora.study.settings import steps_of, training_of
from adaptive_lora.study.study_file import load_study

WriteStudy = Callable[..., Path]
ARMS = "arms: [uniform, linear-decay, empirical, random]"


@pytest.fixture
def spec(study_file: WriteStudy) -> Callable[..., StudySpec]:
    """The small study, with replacements."""
    return lambda *changes: load_study(study_file(*changes)).spec


def controls(text: str) -> tuple[str, str]:
    return "controls: none", f"controls: {text}"


def pairs(spec: StudySpec) -> list[tuple[str, str]]:
    return [cell.key for cell in matrix_of(spec).cells]


def test_without_controls_there_are_the_arms_alone(spec: Callable[..., StudySpec]) -> None:
    own = spec(controls("none"))
    assert pairs(own) == [(arm, "rank:2") for arm in ("uniform", "linear-decay", "empirical", "random")]
    assert {run.replica for run in matrix_of(own).evaluation_runs(dict.fromkeys(pairs(own), 1e-3))} == {0}


def test_all_controls_stand_beside_the_arms(spec: Callable[..., StudySpec]) -> None:
    own = spec(controls("all"), (ARMS, "arms: [uniform, linear-decay]"))
    assert pairs(own) == [
        ("uniform", "rank:2"), ("linear-decay", "rank:2"), ("random", "rank:2"), ("shuffled", "rank:2"),
        ("uniform", "rank:1"), ("uniform", "rank:4"),
    ]  # fmt: skip
    runs = list(matrix_of(own).evaluation_runs(dict.fromkeys(pairs(own), 1e-3)))
    twins = [run for run in runs if run.replica]
    assert [(t.arm.name, t.budget, t.seed) for t in twins] == [("uniform", "rank:2", own.seeds.evaluation[0])]
    assert len(runs) == 6 * 2 + 1 == matrix_of(own).counts()[Phase.EVALUATION]


FIXED = (
    (ARMS, "arms: [{name: mine, ranks: {c_attn: 2, c_proj: 3, c_fc: 1}}, uniform]"),
    (
        "primary: []",
        "primary: [], baseline: mine",
    ),
)


def test_fixed_ranks_have_no_half_and_no_double(spec: Callable[..., StudySpec]) -> None:
    """They would be the very same ranks again, and the study would say that it cannot tell ranks apart."""
    own = spec(controls("[half, double, twin]"), *FIXED)
    assert assay_budgets(own) == ()
    assert pairs(own) == [("mine", "rank:2"), ("uniform", "rank:2")]


def test_fixed_ranks_as_the_baseline_of_two_budgets_are_refused(spec: Callable[..., StudySpec], tmp_path: Path) -> None:
    two = ('["rank:2"]', '["rank:2", "rank:4"]')
    message = r"line 4, budgets: the baseline 'mine' has fixed `ranks` and so one size.*one budget.*got rank:2, rank:4"
    with pytest.raises(StudyFileError, match=message):
        spec(two, *FIXED)
    (tmp_path / "mine.json").write_text('{"c_attn": 2, "c_proj": 3, "c_fc": 1}')
    with pytest.raises(StudyFileError, match=message):
        spec(two, (ARMS, "arms: [{ranks: mine.json}, uniform]"), FIXED[1])
    assert spec(two, (ARMS, "arms: [{name: mine, ranks: {c_attn: 2}}, uniform]"))  # only a baseline must be at each


def test_a_control_that_is_an_arm_already_is_not_made_twice(spec: Callable[..., StudySpec]) -> None:
    assert [arm.name for arm in control_arms(spec(controls("[random, shuffled]")))] == ["shuffled"]


def test_a_control_gives_way_to_an_arm_of_its_name(spec: Callable[..., StudySpec]) -> None:
    own = spec(controls("[random]"), (ARMS, "arms: [uniform, {name: random, strategy: eva}]"))
    assert [arm.name for arm in control_arms(own)] == ["random-control"]


@pytest.mark.parametrize(
    ("arms", "source"),
    [
        ("[uniform, linear-decay, empirical]", "linear-decay"),
        ("[uniform, random, attention-only]", "empirical"),
        ("[uniform, marginal-gain, eva]", "eva"),
    ],
)
def test_shuffled_takes_the_ranks_of_an_arm_that_plans_without_training(
    spec: Callable[..., StudySpec], arms: str, source: str
) -> None:
    (control,) = control_arms(spec(controls("[shuffled]"), (ARMS, f"arms: {arms}")))
    assert control.options == {"source": source}


HEAVY = "{strategy: attention-heavy, options: {ratio: 0.25, max_rank: 12}}"


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        (HEAVY, {"source": "attention-heavy", "max_rank": 12, "source_options": {"ratio": 0.25}}),
        ("{strategy: empirical, options: {power: 0.5}}", {"source": "empirical", "source_options": {"power": 0.5}}),
        ("{strategy: linear-decay, options: {min_rank: 2}}", {"source": "linear-decay", "min_rank": 2}),
        ("{strategy: linear-decay, options: {slope: 1, min_rank: 1}}", {"source": "linear-decay"}),  # the defaults
    ],
)
def test_shuffled_takes_the_arms_own_options(spec: Callable[..., StudySpec], arm: str, options: dict[str, Any]) -> None:
    own = spec(controls("[shuffled]"), (ARMS, f"arms: [uniform, {arm}]"), ("rank:2", "rank:4"))
    assert [control.options for control in control_arms(own)] == [options]


def test_the_shuffled_control_has_the_ranks_of_its_arm(spec: Callable[..., StudySpec]) -> None:
    modules = [ModuleShape(f"h.{i}.{kind}", kind, i, 32, 32) for i in range(4) for kind in ("attention", "mlp")]
    budget = resolve_budget("rank:8", modules).parameters
    own = spec(controls("[shuffled]"), (ARMS, f"arms: [uniform, {HEAVY}]"))
    plans = []
    for arm in (own.arms[1], *control_arms(own)):
        strategy = find_strategy(str(arm.strategy))
        plans.append(strategy.allocate(modules, {}, budget, check_options(strategy, arm.options)))
    assert sorted(plans[0].values()) == sorted(plans[1].values()) == [4] * 4 + [12] * 4 and plans[0] != plans[1]


def test_shuffled_has_no_place_where_the_least_rank_is_all_there_is(spec: Callable[..., StudySpec]) -> None:
    both = spec(controls("[shuffled]"), ('["rank:2"]', '["rank:1", "rank:2"]'))
    assert [name for name, budget in pairs(both) if budget == "rank:1"] == [
        "uniform",
        "linear-decay",
        "empirical",
        "random",
    ]
    assert ("shuffled", "rank:2") in pairs(both) and control_arms(both, "rank:1") == ()
    assert control_arms(spec(controls("[shuffled]"), ("rank:2", "rank:1"))) == ()
    least = (ARMS, "arms: [uniform, {strategy: linear-decay, options: {min_rank: 2}}]")
    assert control_arms(spec(controls("[shuffled]"), least)) == ()


OWN = (
    "analysis: {primary: []}\ncontrols: none",
    "analysis: {primary: [drop, half, linear-decay, random]}\ncontrols: [shuffled, own-shuffled, random, compute]",
)
DROPS = """arms:
  - uniform
  - {name: drop, strategy: lora-drop, scaling: rslora, train: {warmup: 0.2}}
  - {name: half, strategy: lora-drop, options: {power: 0.5, max_rank: 9}}
  - linear-decay
  - empirical
  - random"""


def test_every_hypothesis_that_measures_has_its_own_ranks_shuffled(spec: Callable[..., StudySpec]) -> None:
    own = spec(OWN, (ARMS, DROPS))
    shuffles = {arm.name: arm for arm in control_arms(own) if arm.strategy == "shuffled"}
    assert {name: arm.options for name, arm in shuffles.items()} == {
        "shuffled-drop": {"source": "lora-drop", "must_differ": False},
        "shuffled-half": {"source": "lora-drop", "max_rank": 9, "source_options": {"power": 0.5}, "must_differ": False},
    }  # linear-decay is a shape and knows nothing of the task
    drop = shuffles["shuffled-drop"]
    assert (drop.scaling, drop.train) == (own.arms[1].scaling, own.arms[1].train) and drop.scaling is not None
    matrix = matrix_of(own)
    assert matrix.shadow_of == {"shuffled-drop": "drop", "shuffled-half": "half"}
    assert [arm.name for arm in matrix.arms_with_role(Role.CHANCE)] == [*shuffles]
    assert matrix_of(spec(controls("all"))).shadow_of == {}


def test_all_controls_are_what_they_were(spec: Callable[..., StudySpec]) -> None:
    assert spec(controls("all")).controls == ["random", "shuffled", "twin", "half", "double", "compute"]


def test_own_shuffles_stand_where_their_arm_is_a_hypothesis(spec: Callable[..., StudySpec]) -> None:
    primary = ("analysis: {primary: []}", "analysis: {primary: [{arm: empirical, budget: 'rank:3'}, gora]}")
    arms = (ARMS, ARMS.replace("linear-decay", "gora"))
    own = spec(controls("[own-shuffled]"), primary, arms, ('["rank:2"]', '["rank:1", "rank:2", "rank:3"]'))
    assert [cell.key for cell in matrix_of(own).cells if cell.role is Role.CHANCE] == [
        ("shuffled-gora", "rank:2"), ("shuffled-gora", "rank:3"), ("shuffled-empirical", "rank:3"),
    ]  # fmt: skip
    assert matrix_of(spec(controls("[own-shuffled]"))).shadow_of == {}  # no hypotheses


def test_an_own_shuffle_that_is_an_arm_already_is_that_arm(spec: Callable[..., StudySpec]) -> None:
    mine = "{name: mine, strategy: shuffled, options: {source: empirical, must_differ: false}}"
    primary = ("analysis: {primary: []}", "analysis: {primary: [empirical]}")
    own = spec(controls("[own-shuffled]"), primary, (ARMS, f"arms: [uniform, empirical, {mine}]"))
    assert control_arms(own) == () and matrix_of(own).shadow_of == {"mine": "empirical"}
    taken = spec(controls("[own-shuffled]"), primary,
                 (ARMS, "arms: [uniform, empirical, {name: shuffled-empirical, strategy: gora}]"))  # fmt: skip
    assert matrix_of(taken).shadow_of == {"shuffled-empirical-control": "empirical"}


def test_shuffles_are_drawn_anew_for_every_seed() -> None:
    modules = tuple(ModuleShape(f"h.{i}.mlp.x", "mlp", i, 32, 32) for i in range(8))
    budget = resolve_budget("rank:8", modules)
    options = {"source": "linear-decay", "must_differ": False}
    control = ArmPart(name="elsewhere", strategy="shuffled", options=options)
    drawn = [make_plan(None, modules, control, budget, ScalingPart(), seed).ranks for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1] and sorted(drawn[0].values()) == sorted(drawn[1].values())


def test_half_and_double_budgets_are_trained_once(spec: Callable[..., StudySpec]) -> None:
    own = spec(controls("[half, double]"), ('budgets: ["rank:2"]', 'budgets: ["rank:2", "rank:4", "params:9_000"]'))
    assert assay_budgets(own) == ("rank:1", "rank:8", "params:4500", "params:18000")
    assert assay_budgets(spec(controls("[half]"), ("rank:2", "rank:1"))) == ()
    # However a number is written, the control's budget is the study's own.
    same = spec(controls("[half]"), ('budgets: ["rank:2"]', 'budgets: ["params:9_000", "params:4_500"]'))
    assert same.budgets == ["params:9000", "params:4500"] and assay_budgets(same) == ("params:2250",)


def test_an_arm_that_trains_first_has_the_baseline_beside_it_for_as_long(spec: Callable[..., StudySpec]) -> None:
    arms = ("arms: [uniform, linear-decay, lora-drop, {name: mine, strategy: marginal-gain, options: {runs: 3}}, "
            "{name: turned, strategy: inverted, options: {source: posthoc-svd}}]")  # fmt: skip
    own = spec(controls("[compute]"), (ARMS, arms), ("steps: 6", "steps: 200"))
    found = compute_controls(own)
    assert {arm: control.name for arm, control in found.items()} == {
        "lora-drop": "uniform-x1.5", "mine": "uniform-x10", "turned": "uniform-x1.5",
    }  # fmt: skip
    # 100 updates of a short run; of agreement two rounds of three runs and a race of three, 200 updates each.
    assert steps_of(own, found["lora-drop"]) == 200 + 100
    assert steps_of(own, found["mine"]) == 200 + (2 * 3 + 3) * 200
    assert [name for name, _ in pairs(own)][5:] == ["uniform-x1.5", "uniform-x10"]  # one for two that need the same
    runs = list(matrix_of(own).evaluation_runs(dict.fromkeys(pairs(own), 1e-3)))
    assert len({run.run_id({}) for run in runs}) == len(runs)  # a longer run is another run
    assert compute_controls(spec(controls("[compute]"))) == {}


def test_an_average_of_a_measured_plan_has_the_controls_of_its_source(spec: Callable[..., StudySpec]) -> None:
    arms = "arms: [uniform, {name: kinds, strategy: by-kind, options: {source: nested}}]"
    both = (
        "analysis: {primary: []}\ncontrols: none",
        "analysis: {primary: [kinds]}\ncontrols: [own-shuffled, compute]",
    )
    own = spec(both, (ARMS, arms), ("steps: 6", "steps: 200"))
    assert {arm: control.name for arm, control in compute_controls(own).items()} == {"kinds": "uniform-x1.25"}
    (shuffled,) = (arm for arm in control_arms(own) if arm.strategy == "shuffled")
    assert shuffled.options["source"] == "by-kind" and shuffled.options["source_options"]["source"] == "nested"
    assert matrix_of(own).shadow_of == {"shuffled-kinds": "kinds"}


def test_what_an_arm_trains_otherwise(spec: Callable[..., StudySpec]) -> None:
    arms = """arms:
  - uniform
  - {name: warm, strategy: linear-decay, train: {warmup: 0.2, multipliers: {b: 16}}}
  - {name: plain, strategy: linear-decay}"""
    own = spec((ARMS, arms), ("dropout: 0.1", "dropout: 0.1, warmup: 0.1, multipliers: {rank_exponent: 0.5}"))
    plain, warm = training_of(own, own.arms[2]), training_of(own, own.arms[1])
    assert (plain.warmup, plain.multipliers.b, plain.multipliers.rank_exponent) == (0.1, 1.0, 0.5)
    assert (warm.warmup, warm.multipliers.b, warm.multipliers.rank_exponent) == (0.2, 16.0, 0.5)
    assert warm.dropout == plain.dropout == 0.1 and steps_of(own, own.arms[1]) == 6
    ids = {run.arm.name: run.run_id({}) for run in matrix_of(own).evaluation_runs(dict.fromkeys(pairs(own), 1e-3))}
    assert len(set(ids.values())) == 3
    with pytest.raises(StudyFileError, match="the same arm as 'linear-decay'"):
        spec((ARMS, "arms: [uniform, linear-decay, {name: again, strategy: linear-decay}]"))


def test_a_grid_is_the_same_for_controls(spec: Callable[..., StudySpec]) -> None:
    own = spec(controls("all"), ("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"),
               ("seeds: {evaluation: 2}", "seeds: {evaluation: 2, tuning: 2}"))  # fmt: skip
    rates: dict[Any, set[float]] = {}
    for run in matrix_of(own).tuning_runs():
        rates.setdefault((run.arm.name, run.budget), set()).add(run.learning_rate)
    assert set(rates) == set(pairs(own)) and all(found == {1e-3, 1e-2} for found in rates.values())


def test_by_default_every_own_arm_is_a_hypothesis_at_every_budget(spec: Callable[..., StudySpec]) -> None:
    own = spec(("analysis: {primary: []}\ncontrols: none", "controls: all"), ('["rank:2"]', '["rank:2", "rank:3"]'))
    assert primary_comparisons(own) == tuple(
        Comparison(arm, budget) for arm in ("linear-decay", "empirical") for budget in ("rank:2", "rank:3")
    )


def test_named_hypotheses_are_those_alone(spec: Callable[..., StudySpec]) -> None:
    primary = "analysis: {primary: [random, {arm: empirical, budget: 'rank:3'}]}"
    own = spec(("analysis: {primary: []}", primary), ('["rank:2"]', '["rank:2", "rank:3"]'))
    assert primary_comparisons(own) == (
        Comparison("random", "rank:2"), Comparison("random", "rank:3"), Comparison("empirical", "rank:3"),
    )  # fmt: skip
    assert primary_comparisons(spec()) == ()


@pytest.mark.parametrize(
    ("primary", "complaint"),
    [
        ("[lineardecay]", "no arm is called 'lineardecay' (did you mean 'linear-decay'?)"),
        ("[uniform]", "'uniform' is the baseline"),
        ("[{arm: random, budget: 'rank:7'}]", "the study has no budget 'rank:7'; budgets: rank:2"),
    ],
)
def test_what_cannot_be_a_hypothesis_is_refused_with_the_line(
    spec: Callable[..., StudySpec], primary: str, complaint: str
) -> None:
    with pytest.raises(StudyFileError) as error:
        spec(("primary: []", f"primary: {primary}"))
    assert complaint in str(error.value) and "line 8, analysis.primary[0]" in str(error.value)


def test_an_unknown_control_is_refused(spec: Callable[..., StudySpec]) -> None:
    with pytest.raises(StudyFileError, match=r"controls\[0\].*'twim'"):
        spec(controls("[twim]"))


def test_the_baseline_is_trained_without_clipping_only_where_that_is_asked_by_name(study_file: WriteStudy) -> None:
    every = load_study(study_file(("controls: none", "controls: all")))
    assert "unclipped" not in every.spec.controls and "uniform-unclipped" not in {
        c.arm.name for c in every.matrix.cells
    }
    asked = load_study(study_file(("controls: none", "controls: [unclipped]"), name="b.yaml"))
    cell = asked.matrix.by_key["uniform-unclipped", "rank:2"]
    assert cell.role is Role.UNCLIPPED and cell.training.max_grad_norm is None and asked.spec.train.max_grad_norm == 1
    own, baseline = ({run.seed: run.run_id({}) for run in asked.matrix.evaluation_runs({key: 1e-3})}
                     for key in (cell.key, ("uniform", "rank:2")))  # fmt: skip
    assert own.keys() == baseline.keys() and not set(own.values()) & set(baseline.values())
    free = ("steps: 6", "steps: 6, max_grad_norm: null")
    nothing = load_study(study_file(("controls: none", "controls: [unclipped]"), free, name="c.yaml"))
    assert "uniform-unclipped" not in {c.arm.name for c in nothing.matrix.cells}


def test_an_arms_training_that_says_nothing_of_clipping_is_what_it_was(study_file: WriteStudy) -> None:
    arms = "[uniform, linear-decay, empirical, random]"
    warm = "[uniform, {strategy: linear-decay, train: {warmup: 2%s}}]"
    silent = load_study(study_file((arms, warm % "")))
    said = load_study(study_file((arms, warm % ", clip: true"), name="b.yaml"))
    other = load_study(study_file((arms, warm % ", clip: false"), name="c.yaml"))
    assert silent.spec.model_dump(mode="json")["arms"][1]["train"] == {
        "longer": 1.0, "warmup": 2.0, "multipliers": None,
    }  # fmt: skip
    assert silent.identity == said.identity != other.identity
    ids = [{run.run_id({}) for run in study.matrix.evaluation_runs({("linear-decay", "rank:2"): 1e-3})}
           for study in (silent, said, other)]  # fmt: skip
    assert ids[0] == ids[1] and not ids[0] & ids[2]
