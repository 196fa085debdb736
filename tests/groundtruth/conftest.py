"""What the tests of the ground truth share: the planted model made the plain way, by adding to the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.groundtruth.planting import Directions, planted_plan
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase
from tests.training.conftest import one_thread as one_thread


@pytest.fixture
def probes(examples: list[Example]) -> list[Example]:
    """Eight whole texts."""
    return [replace(e, ids=e.ids[:24], prompt_length=1) for e in examples[:8]]


def small_plan(modules: Sequence[ModuleShape]) -> RankPlan:
    """Ranks 2, 1 and 3 in a first, a middle and the last module."""
    chosen = (modules[0], modules[len(modules) // 2], modules[-1])
    return planted_plan(modules, {m.name: r for m, r in zip(chosen, (2, 1, 3), strict=True)})


def altered(base: FrozenBase, directions: Directions) -> Any:
    """A copy of the model with Bᵀ A added to its weights."""
    model = copy.deepcopy(base.model)
    for name, (a, b) in directions.items():
        layer = model.get_submodule(name)
        update = b.t() @ a  # (d_out, d_in)
        layer.weight.data += update.t() if type(layer).__name__ == "Conv1D" else update
    return model


@torch.no_grad()
def log_answers(model: Any, examples: Sequence[Example]) -> dict[Example, Tensor]:
    """Log-probabilities over all completion tokens, text by text, float64."""
    found = {}
    for e in examples:
        logits = model(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0]
        found[e] = logits[max(e.prompt_length, 1) - 1 : -1].double().log_softmax(-1)
    return found


def divergence(p: Mapping[Example, Tensor], q: Mapping[Example, Tensor]) -> float:
    """KL(p || q), nats per token."""
    rows = torch.cat([(p[e].exp() * (p[e] - q[e])).sum(-1) for e in p])
    return float(rows.mean())
