"""Models by shape, with random weights, and records by length, for `throughput.py`: nothing is downloaded."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptive_lora.data.sources import RecordSet, from_dicts
from adaptive_lora.streams import numpy_stream
from adaptive_lora.training.base import FrozenBase, ModelOutline, find_modules

SHAPES: Mapping[str, Mapping[str, int]] = {
    "gpt2-medium-shape": {"layers": 24, "width": 1024, "inner": 4096, "heads": 16, "vocabulary": 50257},
    "smollm2-shape": {"layers": 30, "width": 576, "inner": 1536, "heads": 9, "groups": 3, "vocabulary": 49152},
    "llama-1b-shape": {"layers": 16, "width": 2048, "inner": 8192, "heads": 32, "groups": 8, "vocabulary": 128256},
}
"""Names of random weights in the shape of DialoGPT-medium, SmolLM2-135M and Llama-3.2-1B; those with `groups`, the
heads of keys and values, are Llamas."""
MADE = "made"
"""The name of records of made-up letters, about as long as Alpaca's: for random weights, where lengths alone count."""


class PieceTokenizer:
    """Stands in for GPT-2's tokenizer: an id for every four characters, which is about its rate on English.

    The ids are hashes, so that equal pieces have equal ids; the text cannot be had back.
    """

    def __init__(self, vocabulary: int) -> None:
        self.bos_token_id = self.eos_token_id = vocabulary - 1

    all_special_tokens: tuple[str, ...] = ()
    """No text spells the end."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self._id(t[i : i + 4]) for i in range(0, len(t), 4)] for t in texts]}

    def _id(self, piece: str) -> int:
        return zlib.crc32(piece.encode(errors="replace")) % self.eos_token_id


def sizes_of(shape: str, smaller: Mapping[str, int | None]) -> dict[str, int]:
    """Sizes of a shape, with other layers, width (a multiple of 64) or vocabulary where they are given."""
    sizes = {**SHAPES[shape], **{key: given for key, given in smaller.items() if given}}
    if width := smaller.get("width"):
        own = SHAPES[shape]
        sizes |= {"inner": width * own["inner"] // own["width"], "heads": width // 64}
        if "groups" in own:
            sizes["groups"] = max(1, sizes["heads"] * own["groups"] // own["heads"])
    return sizes


def random_model(sizes: Mapping[str, int]) -> Any:
    """A GPT-2 or a Llama with random weights, its own dropout off."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    last = sizes["vocabulary"] - 1
    if "groups" not in sizes:
        return GPT2LMHeadModel(GPT2Config(
            n_layer=sizes["layers"], n_embd=sizes["width"], n_head=sizes["heads"], n_inner=sizes["inner"],
            vocab_size=sizes["vocabulary"], n_positions=1024, bos_token_id=last, eos_token_id=last,
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
        ))  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(
        num_hidden_layers=sizes["layers"], hidden_size=sizes["width"], intermediate_size=sizes["inner"],
        num_attention_heads=sizes["heads"], num_key_value_heads=sizes["groups"], vocab_size=sizes["vocabulary"],
        max_position_embeddings=1024, bos_token_id=last, eos_token_id=last, tie_word_embeddings=True,
    ))  # fmt: skip


def open_shape(shape: str, where: str, dtype: str, smaller: Mapping[str, int | None]) -> FrozenBase:
    """A frozen model with random weights, made on the device."""
    device, sizes = torch.device(where), sizes_of(shape, smaller)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = random_model(sizes)
    model = model.to(dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    total = sum(p.numel() for p in model.parameters())
    return FrozenBase(
        name=shape,
        model=model,
        tokenizer=PieceTokenizer(sizes["vocabulary"]),
        outline=ModelOutline(shape, find_modules(model), total, 1024),
        revision="random",
        location=shape,
        device=device,
    )


def made_records(count: int) -> RecordSet:
    """Questions and answers of random letters, as long as Alpaca's: about 32 and 64 pieces, a few very long."""
    random = numpy_stream(0, "bench-records")
    rows = []
    for _ in range(count):
        question, answer = (int(4 * n) for n in random.lognormal(np.log((28, 40)), (0.4, 0.95)))
        letters = random.integers(97, 123, max(4, question) + max(4, answer), dtype=np.uint8).tobytes().decode()
        rows.append({"prompt": letters[: max(4, question)], "completion": letters[max(4, question) :]})
    return from_dicts(rows, MADE)
