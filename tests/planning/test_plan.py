"""Plans as values: scaling rules, files, PEFT's configuration, fixed ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adaptive_lora.errors import PlanError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling, fixed_ranks
from tests.conftest import mixed_plan

MODULES = tuple(
    ModuleShape(f"transformer.h.{b}.{role}", kind, b, 8, 8, True)
    for b in (0, 1, 10)
    for role, kind in (("attn.c_proj", "attention"), ("mlp.c_proj", "mlp"))
)


@pytest.mark.parametrize(
    ("rule", "at_4", "at_16"),
    [("constant", 2.0, 2.0), ("rslora", 2.0 * 2**0.5, 2.0 / 2**0.5), ("alpha-over-r", 4.0, 1.0)],
)
def test_scaling_rules_agree_at_the_reference_rank(rule: str, at_4: float, at_16: float) -> None:
    scaling = Scaling(rule, reference_scaling=2.0, reference_rank=8)  # type: ignore[arg-type]
    assert scaling.at(8) == 2.0
    assert scaling.at(4) == pytest.approx(at_4, rel=1e-15)
    assert scaling.at(16) == pytest.approx(at_16, rel=1e-15)


def test_alpha_over_r_is_a_constant_alpha() -> None:
    plan = mixed_plan(MODULES, "alpha-over-r")
    assert {round(plan.alpha_of(m.name), 12) for m in MODULES} == {6.0}


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(PlanError, match=r"constant, rslora or alpha-over-r .* got 'rs-lora'"):
        Scaling("rs-lora")  # type: ignore[arg-type]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = mixed_plan(MODULES, "rslora")
    plan.save(tmp_path / "plan.json")
    assert RankPlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "strategy": "x"}'])
def test_torn_or_foreign_plans_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(PlanError):
        RankPlan.load(tmp_path / "plan.json")


def test_a_missing_plan_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="adaptive-lora plan --out"):
        RankPlan.load(tmp_path / "none.json")


def test_peft_keys_match_one_module_each() -> None:
    """PEFT reads a key as a pattern at dot boundaries: h.1 must not catch h.10, attn.c_proj not mlp.c_proj."""
    config = mixed_plan(MODULES).to_lora_config()
    names = [m.name for m in MODULES]
    for pattern in (config.rank_pattern, config.alpha_pattern):
        assert len(pattern) == len(names)
        for key in pattern:
            assert sum(bool(re.match(rf"(.*\.)?({key})$", name)) for name in names) == 1
    assert config.fan_in_fan_out is True
    assert config.use_rslora is False


def test_plans_refuse_missing_modules_and_rank_zero() -> None:
    ranks = {m.name: 1 for m in MODULES}
    with pytest.raises(PlanError, match="ranks and modules differ"):
        RankPlan("ranks", 1, MODULES[1:], ranks, Scaling())
    with pytest.raises(PlanError, match="leave a module out"):
        RankPlan("ranks", 1, MODULES, {**ranks, MODULES[0].name: 0}, Scaling())


def test_fixed_ranks_take_the_longest_name() -> None:
    ranks = fixed_ranks({"c_proj": 2, "mlp.c_proj": 3, "1.mlp.c_proj": 5}, MODULES, "file")
    assert [ranks[m.name] for m in MODULES] == [2, 3, 2, 5, 2, 3]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"c_proj": 0}, "whole numbers from 1"),
        ({"c_proj": True}, "whole numbers from 1"),
        ({"attn.c_proj": 2}, "no rank for transformer.h.0.mlp.c_proj"),
        ({"c_proj": 2, "c_fc": 1}, "'c_fc' matches no target module"),
    ],
)
def test_fixed_ranks_must_fit_the_model(pattern: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fixed_ranks(pattern, MODULES, "file")


def test_plan_json_is_plain(tmp_path: Path) -> None:
    assert json.loads(json.dumps(mixed_plan(MODULES).to_json(), allow_nan=False))["trainable_parameters"] > 0
