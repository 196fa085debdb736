"""Quantised bases by the public functions and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import adaptive_lora
from adaptive_lora import demo
from adaptive_lora.cli.main import app
from adaptive_lora.errors import UsageError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.quantised import quantisation_config

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no quantised bases here")


def printed(*more: str) -> dict[str, Any]:
    asked = ["plan", "--model", "demo", "--strategy", "stable-rank", "--budget", "rank:4", "--json", *more]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_plan_measures_the_weights_that_are_kept() -> None:
    plain, nf4, int8 = printed(), printed("--quantise", "nf4"), printed("--quantise", "int8")
    assert plain["model_note"] is None and nf4["model_note"] == "linear layers in NF4 by bitsandbytes"
    assert nf4["total_parameters"] == plain["total_parameters"]
    assert nf4["trainable_parameters"] == plain["trainable_parameters"] == int8["trainable_parameters"]
    assert int8["ranks"] == pytest.approx(plain["ranks"], abs=1)


def test_a_kind_that_there_is_not_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["plan", "--model", "demo", "--quantise", "nf5"])
    assert result.exit_code == 2 and "nf4" in result.output


def test_an_adapter_is_trained_by_name_and_on_a_loaded_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = adaptive_lora.plan("demo", budget="rank:2")
    options = TrainingOptions(learning_rate=1e-3, steps=2, batch_size=2)
    with quiet_libraries():
        loaded = AutoModelForCausalLM.from_pretrained(
            demo.model_folder(), dtype="float32", quantization_config=quantisation_config("nf4", "float32")
        )
        tokenizer = AutoTokenizer.from_pretrained(demo.model_folder())
    given: dict[str, Any] = {"data": "demo:fine-tuning", "options": options, "max_length": 64}
    by_name = adaptive_lora.train(plan, "demo", out=tmp_path / "name", quantise="nf4", device="cpu", **given)
    own = adaptive_lora.train(plan, loaded, out=tmp_path / "loaded", tokenizer=tokenizer, **given)
    plain = adaptive_lora.train(plan, "demo", out=tmp_path / "plain", device="cpu", **given)
    assert by_name == own and by_name != plain and by_name == pytest.approx(plain, rel=0.1)
    written = json.loads((tmp_path / "name" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(demo.model_folder())  # which is not quantised
    with pytest.raises(UsageError, match=r"weights in nf4, got quantise='int8'"):
        adaptive_lora.train(plan, loaded, out=tmp_path / "x", tokenizer=tokenizer, quantise="int8", **given)
