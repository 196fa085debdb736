"""Which weights can be adapted, by name and shape alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from adaptive_lora.errors import ModelError, nearest_hint

Kind = Literal["attention", "mlp", "other"]

TARGET_GROUPS = ("all-linear", "attention", "mlp")
"""Words that stand for many modules where target modules are named."""

_ATTENTION_PARTS = frozenset({"attn", "attention", "self_attn", "self_attention", "selfattention", "crossattention"})
_ATTENTION_LEAVES = frozenset("q_proj k_proj v_proj o_proj qkv_proj query_key_value c_attn Wqkv".split())
_MLP_PARTS = frozenset({"mlp", "ffn", "feed_forward", "ff", "block_sparse_moe", "experts", "shared_expert"})
_MLP_LEAVES = frozenset("gate_proj up_proj down_proj gate_up_proj c_fc fc1 fc2 fc_in fc_out w1 w2 w3".split())
_DEPTH = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class ModuleShape:
    """One weight matrix that can carry an adapter: ΔW = scaling · B A, A (rank, d_in), B (d_out, rank)."""

    name: str
    """Full name in the model, as `named_modules` gives it."""
    kind: Kind
    depth: int
    """Index of the block it sits in, from 0; modules outside any block count as block 0."""
    d_in: int
    d_out: int
    fan_in_fan_out: bool = False
    """Whether the weight is stored (d_in, d_out), as GPT-2's `Conv1D` does."""

    @property
    def params_per_rank(self) -> int:
        """Trainable parameters of one unit of rank: d_in + d_out."""
        return self.d_in + self.d_out

    @property
    def largest_rank(self) -> int:
        """min(d_in, d_out): beyond it a unit of rank adds parameters and nothing that they can express."""
        return min(self.d_in, self.d_out)


@dataclass(frozen=True)
class ExpertStack:
    """The matrices of all experts of a block in one three-dimensional parameter, (experts, d_out, d_in) or turned."""

    name: str
    """Full name of the parameter in the model."""
    experts: int
    d_in: int
    d_out: int

    @property
    def params_per_rank(self) -> int:
        """Trainable parameters of one unit of rank, which every expert has for itself: experts · (d_in + d_out)."""
        return self.experts * (self.d_in + self.d_out)


def kind_of(name: str) -> Kind:
    """Attention, MLP or other, from the module's path.

    The path decides first (`attn.c_proj` and `mlp.c_proj` share a leaf), then the leaf.

    >>> kind_of("transformer.h.0.attn.c_proj"), kind_of("transformer.h.0.mlp.c_proj")
    ('attention', 'mlp')
    >>> kind_of("model.layers.3.self_attn.q_proj"), kind_of("score")
    ('attention', 'other')
    """
    *path, leaf = name.split(".")
    lowered = {part.lower() for part in path}
    if lowered & _ATTENTION_PARTS:
        return "attention"
    if lowered & _MLP_PARTS:
        return "mlp"
    if leaf in _ATTENTION_LEAVES:
        return "attention"
    return "mlp" if leaf in _MLP_LEAVES else "other"


def depth_of(name: str) -> int:
    """The first number in the path: the index of the block.

    >>> depth_of("transformer.h.11.mlp.c_fc"), depth_of("lm_head")
    (11, 0)
    """
    found = _DEPTH.search(f".{name}.")
    return int(found.group(1)) if found else 0


def role_of(name: str) -> str:
    """The path without the block's index and what stands before it: what the module is in its block.

    >>> role_of("transformer.h.11.mlp.c_fc")
    'mlp.c_fc'
    """
    found = _DEPTH.search(f".{name}.")
    return name[found.end() - 1 :] if found else name


def role_labels(roles: Sequence[str]) -> list[str]:
    """Short names for columns: the leaf where leaves tell the roles apart, else the whole role.

    >>> role_labels(["attn.c_proj", "mlp.c_proj"]), role_labels(["attn.q_proj", "mlp.up_proj"])
    (['attn.c_proj', 'mlp.c_proj'], ['q_proj', 'up_proj'])
    """
    leaves = [role.split(".")[-1] for role in roles]
    return leaves if len(set(leaves)) == len(set(roles)) else list(roles)


def select_targets(modules: Sequence[ModuleShape], targets: str | Sequence[str]) -> tuple[ModuleShape, ...]:
    """The modules that `targets` names: a group (`all-linear`, `attention`, `mlp`), or leaf, role or full names.

    They keep the model's own order. Every entry must match something. Raises ModelError with what there is.
    """
    entries = [targets] if isinstance(targets, str) else list(targets)
    chosen: dict[str, ModuleShape] = {}
    for entry in entries:
        found = [m for m in modules if matches(m, entry)]
        if not found:
            known = sorted({role_of(m.name) for m in modules})
            leaves = sorted({name.split(".")[-1] for name in known})
            hint = "" if entry in TARGET_GROUPS else nearest_hint(entry, [*leaves, *known, *TARGET_GROUPS])
            raise ModelError(
                f"`targets` names {entry!r}, which matches no module of this model{hint}. It has: "
                f"{', '.join(known) or 'no linear modules'}; or write one of {', '.join(TARGET_GROUPS)}."
            )
        chosen.update((m.name, m) for m in found)
    return tuple(m for m in modules if m.name in chosen)


def matches(module: ModuleShape, entry: str) -> bool:
    """Whether an entry of `targets` names a module: a group, its full name or the end of it at a dot."""
    if entry == "all-linear":
        return True
    if entry in get_args(Kind):
        return module.kind == entry
    return module.name == entry or module.name.endswith(f".{entry}")


def total_cost(modules: Iterable[ModuleShape], ranks: Mapping[str, int]) -> int:
    """Trainable parameters of a rank pattern: Σ rank · (d_in + d_out)."""
    return sum(module.params_per_rank * ranks[module.name] for module in modules)


def to_dicts(modules: Iterable[ModuleShape]) -> list[dict[str, object]]:
    """Shapes as JSON."""
    return [
        {
            "name": m.name, "kind": m.kind, "depth": m.depth, "d_in": m.d_in, "d_out": m.d_out,
            **({"fan_in_fan_out": True} if m.fan_in_fan_out else {}),
        }
        for m in modules
    ]  # fmt: skip
