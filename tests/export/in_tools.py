"""A pasted text handed to the real tool, on a tiny Llama: what the tool builds of it, as JSON on stdout.

Run in a process of its own (`python -m tests.export.in_tools TOOL FILE MODEL_FOLDER`): tools change other libraries
when they are imported. Printed is module -> (rank, scaling) where modules keep transformers' names, and otherwise the
number of trainable parameters alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml  # as Axolotl and mlx-lm read

SIZES = {"vocab": 768, "hidden": 24, "intermediate": 40, "layers": 3, "heads": 4, "kv_heads": 2}
"""The tiny Llama of `tests.conftest.make_model`."""


def _llama(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def _read(model: Any) -> dict[str, tuple[int, float]]:
    """Module -> (rank, scaling) of a PeftModel."""
    from peft.tuners.lora import LoraLayer

    inner = model.base_model.model
    found = {name: layer for name, layer in inner.named_modules() if isinstance(layer, LoraLayer)}
    return {name: (layer.lora_A["default"].weight.shape[0], layer.scaling["default"]) for name, layer in found.items()}


def peft(text: str, folder: str) -> Any:
    from peft import get_peft_model

    names: dict[str, Any] = {}
    exec(text, names)
    return _read(get_peft_model(_llama(folder), names.get("lora_config") or names["peft_config"]))


def unsloth(text: str, folder: str) -> Any:
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(folder, load_in_4bit=False, dtype=None, max_seq_length=64)
    names = {"FastLanguageModel": FastLanguageModel, "model": model}
    exec(text, names)
    return _read(names["model"])


def axolotl(text: str, folder: str) -> Any:
    from axolotl.loaders.adapter import load_lora
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.peft import LoraConfig

    keys = yaml.safe_load(text)
    keys.pop("learning_rate", None)
    cfg = DictDefault(LoraConfig.model_validate(keys).model_dump(exclude_none=True))
    model, _ = load_lora(_llama(folder), cfg)
    return _read(model)


def llama_factory(text: str, folder: str) -> Any:
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.model.adapter import _setup_lora_tuning

    keys = yaml.safe_load(text)
    keys.pop("learning_rate", None)
    adapter = keys.pop("adapter_name_or_path", None)
    given = SimpleNamespace(
        adapter_name_or_path=adapter and [adapter], use_kt=False, use_unsloth=False, adapter_folder=None,
        offload_folder=None, cache_dir=None, model_revision="main", hf_hub_token=None, resize_vocab=False,
    )  # fmt: skip
    model = _llama(folder)
    return _read(_setup_lora_tuning(model.config, model, given, FinetuningArguments(**keys), True, True))


def ms_swift(text: str, folder: str) -> Any:
    from swift.tuner_plugin import tuners_map
    from swift.tuners import Swift

    if "class RankPlan" not in text:
        return _read(Swift.from_pretrained(_llama(folder), yaml.safe_load(text)["adapters"], is_trainable=True))
    exec(text, {})
    return _read(tuners_map["rank-plan"].prepare_model(None, _llama(folder)))


def torchtune(text: str, folder: str) -> Any:
    from torchtune.models.llama3_2 import lora_llama3_2
    from torchtune.modules.peft import LoRALinear

    model = lora_llama3_2(
        vocab_size=SIZES["vocab"], num_layers=SIZES["layers"], num_heads=SIZES["heads"],
        num_kv_heads=SIZES["kv_heads"], embed_dim=SIZES["hidden"], intermediate_dim=SIZES["intermediate"],
        max_seq_len=64, **yaml.safe_load(text)["model"],
    )  # fmt: skip
    return sum(
        layer.lora_a.weight.numel() + layer.lora_b.weight.numel()
        for layer in model.modules()
        if isinstance(layer, LoRALinear)
    )


def litgpt(text: str, folder: str) -> Any:
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

    keys = {key: value for key, value in yaml.safe_load(text).items() if key.startswith("lora_")}
    config = Config(
        n_embd=SIZES["hidden"], n_layer=SIZES["layers"], n_head=SIZES["heads"], n_query_groups=SIZES["kv_heads"],
        intermediate_size=SIZES["intermediate"], vocab_size=SIZES["vocab"], padded_vocab_size=SIZES["vocab"],
        block_size=64, bias=False, mlp_class_name="LLaMAMLP", norm_class_name="RMSNorm", rotary_percentage=1.0,
        parallel_residual=False, **keys,
    )  # fmt: skip
    model = GPT(config)
    mark_only_lora_as_trainable(model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def mlx_lm(text: str, folder: str) -> Any:
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.tuner.utils import linear_to_lora_layers

    keys = yaml.safe_load(text)
    model = Model(
        ModelArgs(
            model_type="llama", hidden_size=SIZES["hidden"], num_hidden_layers=SIZES["layers"],
            intermediate_size=SIZES["intermediate"], num_attention_heads=SIZES["heads"],
            num_key_value_heads=SIZES["kv_heads"], rms_norm_eps=1e-5, vocab_size=SIZES["vocab"],
        )
    )  # fmt: skip
    model.freeze()
    linear_to_lora_layers(model, keys["num_layers"], keys["lora_parameters"])
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_a"):
            found[name] = (layer.lora_a.shape[1], layer.scale)
    assert sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    return found


RUN = {
    "peft": peft, "trl": peft, "unsloth": unsloth, "axolotl": axolotl, "llama-factory": llama_factory,
    "ms-swift": ms_swift, "torchtune": torchtune, "litgpt": litgpt, "mlx-lm": mlx_lm,
}  # fmt: skip

if __name__ == "__main__":
    tool, file, folder = sys.argv[1:]
    print("built", json.dumps(RUN[tool](Path(file).read_text(encoding="utf-8"), folder)))
