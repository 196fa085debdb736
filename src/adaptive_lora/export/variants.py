"""What an adapter can hold beside B A, by its configuration and its tensors, and what to do with such a one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adaptive_lora.export.folder_files import shown

MERGE = (
    "Merge the adapter into its base with PEFT and go on with that model: "
    "`PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(OUT)`."
)
CONVERT = (
    "Where it was trained, save it as a LoRA on the unchanged base: "
    "`model.save_pretrained(OUT, path_initial_model_for_weight_conversion=INITIAL)`, INITIAL being the adapter saved "
    "before training."
)
SAVE_WITHOUT = (
    "Where these weights are the base's own, save it without them: load it with PEFT, then "
    "`model.save_pretrained(OUT, save_embedding_layers=False)`."
)
PEFT_ONLY = "Use it through PEFT itself."


@dataclass(frozen=True)
class Beyond:
    """Something that an adapter does and that B A alone cannot say."""

    key: str
    """Of the configuration, or the kind of tensors."""
    what: str
    """Goes on after "the adapter"."""
    remedy: str


_BY_KEY: Mapping[str, tuple[str, str]] = {
    "use_dora": ("uses DoRA, whose update depends on the base's weights and is of full rank", MERGE),
    "modules_to_save": ("brings whole modules of its own (modules_to_save)", MERGE),
    "trainable_token_indices": ("changes single rows of the embedding (trainable_token_indices)", MERGE),
    "target_parameters": ("adapts bare parameters, such as fused experts (target_parameters)", MERGE),
    "lora_bias": ("has trained biases in B (lora_bias)", MERGE),
    "layer_replication": ("repeats blocks of its base (layer_replication)", PEFT_ONLY),
    "alora_invocation_tokens": ("counts only after certain tokens (alora_invocation_tokens)", PEFT_ONLY),
    "arrow_config": ("routes between several adapters (arrow_config)", PEFT_ONLY),
    "kasa_config": ("truncates its base's weights (kasa_config)", PEFT_ONLY),
    "velora_config": ("is of the variant VeLoRA (velora_config)", PEFT_ONLY),
    "monteclora_config": ("is of the variant MonteCLoRA (monteclora_config)", PEFT_ONLY),
    "use_qalora": ("is of the variant QALoRA (use_qalora)", PEFT_ONLY),
    "use_bdlora": ("is of the variant BD-LoRA (use_bdlora)", PEFT_ONLY),
    "megatron_config": ("is split over Megatron's layers (megatron_config)", PEFT_ONLY),
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the first B A out of the base, which the file does not hold."""
_MERGED_TENSORS = {
    "use_dora": "magnitude vectors of DoRA",
    "embedding": "adapters of an embedding",
    "lora_bias": "biases in B (lora_bias)",
    "trainable_token_indices": "single rows of the embedding",
    "modules_to_save": "whole weights or biases beside the adapter",
}


def beyond_lora(said: Mapping[str, Any]) -> Iterator[Beyond]:
    """What a configuration turns on beside B A."""
    for key, (what, remedy) in _BY_KEY.items():
        if said.get(key) not in (None, False, [], {}, "none"):
            yield Beyond(key, what, remedy)
    if said.get("bias") not in (None, "none"):
        yield Beyond("bias", "trains biases of its base (bias)", MERGE)
    start = said.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        yield Beyond(
            "init_lora_weights",
            f"began by changing its base's weights (init_lora_weights {shown(start)}), and adds to that changed base",
            CONVERT,
        )


def refusals(beyond: Iterable[Beyond]) -> list[str]:
    """One complaint for each remedy, with all that it is the remedy of."""
    by_remedy: dict[str, list[str]] = {}
    for one in beyond:
        by_remedy.setdefault(one.remedy, []).append(one.what)
    return [f"the adapter {'; it '.join(whats)}; this is not carried. {remedy}" for remedy, whats in by_remedy.items()]


def beyond_tensors(names: Iterable[str]) -> Iterator[Beyond]:
    """What tensors that are no A or B stand for, a kind at a time."""
    count, first = Counter[str](), dict[str, str]()
    for name in names:
        kind = _kind(name)
        count[kind] += 1
        first.setdefault(kind, name)
    for kind, number in count.items():
        such = f"has {number:,} tensor{'s' if number > 1 else ''}, such as {shown(first[kind])}, that are"
        if kind in _MERGED_TENSORS:
            yield Beyond(kind, f"{such} {_MERGED_TENSORS[kind]}", MERGE)
        elif kind == "base_layer":
            yield Beyond(kind, f"{such} the base's embedding or output layer, or what became of it", SAVE_WITHOUT)
        elif kind == "foreign":
            yield Beyond(kind, f"{such} named as kohya, diffusers or mlx-lm name them", "Convert it to PEFT's form.")
        else:
            yield Beyond(kind, f"{such} no LoRA's that is known here", PEFT_ONLY)


def _kind(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "use_dora"
    if "lora_embedding_" in name:
        return "embedding"
    if ".lora_B" in name and name.endswith(".bias"):
        return "lora_bias"
    if name.endswith(".base_layer.weight"):
        return "base_layer"
    if "trainable_tokens" in name or "token_adapter" in name:
        return "trainable_token_indices"
    if name.startswith(("lora_unet", "lora_te")) or name.endswith((".alpha", ".lora_a", ".lora_b")):
        return "foreign"
    if "lora_" not in name and name.endswith((".weight", ".bias")):
        return "modules_to_save"
    return "unknown"
