"""Bases: what is found in them, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adaptive_lora.errors import ModelError, UsageError
from adaptive_lora.training.base import FrozenBase, check_device, load_base, outline_of

GPT2_MEDIUM = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
    "n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip


def test_shapes_come_from_the_module_and_not_from_its_weight(base: FrozenBase) -> None:
    """Conv1D stores (in, out), Linear (out, in); a rank-one update must fit either way."""
    for m in base.outline.modules:
        module = base.model.get_submodule(m.name)
        out = module(torch.zeros(2, m.d_in))
        assert out.shape == (2, m.d_out)
        stored = tuple(module.weight.shape)
        assert stored == ((m.d_in, m.d_out) if m.fan_in_fan_out else (m.d_out, m.d_in))


def test_output_layer_and_embeddings_are_not_targets(base: FrozenBase) -> None:
    assert not any("lm_head" in m.name or "wte" in m.name or "embed" in m.name for m in base.outline.modules)
    assert len(base.outline.modules) == 3 * (4 if base.name == "gpt2" else 7)
    assert {m.kind for m in base.outline.modules} == {"attention", "mlp"}


def test_the_base_is_frozen_and_quiet(base: FrozenBase) -> None:
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training


def test_the_outline_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2_MEDIUM))
    outline = outline_of("medium", tmp_path)
    assert len(outline.modules) == 96
    assert outline.total_parameters == 354_823_168
    assert outline.context == 1024


def test_outline_and_loaded_model_agree(base: FrozenBase, model_folders: dict[str, Path]) -> None:
    assert outline_of(base.name, model_folders[base.name]) == base.outline


def test_revision_is_a_hash_of_the_content(model_folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(model_folders["gpt2"], tmp_path / "copy")
    same = load_base("x", copy).revision
    assert same == load_base("y", model_folders["gpt2"]).revision
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "note": 1}))
    assert load_base("x", copy).revision != same


def test_half_precision_weights_can_be_read_in_full(embedded: FrozenBase) -> None:
    assert embedded.model.dtype == torch.float32


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "no such"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_base(name, name)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_base("x", tmp_path)


def test_weights_in_pickles_are_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(model_folders["gpt2"], tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Only safetensors are read"):
        load_base("x", copy)


def test_corrupt_weights_are_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(model_folders["gpt2"], tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_base("x", copy)


def test_a_configuration_of_nonsense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GPT2_MEDIUM, "n_layer": "many"}))
    with pytest.raises(ModelError, match="could not be loaded"):
        outline_of("x", tmp_path)


ARCHITECTURES = {
    "opt": {"ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "mistral": {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "phi3": {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0},
    "bloom": {"n_layer": 2, "n_head": 2},
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_kinds_of_modules_are_found_in_other_architectures(kind: str, tmp_path: Path) -> None:
    config = {"model_type": kind, "hidden_size": 32, "vocab_size": 100, "eos_token_id": 1, "bos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, **ARCHITECTURES[kind]}))
    outline = outline_of(kind, tmp_path)
    kinds = {m.kind for m in outline.modules}
    assert kinds == {"attention", "mlp"} and {m.depth for m in outline.modules} == {0, 1}
    assert outline.fused_parameters == 0


def test_fused_experts_are_counted(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
              "num_local_experts": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    outline = outline_of("mixtral", tmp_path)
    in_modules = sum(1 for m in outline.modules if m.kind == "mlp")
    # transformers 5 fuses the experts; before, each was a module of its own.
    assert (outline.fused_parameters > 0.5 * outline.total_parameters) != (in_modules > 0)


def test_devices_that_are_not_there_are_refused() -> None:
    assert check_device("cpu") == torch.device("cpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UsageError, match=f"no device '{device}' here; there is: cpu"):
            check_device(device)


def test_a_hub_name_without_the_hub_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing could not be loaded.*"):
        load_base("nobody/nothing", "nobody/nothing")
