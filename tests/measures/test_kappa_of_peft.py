"""Our choice of modules by condition number against PEFT's own KappaTune selector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.helpers import KappaTuneSelector, find_kappa_target_modules

from adaptive_lora.errors import TrainingError
from adaptive_lora.measures.weights import condition_numbers
from adaptive_lora.planning.budget import resolve_budget
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.kappa import Options, best_conditioned
from adaptive_lora.study.plan_task import make_plan
from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.training.base import FrozenBase, load_base


def chosen(base: FrozenBase, top_p: float) -> list[str]:
    modules = base.outline.modules
    scores = {"condition-number": condition_numbers(base, modules)}
    return [m.name for m in best_conditioned(modules, scores, 0, Options(top_p=top_p))]


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.01, 1.0])
def test_the_modules_are_those_of_peft(assets: Path, top_p: float) -> None:
    """PEFT is given the decoder: the output layer is no target module here."""
    base = load_base("stories260K", assets / "models" / "stories260K")
    found = find_kappa_target_modules(base.model.model, top_p=top_p, show_progress=False)
    assert found["target_parameters"] is None
    assert chosen(base, top_p) == [f"model.{name}" for name in found["target_modules"] or []]


def test_the_numbers_are_those_of_peft(base: FrozenBase) -> None:
    """PEFT looks at `nn.Linear` alone and finds nothing in GPT-2; a turned weight has the same singular values."""
    selector, own = KappaTuneSelector(base.model, show_progress=False), condition_numbers(base, base.outline.modules)
    theirs = [name for name in selector.get_best_targets() if name != "lm_head"]
    assert theirs == ([] if base.name == "gpt2" else chosen(base, 1.0))
    for name, kappa in own.items():
        sigma = torch.linalg.svdvals(base.model.get_submodule(name).weight.detach().double())
        assert kappa == pytest.approx(float(sigma[0] / sigma[-1]), rel=1e-3)
        assert selector._condition_numbers is not None
        assert kappa == pytest.approx(selector._condition_numbers.get(name, kappa), rel=1e-6)


def test_a_plan_leaves_the_others_out(base: FrozenBase) -> None:
    modules = base.outline.modules
    arm = ArmPart(name="kappa", strategy="kappa", options={"top_p": 0.25})
    plan = make_plan(base, modules, arm, resolve_budget("rank:2", modules), ScalingPart(), seed=0)
    assert set(plan.ranks) == set(chosen(base, 0.25))
    assert len(plan.ranks) + len(plan.left_out) == len(modules)
    assert plan.scores is not None and plan.scores.keys() == plan.ranks.keys()


def test_a_weight_that_is_not_finite_is_an_error(base: FrozenBase) -> None:
    name = base.outline.modules[0].name
    with torch.no_grad():
        base.model.get_submodule(name).weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=f"condition number of {name} is not finite"):
        condition_numbers(base, base.outline.modules)


def test_half_a_module_is_none_and_none_is_one(base: FrozenBase) -> None:
    strategy = find_strategy("kappa")
    assert len(chosen(base, 1e-6)) == 1
    assert check_options(strategy, {"top_p": "0.3"}).model_dump()["top_p"] == 0.3
