"""Tiny models of four families, and adapters of mixed ranks and scalings that leave a module out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from adaptive_lora import demo
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.training.base import FrozenBase, load_base

RANKS = (2, 4, 5, 12)
LEFT_OUT = 3
"""Which of the modules has no adapter."""


def _text(**own: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 768, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16}
    return {**sizes, **heads, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **own}


def _configs() -> Mapping[str, Callable[[], Any]]:
    import transformers

    gpt2 = {"vocab_size": 768, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0}
    # A rotary base that no reader has as its default: one that overlooks it is seen.
    turned = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    return {
        "gpt2": lambda: transformers.GPT2Config(**gpt2, eos_token_id=0),
        "llama": lambda: transformers.LlamaConfig(**_text(**turned), tie_word_embeddings=True),
        "qwen3": lambda: transformers.Qwen3Config(**_text(**turned), tie_word_embeddings=True),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            # Every sixth block sees the whole text: llama.cpp and mlx-lm know no other pattern.
            **_text(num_hidden_layers=6),
            sliding_window=16,
            query_pre_attn_scalar=16,
        ),
    }


FAMILIES = ("gpt2", "llama", "qwen3", "gemma3")


def make_family(kind: str, folder: Path, tokenizer: Path | None = None) -> Path:
    """Saves a tiny random model with a tokenizer, by default the embedded model's."""
    import transformers

    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(_configs()[kind]())
        model.save_pretrained(folder)
    for path in (tokenizer or demo.model_folder()).glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def open_family(kind: str, folder: Path) -> FrozenBase:
    """The saved model."""
    return load_base(kind, make_family(kind, folder))


def mixed_adapter(modules: tuple[ModuleShape, ...], size: float = 0.1, base_name: str | None = None) -> AdapterWeights:
    """Ranks 2, 4, 5 and 12 in turn, two scalings, and one module left out; `size` is that of B."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for i, shape in enumerate(modules):
        if i == LEFT_OUT:
            continue
        rank = RANKS[i % len(RANKS)]
        a = torch.randn(rank, shape.d_in, generator=generator) / shape.d_in**0.5
        b = torch.randn(shape.d_out, rank, generator=generator) * size
        made[shape.name] = LowRank(a, b, 2.0 if i % 3 else 0.7)
    return AdapterWeights(dict(sorted(made.items())), base_name, None)
