"""The forms that an adapter can be written in: each the same update, said so that some tool reads it right.

A form is a pure function of the weights. It keeps ΔW = scaling · B A of every module, and changes how much of that
stands in B and how much in a configuration that not every tool reads. Products are taken in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.planning.modules import ModuleShape, role_of

Form = Literal["peft", "padded", "single-alpha", "unit", "merged", "gguf", "gguf-merged", "mlx", "onnx-adapter"]
FORMS: tuple[Form, ...] = get_args(Form)
MERGED: frozenset[Form] = frozenset({"merged", "gguf-merged"})
"""Forms that hold a whole model, and no adapter."""
DESCRIPTIONS: Mapping[Form, str] = {
    "peft": "ranks and alphas by module, in PEFT's patterns",
    "padded": "one rank for all: zeros up to the largest, scaling in B, alpha = rank, no patterns",
    "single-alpha": "ranks as they are, one alpha: scaling is alpha / rank of each tensor",
    "unit": "ranks as they are, scaling in B, alpha = rank: the factor is 1 everywhere",
    "merged": "whole weights with the update added, as safetensors",
    "gguf": "the adapter as GGUF, for llama.cpp",
    "gguf-merged": "whole weights with the update added, as GGUF",
    "mlx": "the adapter as mlx-lm names and orders it",
    "onnx-adapter": "the adapter as ONNX Runtime loads it beside a model, padded",
}


def unit(adapter: AdapterWeights) -> AdapterWeights:
    """B' = scaling · B, scaling' = 1; alpha = rank says so in a configuration."""
    return _mapped(adapter, {name: _folded(m, 1.0) for name, m in adapter.modules.items()})


def single_alpha(adapter: AdapterWeights, alpha: float | None = None) -> AdapterWeights:
    """B' = B · scaling · rank / alpha, scaling' = alpha / rank: one `alpha`, read beside each tensor's own rank.

    By default `common_alpha`, which leaves most tensors as they are.
    """
    own = common_alpha(adapter) if alpha is None else alpha
    return _mapped(adapter, {name: _folded(m, own / m.rank) for name, m in adapter.modules.items()})


def padded(adapter: AdapterWeights, left_out: Sequence[ModuleShape] = ()) -> AdapterWeights:
    """Every module at the largest rank R: rows of zeros below A, columns of zeros beside scaling · B; scaling' = 1.

    `left_out`: modules that get zeros alone, for tools that want a tensor wherever a name occurs. Exact, larger by
    Σ (R - rank) · (d_in + d_out), and not to be trained on: the zeros of A and B have no gradient.
    """
    import torch

    largest = max(adapter.ranks.values())
    modules = {name: _padded(_folded(m, 1.0), largest) for name, m in adapter.modules.items()}
    for shape in left_out:
        modules[shape.name] = LowRank(torch.zeros(largest, shape.d_in), torch.zeros(shape.d_out, largest), 1.0)
    return _mapped(adapter, modules)


def common_alpha(adapter: AdapterWeights) -> float:
    """The most frequent scaling · rank, and of equally frequent ones the largest."""
    counts = Counter(m.scaling * m.rank for m in adapter.modules.values())
    return max(counts, key=lambda alpha: (counts[alpha], alpha))


def same_role(adapter: AdapterWeights, available: Sequence[ModuleShape]) -> tuple[ModuleShape, ...]:
    """Modules without an adapter that are called, but for the block's number, as modules with one."""
    roles = {role_of(name) for name in adapter.modules}
    return tuple(m for m in available if m.name not in adapter.modules and role_of(m.name) in roles)


def _mapped(adapter: AdapterWeights, modules: Mapping[str, LowRank]) -> AdapterWeights:
    return replace(adapter, modules=dict(sorted(modules.items())))


def _folded(update: LowRank, scaling: float) -> LowRank:
    """The same update with this scaling; B as it is where that is the scaling already."""
    b = update.b.float()
    return LowRank(update.a.float(), b if scaling == update.scaling else b * (update.scaling / scaling), scaling)


def _padded(update: LowRank, rank: int) -> LowRank:
    from torch.nn.functional import pad

    more = rank - update.rank
    return LowRank(pad(update.a, (0, 0, 0, more)), pad(update.b, (0, more)), update.scaling)
