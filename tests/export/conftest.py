"""Plans to be pasted: GPT-2 and Llama shapes, ranks 2, 4, 5 and 12, one module left out."""

from __future__ import annotations

import itertools

import pytest

from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training.base import FrozenBase


def pasted_plan(modules: tuple[ModuleShape, ...], rule: str = "constant") -> RankPlan:
    """Ranks 2, 4, 5, 12 in turn, on a budget that is what they cost; the first module has no adapter."""
    adapted = modules[1:]
    ranks = {m.name: rank for m, rank in zip(adapted, itertools.cycle((2, 4, 5, 12)), strict=False)}
    cost = sum(m.params_per_rank * ranks[m.name] for m in adapted)
    scaling = Scaling(rule, 2.0, 4.0)  # type: ignore[arg-type]
    return RankPlan("by-hand", cost, adapted, ranks, scaling, left_out=modules[:1])


@pytest.fixture
def plan(base: FrozenBase) -> RankPlan:
    """Of each tiny model in turn."""
    return pasted_plan(base.outline.modules)
