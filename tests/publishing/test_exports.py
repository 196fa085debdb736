"""Exports from Python and of plans that nobody has trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import adaptive_lora
from adaptive_lora.cli.main import app
from adaptive_lora.errors import PlanError, UsageError
from adaptive_lora.export import mlx
from adaptive_lora.export.checked_folder import checked_folder
from adaptive_lora.export.checking import logits
from adaptive_lora.export.peft_folder import BaseFacts, write_peft
from adaptive_lora.export.reading import read_adapter
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase, load_base
from adaptive_lora.training.options import initial_a
from tests.conftest import mixed_plan
from tests.export.shapes import mixed_adapter


@pytest.fixture(scope="module")
def llama(model_folders: dict[str, Path]) -> FrozenBase:
    return load_base("llama", model_folders["llama"])


@pytest.fixture
def plan_file(llama: FrozenBase, tmp_path: Path) -> Path:
    """Ranks 1 to 5 on a tiny Llama, as `plan --out` saves them."""
    plan = mixed_plan(llama.outline.modules)
    own = {"model": llama.location, "seed": 3, "budget": "rank:3", "data": None}
    made = RankPlan(plan.strategy, plan.budget, plan.modules, plan.ranks, plan.scaling, provenance=own)
    made.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_an_untrained_plan_is_an_adapter_that_changes_nothing_yet(
    llama: FrozenBase, plan_file: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel

    (found,) = adaptive_lora.export_adapter(plan_file, tmp_path / "out", tool="vllm")
    plan, folder = RankPlan.load(plan_file), tmp_path / "out"
    assert found.untrained and found.form == "peft" and found.folder == str(folder)
    own = read_adapter(folder)
    assert own.ranks == dict(plan.ranks) and own.base_name == llama.location
    for name, update in own.modules.items():
        assert update.scaling == pytest.approx(plan.scaling_of(name)) and not update.b.any()
        wanted = initial_a(3, name, plan.ranks[name], update.d_in)
        assert torch.equal(update.a, torch.from_numpy(wanted))
    config, wanted_config = LoraConfig.from_pretrained(str(folder)), plan.to_lora_config()
    assert config.rank_pattern == wanted_config.rank_pattern and config.alpha_pattern == wanted_config.alpha_pattern
    fresh = load_base("llama", Path(llama.location))
    before = logits(fresh.model, [1, 5, 9])
    with quiet_libraries():
        model = PeftModel.from_pretrained(fresh.model, str(folder), is_trainable=True)
    assert torch.equal(logits(model, [1, 5, 9]), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.trainable_parameters


def test_its_card_says_untrained_and_compat_too(plan_file: Path, tmp_path: Path) -> None:
    adaptive_lora.export_adapter(RankPlan.load(plan_file), str(tmp_path / "out"), form="peft")
    card, compat = (tmp_path / "out" / name for name in ("README.md", "compat.json"))
    text = card.read_text()
    assert "parameters, **untrained**" in text and "## Load it, once it is trained" in text
    assert "| training | none: an adapter at step 0" in text and "A from the seed 3, B zero" in text
    assert "trained parameters" not in text and "differ by at most" not in text
    told = json.loads(compat.read_text())
    assert told["check"]["untrained"] is True and told["prompts"] == []
    assert checked_folder(tmp_path / "out").files.keys() == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "compat.json",
    }  # fmt: skip


def test_the_verb_says_untrained_and_how_to_go_on(plan_file: Path, llama: FrozenBase, tmp_path: Path) -> None:
    done = call(plan_file, "--for", "vllm", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "untrained: B is zero, and the adapted model is the base model" in done.stdout
    assert f"adaptive-lora plan --model {llama.location} --plan {plan_file} --for TRAINER" in done.stdout
    assert "vLLM (0.33), once it is trained:" in done.stdout and "--max-lora-rank 8 " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--form", "padded"), "as padded it would be the base model. Take the form peft"),
        (("--form", "merged"), "as merged it would be the base model. Take the form peft"),
        (("--for", "llama.cpp"), "llama.cpp does not read the one form that it has, peft (peft, lm-eval, vllm"),
        (("--form", "peft", "--prompt", "Hi"), "to any --prompt it says what its base says"),
        (("--form", "peft", "--arm", "uniform"), "--arm and --budget are of a study"),
    ],
)
def test_what_makes_no_sense_of_an_untrained_plan_is_refused(
    plan_file: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = call(plan_file, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2 and told in done.stderr, done.stderr
    if "--arm" not in arguments:
        assert f"Train it first (`adaptive-lora plan --model MODEL --plan {plan_file} --for TRAINER`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_a_place_a_model_and_its_own(plan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Name a folder for the export with --out"):
        adaptive_lora.export_adapter(plan_file, form="peft")
    with pytest.raises(PlanError, match=r"It is a plan of another model: demo has no module model\.layers\.0"):
        adaptive_lora.export_adapter(plan_file, tmp_path / "out", form="peft", model="demo")
    plan = RankPlan.load(plan_file)
    bare = RankPlan(plan.strategy, plan.budget, plan.modules, plan.ranks, plan.scaling)
    with pytest.raises(UsageError, match="does not say which model it is of: name it with --model"):
        adaptive_lora.export_adapter(bare, tmp_path / "out", form="peft")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    plan.save(tmp_path / "run" / "plan.json")
    with pytest.raises(UsageError, match="was trained from it and lies beside it: export that folder"):
        adaptive_lora.export_adapter(tmp_path / "run" / "plan.json", tmp_path / "out", form="peft")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_plan_on_gpt2_is_no_adapter_for_tools_that_read_none_there(tmp_path: Path) -> None:
    plan = adaptive_lora.plan("demo", budget="rank:1", targets=["attn.c_proj"])
    with pytest.raises(UsageError, match=r"vLLM reads no adapters on the transposed weights of gpt2 right: train"):
        adaptive_lora.export_adapter(plan, tmp_path / "out", tool="vllm")


def test_an_adapters_folder_from_python(llama: FrozenBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx, "is_installed", lambda: False)
    facts = BaseFacts(llama.location, llama.location, None, "llama", llama.outline.modules)
    (tmp_path / "trained").mkdir()
    write_peft(mixed_adapter(llama.outline.modules), facts, tmp_path / "trained")
    (found,) = adaptive_lora.export_adapter(tmp_path / "trained", tmp_path / "out", tool="sglang", prompts=["Hi"])
    assert found.form == "padded" and found.check.passed and not found.untrained and len(found.probes) == 5
    assert checked_folder(tmp_path / "out").base_model == llama.location
    with pytest.raises(UsageError, match="There is no tool 'vlm'"):
        adaptive_lora.export_adapter(tmp_path / "trained", tmp_path / "more", tool="vlm")
    with pytest.raises(UsageError, match="overwrites nothing"):
        adaptive_lora.export_adapter(tmp_path / "trained", tmp_path / "out", form="unit")
