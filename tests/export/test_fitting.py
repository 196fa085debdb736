"""An adapter from elsewhere against its base model, and its ranks as a plan and as an arm of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import AdapterError, BudgetError
from adaptive_lora.export.fitting import fitted_weights
from adaptive_lora.export.rank_plan import rank_plan, study_targets
from adaptive_lora.export.reading import read_adapter, read_outline
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import outline_of_model
from tests.export.conftest import Saver, fresh_model
from tests.export.test_reading import SMALL
from tests.fresh import NEVER_ASKED, READING, fresh


@pytest.fixture(scope="module")
def modules() -> tuple[ModuleShape, ...]:
    return outline_of_model("tiny", fresh_model("llama")).modules


def renamed(modules: tuple[ModuleShape, ...], start: str, more: str) -> tuple[ModuleShape, ...]:
    return tuple(ModuleShape(more + m.name.removeprefix(start), m.kind, m.depth, m.d_in, m.d_out) for m in modules)


def test_an_adapter_fits_the_model_that_it_was_made_on(saved: Saver, modules: tuple[ModuleShape, ...]) -> None:
    weights = read_adapter(saved(**SMALL))
    assert fitted_weights(weights, modules, "here") == weights


@pytest.mark.parametrize(
    ("start", "more", "note"),
    [("model.", "", "with 'model.' before"), ("", "language_model.", "without 'language_model.' before")],
)
def test_names_of_another_class_of_the_model_are_put_right(
    start: str, more: str, note: str, saved: Saver, modules: tuple[ModuleShape, ...]
) -> None:
    weights = read_adapter(saved(**SMALL))
    found = fitted_weights(weights, renamed(modules, start, more), "here")
    assert list(found.modules) == [more + name.removeprefix(start) for name in weights.modules]
    assert all(torch.equal(a.a, b.a) for a, b in zip(found.modules.values(), weights.modules.values(), strict=True))
    assert note in found.notes[-1]


def test_all_that_does_not_fit_is_said(saved: Saver, modules: tuple[ModuleShape, ...]) -> None:
    weights = read_adapter(saved(target_modules=["q_proj", "down_proj"]))
    other = tuple(
        ModuleShape(m.name, m.kind, m.depth, m.d_in + (m.kind == "mlp"), m.d_out)
        for m in modules
        if "1.self_attn.q" not in m.name
    )
    with pytest.raises(AdapterError) as refused:
        fitted_weights(weights, other, "here")
    assert [line[:60] for line in refused.value.complaints] == [
        "its module model.layers.1.self_attn.q_proj is none of the ba",
        "its module model.layers.0.mlp.down_proj has the size 12 × 8,",
        "its module model.layers.1.mlp.down_proj has the size 12 × 8,",
        "Give the base model that it was trained on.",
    ]


def test_ranks_as_a_plan_as_they_are_and_on_a_budget(saved: Saver) -> None:
    outline = read_outline(saved(r=1, lora_alpha=3, target_modules=["q_proj"], rank_pattern={r".*1\..*": 3}))
    same = rank_plan(outline)
    assert list(same.ranks.values()) == [1, 3]
    assert same.budget == same.trainable_parameters == 4 * 16
    assert same.scaling.reference_scaling == 2.0  # 3 and 1: not one scaling
    wider = rank_plan(outline, "rank:4")
    assert list(wider.ranks.values()) == [2, 6]
    assert wider.trainable_parameters == wider.budget == 2 * 4 * 16
    assert rank_plan(read_outline(saved(**SMALL))).scaling.at(8) == 1.5
    with pytest.raises(BudgetError):
        rank_plan(outline, "params:5")


def test_targets_of_a_study_are_named_in_few_words(saved: Saver, modules: tuple[ModuleShape, ...]) -> None:
    def named(**fields: Any) -> str:
        return study_targets(rank_plan(read_outline(saved(**fields))), modules)

    assert named(target_modules="all-linear") == "all-linear"
    assert named(target_modules=["q_proj", "up_proj"]) == "[q_proj, up_proj]"
    assert named(target_modules=["q_proj"], layers_to_transform=[1]) == "[model.layers.1.self_attn.q_proj]"


@pytest.fixture
def on_demo(tmp_path: Path) -> Path:
    """An adapter of the embedded model, saved by PEFT, whose ranks cost what a uniform rank 4 costs."""
    from adaptive_lora import plan
    from adaptive_lora.study.prepare import open_base
    from adaptive_lora.training.adapter import attached, save_adapter, weights_of

    made = plan("demo", "linear-decay", "rank:4", options={"slope": -1})
    base = open_base("demo")
    with attached(base, made, 0) as model:
        save_adapter(weights_of(model), made, tmp_path / "adapter", base)
    made.save(tmp_path / "made.json")
    return tmp_path / "adapter"


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_verb_shows_and_writes_the_ranks(on_demo: Path, tmp_path: Path) -> None:
    made = RankPlan.load(tmp_path / "made.json")
    shown = call("adapter", on_demo, "--model", "demo", "--out", tmp_path / "theirs.json")
    assert shown.exit_code == 0, shown.output
    assert f"{len(made.ranks)} modules, ranks " in shown.output and "49,152 trainable parameters" in shown.output
    assert "targets: all-linear\nbudgets: [params:49152]\narms: [uniform, {name: theirs, ranks: " in shown.stderr
    assert RankPlan.load(tmp_path / "theirs.json").ranks == made.ranks
    told = json.loads(call("adapter", on_demo, "--budget", "rank:2", "--json").stdout)
    assert told["trainable_parameters"] == told["budget_parameters"] == 49152 // 2
    assert told["carried"] and told["ranks"].keys() == made.ranks.keys()


def test_the_verb_refuses_what_is_no_adapter_and_another_base(on_demo: Path, tmp_path: Path, saved: Saver) -> None:
    (tmp_path / "empty").mkdir()
    nothing = call("adapter", tmp_path / "empty")
    assert nothing.exit_code == 2 and "has no adapter_config.json" in nothing.stderr
    other = call("adapter", on_demo, "--budget", "params:1")
    assert other.exit_code == 2 and "must be at least" in other.stderr
    embedding = call("adapter", saved(target_modules=["embed_tokens"]))
    assert embedding.exit_code == 2 and "adapters of an embedding" in embedding.stderr
    misfit = call("adapter", saved(**SMALL), "--model", "demo")
    assert misfit.exit_code == 2 and "Give the base model that it was trained on." in misfit.stderr


def test_ranks_of_an_adapter_are_an_arm_at_the_same_parameters(on_demo: Path, tmp_path: Path) -> None:
    from adaptive_lora import load_study
    from adaptive_lora.study.preflight import check_equal_cost, checked_budgets
    from adaptive_lora.study.prepare import open_outline
    from adaptive_lora.study.targets import targets_of

    assert call("adapter", on_demo, "--model", "demo", "--out", tmp_path / "theirs.json").exit_code == 0
    (tmp_path / "study.yaml").write_text(
        "name: theirs\nmodel: {name: demo}\n"
        "data: {source: demo:fine-tuning, train: 20, validation: 20, test: 20}\n"
        "budgets: [rank:4]\narms: [uniform, {name: theirs, ranks: theirs.json}]\n"
        "seeds: {evaluation: 2}\ntrain: {epochs: 1, learning_rate: 1e-3}\ncontrols: none\n"
    )
    study = load_study(tmp_path / "study.yaml").parsed
    modules = targets_of(open_outline("demo"), study.spec.targets)
    check_equal_cost(study, modules, checked_budgets(study, modules))
    assert [arm.name for arm in study.spec.arms] == ["uniform", "theirs"]


def test_the_verb_imports_no_torch(saved: Saver) -> None:
    code = (
        "from pathlib import Path; from adaptive_lora.export.reading import read_outline; "
        "from adaptive_lora.export.rank_plan import rank_plan; import adaptive_lora.cli.adapter; "
        f"rank_plan(read_outline(Path({str(saved(**SMALL))!r})))\n"
    )
    done = fresh(READING).run(code + NEVER_ASKED)
    assert done.returncode == 0, done.stderr
