"""What a configuration says of a model is what the model itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora import demo
from adaptive_lora.planning.outline import context_of, outline_from_config
from adaptive_lora.training.base import outline_of

GPT2 = {"n_embd": 24, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 64}
LLAMA = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gpt2", GPT2),
        ("gpt2", {**GPT2, "n_inner": 36, "tie_word_embeddings": False}),
        ("llama", {**LLAMA, "tie_word_embeddings": True}),
        ("llama", {**LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 8}),
        ("mistral", {**LLAMA, "tie_word_embeddings": False, "head_dim": 8}),
        ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    ],
)
def test_it_is_what_transformers_builds(family: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(family, **sizes).save_pretrained(tmp_path)
    found = outline_from_config("x", tmp_path)
    assert found == outline_of("x", tmp_path)
    assert found is not None and found.modules


def test_it_is_the_embedded_models() -> None:
    assert outline_from_config("demo", demo.model_folder()) == outline_of("demo", demo.model_folder())


def test_real_models(assets: Path) -> None:
    for folder in (assets / "models").iterdir():
        assert outline_from_config("x", folder) == outline_of("x", folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_neox", "hidden_size": 8},
        {"model_type": "gpt2", "n_embd": 24},
        {"model_type": "gpt2", **GPT2, "add_cross_attention": True},
        {"model_type": "llama", **LLAMA},  # whether embeddings are tied is not said
        {"model_type": "gpt2", **GPT2, "quantization_config": {}},
        [],
    ],
)
def test_what_it_does_not_know_it_leaves_to_transformers(config: Any, tmp_path: Path) -> None:
    assert outline_from_config("x", tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert outline_from_config("x", tmp_path) is None


@pytest.mark.parametrize(
    ("family", "sizes", "context"),
    [
        ("mpt", {"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 77}, 77),
        ("bloom", {"hidden_size": 8, "n_layer": 1, "n_head": 2}, None),
        ("bloom", {"hidden_size": 8, "n_layer": 1, "n_head": 2, "seq_length": 33}, 33),
        ("mamba2", {"hidden_size": 8, "num_heads": 4, "head_dim": 4, "n_groups": 1, "num_hidden_layers": 1}, None),
        ("xlnet", {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}, None),
        ("ctrl", {"n_embd": 8, "n_layer": 1, "n_head": 2, "dff": 8, "n_positions": 55}, 55),
    ],
)
def test_a_context_is_read_by_any_of_its_names_and_never_guessed(
    family: str, sizes: dict[str, Any], context: int | None, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(family, vocab_size=50, **sizes).save_pretrained(tmp_path)
    assert outline_of("x", tmp_path).context == context


def test_a_context_that_is_no_number_of_tokens_is_none() -> None:
    assert context_of({"max_position_embeddings": 0, "n_ctx": 12}.get) == 12
    assert context_of({"max_position_embeddings": -1, "seq_length": None}.get) is None
