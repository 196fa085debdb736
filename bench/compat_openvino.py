"""A model for OpenVINO GenAI, and what that says with an adapter beside it.

The exporter that its users take, optimum-intel, wants an older transformers than ours. What it does is done here: the
model is traced with a cache as inputs and outputs, and these become state of the converted model.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

XML = "openvino_model.xml"
ASKED = ("input_ids", "attention_mask", "position_ids")


def convert(folder: Path, to: Path) -> Path:
    """Saves the model of a folder in float32, where `LLMPipeline` finds it; returns `to`."""
    import openvino
    import openvino_tokenizers
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    made = openvino.convert_model(_with_cache(model), example_input=_example(model.config))
    _with_state(made, model.config)
    openvino.save_model(made, to / XML, compress_to_fp16=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    both = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), both, strict=True):
        openvino.save_model(part, to / f"openvino_{name}.xml")
    for name in ("config.json", "generation_config.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def next_tokens_by_openvino(model: Path, adapter: Path | None, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probabilities of the next token after each text: the scores of as many beams as there are tokens."""
    import openvino
    import openvino_genai

    # Its other backend for attention overlooks a window in a mask that is not written as optimum-intel writes it.
    wanted: dict[str, Any] = {"ATTENTION_BACKEND": "SDPA"}
    wanted |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    if adapter is not None:
        wanted["adapters"] = openvino_genai.AdapterConfig(openvino_genai.Adapter(str(adapter)), 1.0)
    pipeline = openvino_genai.LLMPipeline(str(model), "CPU", **wanted)
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos = 1, True
    settings.num_beams = settings.num_return_sequences = _vocabulary(model)
    found = []
    for ids in texts:
        given = np.array([ids], dtype=np.int64)
        asked = openvino_genai.TokenizedInputs(openvino.Tensor(given), openvino.Tensor(np.ones_like(given)))
        said = pipeline.generate(asked, settings)
        scores = dict(zip((beam[0] for beam in said.tokens), said.scores, strict=True))
        found.append(torch.tensor([scores[i] for i in range(settings.num_beams)]))
    return found


def _vocabulary(model: Path) -> int:
    import transformers

    return int(transformers.AutoConfig.from_pretrained(model).vocab_size)


def _sizes(config: Any) -> tuple[int, int, int]:
    """Blocks, heads of keys and values, and their size."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def _cache_names(config: Any, of: str) -> list[str]:
    return [f"{of}.{block}.{part}" for block in range(config.num_hidden_layers) for part in ("key", "value")]


def _with_cache(model: Any) -> Any:
    """The model, called with keys and values of what was read before, which it returns with those of what it reads.

    Itself and not a wrapper, as adapters are matched by the names of modules.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    plain, window = type(model).forward, getattr(model.config, "sliding_window", None)

    def forward(self: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        cache = DynamicCache()
        cache.layer_class_to_replicate, cache.layers = None, [DynamicLayer() for _ in past[::2]]
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        found = plain(
            self, input_ids=input_ids, attention_mask=_masks(input_ids, attention_mask, window),
            position_ids=position_ids, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        return found.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))

    model.forward = types.MethodType(forward, model)
    return model


def _masks(ids: Tensor, given: Tensor, window: int | None) -> Any:
    """Causal, over what was read before too; two kinds where some blocks see a window alone."""
    total = given.shape[1]
    column, row = torch.arange(total)[None, :], torch.arange(ids.shape[1])[:, None] + (total - ids.shape[1])
    full = (column <= row)[None, None] & (given[:, None, None, :] > 0)

    def added(seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    if window is None:
        return added(full)
    return {"full_attention": added(full), "sliding_attention": added(full & (column > row - window))}


def _example(config: Any) -> tuple[Tensor, ...]:
    """Three tokens after five, in a batch of two: no dimension looks like another."""
    blocks, heads, size = _sizes(config)
    past = [torch.zeros(2, heads, 5, size) for _ in range(2 * blocks)]
    position = torch.arange(5, 8).repeat(2, 1)
    return torch.ones(2, 3, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), position, *past


def _with_state(made: Any, config: Any) -> None:
    """Names inputs and outputs, lets beams be reordered by `beam_idx`, and makes the cache state, empty at first."""
    from openvino import PartialShape, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    _, heads, size = _sizes(config)
    before, after = _cache_names(config, "past_key_values"), _cache_names(config, "present")
    for entry, name in zip(made.inputs, (*ASKED, *before), strict=True):
        entry.get_tensor().set_names({name})
        entry.get_node().set_partial_shape(PartialShape([-1, -1] if name in ASKED else [-1, heads, -1, size]))
    for entry, name in zip(made.outputs, ("logits", *after), strict=True):
        entry.get_tensor().set_names({name})
    beams = opset13.parameter([-1], dtype=np.int32, name="beam_idx")
    beams.output(0).get_tensor().add_names({"beam_idx"})
    made.add_parameters([beams])
    for entry in made.inputs[len(ASKED) : -1]:
        readers = list(entry.get_target_inputs())
        chosen = opset13.gather(entry, beams, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    made.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(made, dict(zip(before, after, strict=True)))
    batch = opset13.gather(opset13.shape_of(made.input("input_ids")), opset13.constant([0]), opset13.constant(0))
    parts = [batch, *(opset13.constant(np.array([n], dtype=np.int64)) for n in (heads, 0, size))]
    for state in (node for node in made.get_ops() if node.get_type_name() == "ReadValue"):
        empty = opset13.broadcast(opset13.constant(0.0, dtype=np.float32), opset13.concat(parts, axis=0))
        state.set_arguments([empty])
    made.validate_nodes_and_infer_types()
