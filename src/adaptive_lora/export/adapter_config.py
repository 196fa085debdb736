"""What `adapter_config.json` of a foreign folder says, checked: ranks, scalings, and what is more than a LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.automaton import Unmatchable
from adaptive_lora.export.folder_files import CONFIG_FILE, read_object, shown
from adaptive_lora.export.patterns import NameSet, PatternTable
from adaptive_lora.export.variants import Beyond, beyond_lora

_LARGEST_RANK = 1_000_000
_LARGEST_ALPHA = 1e12
_OURS = frozenset(
    "peft_type peft_version auto_mapping base_model_name_or_path revision task_type inference_mode runtime_config r "
    "target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights rank_pattern "
    "alpha_pattern layers_to_transform layers_pattern eva_config corda_config loftq_config lora_ga_config "
    "megatron_core qalora_group_size ensure_weight_tying "
    "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step".split()
)
"""Keys that are used here, or that change nothing of a loaded adapter."""


@dataclass(frozen=True)
class Blocks:
    """`layers_to_transform` and `layers_pattern`: which blocks are adapted."""

    indices: frozenset[int]
    names: tuple[str, ...]

    def has(self, name: str) -> bool:
        """As PEFT decides it, by the first number after the name of a list of blocks, or after any name."""
        for pattern in map(re.escape, self.names):
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(found[1][:9]) in self.indices
        found = None if self.names else re.match(r".*?\.[^.]*\.(\d+)\.", name)
        return found is not None and int(found[1][:9]) in self.indices


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of a LoRA or an AdaLoRA adapter."""

    method: str
    """`LORA` or `ADALORA`."""
    rank: int
    """Of modules that no key of the pattern names; AdaLoRA's first rank."""
    alpha: float
    ranks: PatternTable[int]
    alphas: PatternTable[float]
    masks: Mapping[str, int]
    """AdaLoRA: how many directions are left, by module."""
    rslora: bool
    targets: NameSet | None
    """None: every module that has tensors, but for an output layer where `all_linear`."""
    all_linear: bool
    excluded: NameSet | None
    blocks: Blocks | None
    base_name: str | None
    revision: str | None
    beyond: tuple[Beyond, ...]
    """What the adapter does beside B A."""
    notes: tuple[str, ...]


class _Fields:
    """Fields of the file, taken one by one; what is wrong with them is collected."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said, self.complaints = said, list[str]()

    def take(self, key: str, default: Any, valid: Callable[[Any], bool], wanted: str) -> Any:
        value = self.said.get(key)
        if value is None:
            return default
        if valid(value):
            return value
        self.complaints.append(f"`{key}` must be {wanted}, got {shown(value)}.")
        return default

    def made(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` makes, or a complaint of the key."""
        try:
            return make()
        except Unmatchable as error:
            self.complaints.append(f"`{key}` {error}.")
            return None


def read_config(folder: Path) -> AdapterConfig:
    """The configuration in a folder; AdapterError with all that is wrong with it."""
    said = read_object(folder / CONFIG_FILE)
    method = said.get("peft_type")
    if method not in ("LORA", "ADALORA"):
        raise AdapterError(str(folder / CONFIG_FILE), [_other_method(said)])
    fields = _Fields(said)
    ada = method == "ADALORA"
    patterns = _patterns(fields, ada)
    targets, excluded = (_name_set(fields, key) for key in ("target_modules", "exclude_modules"))
    found = AdapterConfig(
        method=method,
        rank=fields.take("init_r" if ada else "r", 12 if ada else 8, _is_rank, "a whole number from 0 on"),
        alpha=fields.take("lora_alpha", 8, _is_alpha, f"a number up to {_LARGEST_ALPHA:g}"),
        ranks=patterns[0],
        alphas=patterns[1],
        masks=_masks(fields) if ada else {},
        rslora=fields.take("use_rslora", False, lambda value: isinstance(value, bool), "true or false"),
        targets=targets,
        all_linear=_is_all_linear(said.get("target_modules")),
        excluded=excluded,
        blocks=_blocks(fields),
        base_name=fields.take("base_model_name_or_path", None, _is_text, "a name of at most 500 characters"),
        revision=fields.take("revision", None, _is_text, "a name of at most 500 characters"),
        beyond=tuple(beyond_lora(said)),
        notes=tuple(_notes(said)),
    )
    if fields.complaints:
        raise AdapterError(str(folder / CONFIG_FILE), fields.complaints)
    return found


def _name_set(fields: _Fields, key: str) -> NameSet | None:
    """None where nothing is said, or all linear modules are meant."""
    named = fields.take(key, None, _is_names, "a string or a list of strings")
    if not named or _is_all_linear(named):
        return None
    found: NameSet | None = fields.made(key, lambda: NameSet(named))
    return found


def _patterns(fields: _Fields, ada: bool) -> tuple[PatternTable[int], PatternTable[float]]:
    ranks = {} if ada else fields.take("rank_pattern", {}, _of(_is_rank), "ranks by name, whole numbers from 0 on")
    alphas = fields.take("alpha_pattern", {}, _of(_is_alpha), "numbers by name")
    return (
        fields.made("rank_pattern", lambda: PatternTable[int](ranks)),
        fields.made("alpha_pattern", lambda: PatternTable[float](alphas)),
    )


def _masks(fields: _Fields) -> dict[str, int]:
    """AdaLoRA's `rank_pattern`: by the name of a module's lora_E, which of its directions are left."""
    masks = fields.take("rank_pattern", {}, _of(_is_mask), "lists of true and false by name")
    return {re.sub(r"\.lora_E(\.[^.]+)?$", "", key): sum(mask) for key, mask in masks.items()}


def _blocks(fields: _Fields) -> Blocks | None:
    indices = fields.take("layers_to_transform", [], _is_indices, "a whole number or a list of them")
    names = fields.take("layers_pattern", [], _is_names, "a name or a list of names")
    names = [names] if isinstance(names, str) else names
    if odd := [name for name in names if not re.fullmatch(r"[\w.\-]{1,200}", name, re.ASCII)]:
        fields.complaints.append(f"`layers_pattern` must be plain names, got {shown(odd[0])}; write names out.")
    indices = [indices] if isinstance(indices, int) else indices
    return Blocks(frozenset(indices), tuple(dict.fromkeys(names))[:100]) if indices and not odd else None


def _notes(said: Mapping[str, Any]) -> Iterable[str]:
    if not said.get("target_modules"):
        yield "The configuration names no target modules; they were taken from the tensors."
    odd = sorted(key for key, value in said.items() if key not in _OURS and value not in (None, False, "none", [], {}))
    if odd := [key for key in odd if key not in {b.key for b in beyond_lora(said)}]:
        yield f"Not used, as PEFT or this version does not know it: {', '.join(shown(key, 40) for key in odd[:6])}."


def _other_method(said: Mapping[str, Any]) -> str:
    """What to do with a folder that is no LoRA in PEFT's form."""
    if "lora_parameters" in said or "fine_tune_type" in said:
        return "is mlx-lm's, not PEFT's; give the adapter that it was made from, or train with PEFT."
    if not isinstance(said.get("peft_type"), str):
        return "names no method (`peft_type`), so PEFT did not save it; a LoRA's says LORA."
    return (
        f"is of the method {shown(said['peft_type'])}; LORA and ADALORA are read. PEFT makes a LoRA of methods that "
        "add to weights: `peft.save_as_lora(OUT, PeftModel.from_pretrained(BASE, FOLDER), rank=16)`."
    )


def _is_all_linear(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == "all-linear"


def _of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(valid, value.values()))


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST_ALPHA and math.isfinite(value)


def _is_mask(value: Any) -> bool:
    return isinstance(value, list) and all(type(kept) is bool for kept in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 500 and value.isprintable()


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(name, str) for name in value))


def _is_indices(value: Any) -> bool:
    return all(type(index) is int and 0 <= index < 10**9 for index in (value if isinstance(value, list) else [value]))
