"""What a model's configuration says of it: its modules and sizes. Needs no torch for the families known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adaptive_lora.files import parse_json
from adaptive_lora.planning.modules import ExpertStack, ModuleShape, depth_of, kind_of

DType = Literal["float32", "bfloat16", "float16", "float64"]
"""Of a base model's weights."""

Products = Literal["bfloat16"]
"""What the frozen linear layers of a float32 model multiply in, where that is not float32."""

Quantise = Literal["nf4", "int8"]
"""How bitsandbytes keeps the weights of a base model's linear layers: in 4 bits, or in 8."""


@dataclass(frozen=True)
class ModelOutline:
    """What a model's configuration says of it; needs no weights."""

    name: str
    modules: tuple[ModuleShape, ...]
    """Every linear layer that text passes through (the output layer and embeddings are not among them)."""
    total_parameters: int
    """All parameters, tied ones counted once."""
    context: int | None
    """The longest sequence, in tokens; None where the configuration names no limit."""
    fused_parameters: int = 0
    """Parameters in stacked matrices (the experts of most mixtures), which are not modules of their own."""
    uncalled: tuple[ModuleShape, ...] = ()
    """Linear layers that a text-only pass does not call: a vision tower, or a weight that is read past its layer."""
    experts: tuple[ExpertStack, ...] = ()
    """Stacks of expert matrices."""
    embedding_rows: int | None = None
    """How many different tokens the model knows."""
    pass_failed: str | None = None
    """Why the text-only pass could not be run, where `modules` rests on names instead."""
    other_class: str | None = None
    """The class that the model's configuration names, where causal language models are read as another."""
    origin: tuple[str, str | None] | None = field(default=None, compare=False)
    """Folder or hub name, and revision, where the model has them."""

    def within(self, length: int) -> int:
        """`length` tokens, or as many of them as the model's context allows."""
        return length if self.context is None else min(length, self.context)


_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length",
    "context_length", "max_seq_length", "max_target_positions",
)  # fmt: skip


def context_of(lookup: Callable[[str], Any]) -> int | None:
    """The longest sequence by the first name of a configuration that says one; None where none does.

    Families name it differently, some not at all (Mamba, BLOOM), and XLNet writes -1 for no limit.

    >>> context_of({"max_seq_len": 2048}.get), context_of({"max_position_embeddings": -1}.get)
    (2048, None)
    """
    found = (lookup(key) for key in _CONTEXT_KEYS)
    return next((int(n) for n in found if isinstance(n, int | float) and n > 0), None)


def outline_from_config(name: str, folder: Path) -> ModelOutline | None:
    """The outline of a model folder by its `config.json` alone; None for other families, and where a size is not there.

    The rest is for `training.base.outline_of`, which asks transformers.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        if "quantization_config" in config:
            return None
        modules, others = _FAMILIES[config["model_type"]](config)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
        return None
    total = sum(m.d_in * m.d_out for m in modules) + others
    rows = int(config["vocab_size"])
    return ModelOutline(name, modules, total, context_of(config.get), embedding_rows=rows, origin=(str(folder), None))


Found = tuple[tuple[ModuleShape, ...], int]
"""Modules, and parameters beside their weights."""


def _gpt2(config: Mapping[str, Any]) -> Found:
    width, blocks, words, context = (int(config[k]) for k in ("n_embd", "n_layer", "vocab_size", "n_positions"))
    if config.get("add_cross_attention"):
        raise KeyError("cross attention")
    inner = config.get("n_inner") or 4 * width
    sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
             "mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}  # fmt: skip
    modules = tuple(_shapes("transformer.h", blocks, sizes, fan_in_fan_out=True))
    biases, norms = sum(d_out for _, d_out in sizes.values()), 4 * width
    heads = 1 if config.get("tie_word_embeddings", True) else 2
    return modules, blocks * (biases + norms) + 2 * width + (heads * words + context) * width


def _llama(config: Mapping[str, Any], qkv_bias: bool = False) -> Found:
    width, inner, blocks, heads, words, _ = (
        int(config[k])
        for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                  "max_position_embeddings")  # without the last, the family's own default counts
    )  # fmt: skip
    head = int(config.get("head_dim") or width // heads)
    queries, keys = heads * head, int(config["num_key_value_heads"]) * head
    attention = {"self_attn.q_proj": (width, queries), "self_attn.k_proj": (width, keys),
                 "self_attn.v_proj": (width, keys), "self_attn.o_proj": (queries, width)}  # fmt: skip
    mlp = {"mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner), "mlp.down_proj": (inner, width)}
    biases = queries + 2 * keys if qkv_bias else 0
    if config["model_type"] == "llama":
        biases += sum(d_out for _, d_out in attention.values()) if config.get("attention_bias") else 0
        biases += sum(d_out for _, d_out in mlp.values()) if config.get("mlp_bias") else 0
    modules = tuple(_shapes("model.layers", blocks, {**attention, **mlp}))
    ends = 1 if config["tie_word_embeddings"] else 2
    return modules, blocks * (biases + 2 * width) + width + ends * words * width


def _qwen2(config: Mapping[str, Any]) -> Found:
    return _llama(config, qkv_bias=True)


_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], Found]] = {
    "gpt2": _gpt2, "llama": _llama, "mistral": _llama, "qwen2": _qwen2,
}  # fmt: skip
"""`model_type` -> what its configuration comes to; all others are built by transformers, without their weights."""


def _shapes(
    stem: str, blocks: int, sizes: Mapping[str, tuple[int, int]], fan_in_fan_out: bool = False
) -> Iterator[ModuleShape]:
    for block in range(blocks):
        for role, (d_in, d_out) in sizes.items():
            name = f"{stem}.{block}.{role}"
            yield ModuleShape(name, kind_of(name), depth_of(name), d_in, d_out, fan_in_fan_out)
