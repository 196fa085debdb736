"""Which module needs how much rank: the patterns that are planted. All cost the same, as far as integers allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adaptive_lora.planning.budget import spend
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.streams import numpy_stream

Weigh = Callable[[Sequence[ModuleShape], int], dict[str, float]]
"""Modules and seed -> what each wants of rank; 0 for none."""


def truth_ranks(name: str, modules: Sequence[ModuleShape], budget: int, seed: int) -> dict[str, int]:
    """The planted ranks of a pattern, 0 where nothing is planted."""
    weights = TRUTHS[name](modules, seed)
    wanted = [m for m in modules if weights[m.name] > 0]
    return dict.fromkeys((m.name for m in modules), 0) | spend(wanted, weights, budget)


def _last_mlp(modules: Sequence[ModuleShape], seed: int) -> dict[str, float]:
    """The MLP of the last two blocks."""
    blocks = sorted({m.depth for m in modules})[-2:]
    return {m.name: float(m.kind == "mlp" and m.depth in blocks) for m in modules}


def _two_blocks(modules: Sequence[ModuleShape], seed: int) -> dict[str, float]:
    """Everything in two blocks drawn by chance."""
    blocks = numpy_stream(seed, "truth-blocks").permutation(sorted({m.depth for m in modules}))[:2]
    return {m.name: float(m.depth in blocks) for m in modules}


def _one_in_six(modules: Sequence[ModuleShape], seed: int) -> dict[str, float]:
    """Every sixth module, drawn by chance."""
    order = numpy_stream(seed, "truth-modules").permutation(sorted(m.name for m in modules))
    chosen = set(order[: max(2, round(len(modules) / 6))])
    return {m.name: float(m.name in chosen) for m in modules}


def _of_kind(kind: str) -> Weigh:
    return lambda modules, seed: {m.name: float(m.kind == kind) for m in modules}


def _growing(modules: Sequence[ModuleShape], seed: int) -> dict[str, float]:
    """In proportion to the square of the depth, from the second block on."""
    first = min(m.depth for m in modules)
    return {m.name: float(m.depth - first) ** 2 for m in modules}


TRUTHS: Mapping[str, Weigh] = {
    "last-mlp": _last_mlp,
    "two-blocks": _two_blocks,
    "few-modules": _one_in_six,
    "attention-only": _of_kind("attention"),
    "mlp-only": _of_kind("mlp"),
    "growing": _growing,
    "uniform": lambda modules, seed: {m.name: 1.0 for m in modules},
}
"""`real`, made from a fine-tuning, is not a pattern of names: see `recovery`."""
