"""The examples train the plan: each is run as it stands, on a tiny model, and its adapter is read back."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from adaptive_lora.demo.tasks import generate
from adaptive_lora.training.adapter import save_config, tensor_name
from adaptive_lora.training.base import load_base
from tests.export.conftest import pasted_plan

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.py"))


def test_there_are_three_and_none_is_long() -> None:
    assert [path.name for path in EXAMPLES] == ["bare_loop.py", "with_sft_trainer.py", "with_trainer.py"]
    assert all(len(path.read_text().splitlines()) <= 40 for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_the_plan(
    path: Path,
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file

    if "sft" in path.stem and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL, of the extra `dev`, is not installed")
    model = model_folders["llama"]
    plan = pasted_plan(load_base("llama", model).outline.modules)
    save_config(plan.to_lora_config(), tmp_path / "my-plan")
    lines = [json.dumps({"prompt": r["instruction"], "completion": r["output"]}) for r in generate("fine-tuning", 8)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    arguments = [str(model), str(tmp_path / "my-plan"), str(tmp_path / "records.jsonl"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        runpy.run_path(str(path), run_name="__main__")
    assert f"trainable params: {plan.trainable_parameters:,} " in capfd.readouterr().out
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(plan.modules)
    for m in plan.modules:
        trained = tensors[tensor_name(m.name, "B")]
        assert tuple(trained.shape) == (m.d_out, plan.ranks[m.name]) and trained.abs().max() > 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    wanted = plan.to_lora_config()
    assert config["rank_pattern"] == wanted.rank_pattern and config["alpha_pattern"] == wanted.alpha_pattern
