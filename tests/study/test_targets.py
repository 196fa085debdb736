"""Targets that exist, texts that fit, tokens that the model knows: said or refused before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from adaptive_lora import api, demo
from adaptive_lora.cli.main import app
from adaptive_lora.errors import ModelError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.outline import ModelOutline
from adaptive_lora.study.engines import finish as engines
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from adaptive_lora.study.targets import check_called, context_warnings, targets_of, warnings_of
from adaptive_lora.training import peft_check
from adaptive_lora.training.base import outline_of_model
from tests.conftest import mixed_plan
from tests.training.conftest import tiny_config

TEXT = ModuleShape("model.layers.0.self_attn.q_proj", "attention", 0, 10, 10)
PICTURE = ModuleShape("tower.layers.0.self_attn.q_proj", "attention", 0, 20, 10)
ROUTER = ModuleShape("model.layers.0.mlp.router", "mlp", 0, 10, 5)
OUTLINE = ModelOutline("two towers", (TEXT,), 1000, context=48, uncalled=(PICTURE, ROUTER))


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture with a dense layer, whose plans for all linear layers PEFT builds otherwise."""
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **tiny_config(head_dim=8, num_experts=4), num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0]
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.model_folder() / name, folder)
    return folder


def test_a_name_stands_for_what_text_passes_through() -> None:
    assert targets_of(OUTLINE, "all-linear") == targets_of(OUTLINE, ["q_proj"]) == (TEXT,)
    for entry in ("router", PICTURE.name):
        with pytest.raises(
            ModelError, match=rf"names '{entry}', but text does not pass .* there are: self_attn.q_proj"
        ):
            targets_of(OUTLINE, ["q_proj", entry])


def test_what_is_left_out_is_said_with_its_share() -> None:
    found = warnings_of(OUTLINE, [TEXT], ["uniform"])
    assert any(
        "leaves out 2 linear layers of two towers" in text and "25 % of its parameters" in text for text in found
    )
    assert not any("leaves out" in text for text in warnings_of(replace(OUTLINE, uncalled=()), [TEXT], ["uniform"]))
    failed = replace(OUTLINE, pass_failed="ValueError: why")
    assert any("could not be tried (ValueError: why)" in text for text in warnings_of(failed, [TEXT], ["uniform"]))


def test_a_loaded_model_that_calls_less_than_its_configuration_said_is_refused() -> None:
    check_called(OUTLINE, [TEXT])
    with pytest.raises(ModelError, match=r"does not pass through 1 target modules of two towers \(mlp.router\)"):
        check_called(OUTLINE, [TEXT, ROUTER])


def test_a_model_of_which_a_part_is_read_is_said_to_be_one() -> None:
    """Llama 4 with pictures is read as its text part, whose module names fit the whole model only by their endings."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config()))
    model.config.architectures = ["LlamaWithPictures"]
    outline = outline_of_model("whole", model)
    (said,) = warnings_of(outline, outline.modules, [])
    assert "whole is an LlamaWithPictures, of which AutoModelForCausalLM reads a part" in said
    model.config.architectures = None
    assert not warnings_of(outline_of_model("plain", model), outline.modules, [])


def test_a_group_that_a_model_lacks_is_not_advised() -> None:
    modules = [ModuleShape("model.layers.0.mixer.q_proj", "other", 0, 8, 8)]
    with pytest.raises(ModelError, match=r"'attention', which matches no module of this model\. It has: mixer"):
        targets_of(ModelOutline("x", tuple(modules), 64, None), "attention")
    with pytest.raises(ModelError, match=r"did you mean 'q_proj'\?"):
        targets_of(ModelOutline("x", tuple(modules), 64, None), "qproj")


def test_a_context_shorter_than_asked_is_said_and_none_is_no_limit() -> None:
    (said,) = context_warnings(OUTLINE, 64)
    assert "takes 48 tokens at most" in said and "`data.max_length` asks for 64" in said
    assert context_warnings(OUTLINE, 48) == []
    endless = replace(OUTLINE, context=None)
    assert context_warnings(endless, 10**6) == [] and endless.within(10**6) == 10**6


def test_experts_as_targets_are_refused_with_their_cost(
    mixture: Path, study_file: Callable[..., Path], model_folders: dict[str, Path]
) -> None:
    """Two stacks of 4 experts in one layer: 4 (24 + 32) and 4 (16 + 24) parameters a unit of rank, in either engine."""
    with pytest.raises(
        ModelError, match=r"experts.gate_up_proj, 4 experts\).* costs 384 parameters.*rank 8 3,072"
    ) as refused:
        api.plan(mixture, targets=["q_proj", "experts"])
    assert "`targets: attention` (8 of 11 modules); tried just now" in str(refused.value)
    path = study_file(
        (str(model_folders["gpt2"]), str(mixture)), ("engine: bank", "engine: reference\ntargets: experts")
    )
    with pytest.raises(ModelError, match="Neither engine trains stacks of experts"):
        prepare(load_study(path), "cpu")


def test_a_plan_that_peft_builds_otherwise_is_not_written(mixture: Path, tmp_path: Path) -> None:
    out, peft = tmp_path / "plan.json", tmp_path / "peft"
    refused = call("plan", "--model", mixture, "--out", out, "--peft", peft)
    assert refused.exit_code == 2 and "Set `targets: attention`" in refused.stderr
    assert not out.exists() and not peft.exists()
    assert call("plan", "--model", mixture, "--targets", "attention", "--peft", peft).exit_code == 0
    assert len(json.loads((peft / "adapter_config.json").read_text())["target_modules"]) == 8


def test_a_study_that_peft_would_build_otherwise_does_not_begin(
    mixture: Path, study_file: Callable[..., Path], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    path = study_file((str(model_folders["gpt2"]), str(mixture)))
    refused = call("run", path, "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "gate_proj, up_proj, down_proj" in refused.stderr
    assert not (tmp_path / "out").exists()


def fewer_rows(folder: Path, rows: int, to: Path) -> Path:
    """A model whose embedding was cut to `rows`, with the tokenizer that it had."""
    copy = shutil.copytree(folder, to)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(copy)
    return copy


def test_a_token_without_a_row_is_named_where_it_occurs(
    model_folders: dict[str, Path], study_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The tokenizer is larger than the model in both; only what occurs in the data counts."""
    records = tmp_path / "records.jsonl"
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folders["gpt2"])
    rows = [{"prompt": f"a{i}", "completion": "b"} for i in range(3)]
    records.write_text("\n".join(map(json.dumps, rows)))
    used = 1 + max(max(tokenizer(text)["input_ids"]) for row in rows for text in row.values())
    enough = fewer_rows(model_folders["gpt2"], used, tmp_path / "enough")
    small = fewer_rows(model_folders["gpt2"], used - 1, tmp_path / "small")
    assert used < len(tokenizer)
    assert call("data", "profile", records, "--model", enough).exit_code == 0
    refused = call("data", "profile", records, "--model", small)
    unknown = tokenizer.decode([used - 1])
    for part in (f"{len(tokenizer):,} tokens", f"embedding {used - 1:,} rows", f"token {used - 1:,}, {unknown!r}"):
        assert refused.exit_code == 2 and part in refused.stderr
    path = study_file((str(model_folders["gpt2"]), str(small)))
    refused = call("run", path, "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "has no row" in refused.stderr and not (tmp_path / "out").exists()


def test_a_study_says_that_its_texts_are_cut(study_file: Callable[..., Path]) -> None:
    prepared = prepare(load_study(study_file(("max_length: 64", "max_length: 100"))), "cpu")
    assert any("takes 64 tokens at most" in text for text in prepared.warnings())
    assert prepared.splits.encoder.max_length == 64


def test_every_other_set_of_modules_is_tried_once(
    study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(load_study(study_file()), "cpu")
    tried: list[set[str]] = []
    monkeypatch.setattr(peft_check, "check_with_peft", lambda model, plan, *_: tried.append(set(plan.ranks)))
    some = prepared.modules[1:]
    for plan in (mixed_plan(prepared.modules), mixed_plan(some), mixed_plan(some, shift=1)):
        prepared.check_plan(plan)
    assert tried == [{m.name for m in some}]


def test_an_arm_that_peft_builds_otherwise_and_an_adapter_that_was_not_written_whole_fail(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One arm of each kind; what is wrong with one costs no other."""
    whole, check = engines.save_adapter, peft_check.check_with_peft

    def cut(weights: Any, plan: Any, *more: Any) -> None:
        last = list(weights)[-1]
        whole({name: pair for name, pair in weights.items() if name != last}, plan, *more)

    def refusing(model: Any, plan: Any, *more: Any) -> None:
        if not any("mlp" in name for name in plan.ranks):
            raise ModelError("attention is not built")
        check(model, plan, *more)

    monkeypatch.setattr(engines, "save_adapter", cut)
    monkeypatch.setattr(peft_check, "check_with_peft", refusing)
    few = ("[uniform, linear-decay, empirical, random]", "[uniform, attention-only]")
    status = run_study(load_study(study_file(few, ("steps: 6", "steps: 1"))), tmp_path / "out")
    assert (status.completed, status.failed) == (0, 4)
    found = {str(trouble["error"]) for trouble in status.troubles}
    assert any("attention is not built" in text for text in found)
    assert any("is not the plan that was trained: the tensor" in text and "missing" in text for text in found)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files")
def test_a_place_that_takes_no_files_is_named_before_anything_is_planned() -> None:
    refused = call("plan", "--model", "nobody/nothing", "--peft", "/proc/x")
    assert refused.exit_code == 2 and "/proc/x cannot be written" in refused.stderr
