"""A configuration with the older names beside the new ones is still the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from adaptive_lora.models.locate import portable_name
from adaptive_lora.models.older_keys import add_older_keys, older_keys
from adaptive_lora.training.base import load_base
from tests.export.shapes import FAMILIES, make_family

IDS = torch.tensor([[5, 9, 300, 42, 17]])


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_reads_the_same_model(kind: str, tmp_path: Path) -> None:
    folder = make_family(kind, tmp_path)
    before = load_base(kind, folder).model(IDS).logits
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    add_older_keys(folder)
    add_older_keys(folder)
    torch.testing.assert_close(load_base(kind, folder).model(IDS).logits, before, rtol=0, atol=0)
    again = transformers.AutoConfig.from_pretrained(folder)
    assert again.to_dict().get("rope_parameters") == config.get("rope_parameters")


def test_every_older_name_is_said(tmp_path: Path) -> None:
    found = {k: json.loads((make_family(k, tmp_path / k) / "config.json").read_text()) for k in FAMILIES}
    assert older_keys(found["gpt2"])["n_ctx"] == 64
    assert older_keys(found["qwen3"])["rope_theta"] == 500.0 and "rope_scaling" not in older_keys(found["qwen3"])
    gemma = older_keys(found["gemma3"])
    assert gemma["sliding_window_pattern"] == 6 and gemma["rope_local_base_freq"] != gemma["rope_theta"]


def test_scaled_positions_and_irregular_windows() -> None:
    scaled = {"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}}
    assert older_keys(scaled) == {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert older_keys({"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}) == {}
    assert older_keys({}) == {}


def test_a_folder_is_called_what_the_hub_calls_it(tmp_path: Path) -> None:
    said = tmp_path / "config.json"
    for name, expected in (("owner/base", "owner/base"), (str(tmp_path), str(tmp_path)), (None, str(tmp_path))):
        said.write_text(json.dumps({"_name_or_path": name}))
        assert portable_name(str(tmp_path)) == expected
    said.write_text("{")
    assert portable_name(str(tmp_path)) == str(tmp_path)
    assert portable_name("demo") == "demo" and portable_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
