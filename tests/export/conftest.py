"""Tiny models that PEFT adapts, saves and loads: what `read_adapter` is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.training.adapter import ADAPTER


def fresh_model(kind: str) -> Any:
    """The same random two-block GPT-2 or Llama at every call."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=16,
            )
        ).eval()  # fmt: skip


Saver = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saver:
    """Builds an adapter with PEFT from keywords of its configuration, fills all of it with noise, and saves it."""

    def save(kind: str = "llama", config: Any = None, edit: Callable[[Any], None] | None = None, **fields: Any) -> Path:
        from peft import LoraConfig, get_peft_model

        settings = config or LoraConfig(**fields)
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(fresh_model(kind), settings)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data.normal_()
            if edit:
                edit(model)
            model.save_pretrained(str(tmp_path / "adapter"))
        return tmp_path / "adapter"

    return save


def peft_deltas(folder: Path, kind: str = "llama") -> Mapping[str, Tensor]:
    """ΔW, (d_out, d_in), of every layer that PEFT adapts when it loads `folder`."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(fresh_model(kind), str(folder))
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer) and layer.lora_A:
            delta = layer.get_delta_weight(ADAPTER).detach()
            found[name] = delta.T if layer.fan_in_fan_out else delta
    return found
