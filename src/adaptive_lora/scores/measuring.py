"""Takes the measures that a plan needs, what can be had together in one pass, and says what it cost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.data.encoding import Example
from adaptive_lora.data.splits import calibration_subset
from adaptive_lora.planning.budget import Budget
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import Scaling
from adaptive_lora.planning.strategies.base import CalibrationOptions
from adaptive_lora.scores.gradients import gradient_scores
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Request:
    """What measures are taken on."""

    base: FrozenBase
    modules: tuple[ModuleShape, ...]
    examples: Sequence[Example]
    """Training examples; calibration draws from them."""
    options: CalibrationOptions
    seed: int
    budget: Budget
    scaling: Scaling
    training: TrainingOptions
    """How the planned adapter will be trained: what short runs go by."""

    def batches(self) -> list[list[Example]]:
        """The calibration batches."""
        size = self.options.calibration_batch_size
        chosen = calibration_subset(self.examples, self.options.calibration_batches * size, self.seed)
        return [list(chosen[at : at + size]) for at in range(0, len(chosen), size)]


@dataclass(frozen=True)
class Measured:
    """What was measured, and what that took."""

    scores: Mapping[str, Mapping[str, Any]]
    """Measure -> module -> value."""
    facts: Mapping[str, Any]
    """Seconds, calibration records, and what else a measure has to say of itself."""


Taking = Callable[[Sequence[str], Request], tuple[dict[str, dict[str, Any]], dict[str, Any]]]
"""Measures of one group -> their values, and facts about the taking."""


def measure(needs: Sequence[str], request: Request) -> Measured:
    """All measures in `needs`; each group is taken once, whatever the number of its measures."""
    scores: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {"seconds": {}}
    for group, (names, take) in GROUPS.items():
        if asked := [name for name in needs if name in names]:
            began = time.perf_counter()
            found, told = take(asked, request)
            scores |= found
            facts |= told
            facts["seconds"][group] = time.perf_counter() - began
    return Measured(scores, facts)


def _by_gradients(needs: Sequence[str], request: Request) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    batches = request.batches()
    chosen = [example for batch in batches for example in batch]
    found = gradient_scores(request.base, request.modules, chosen, request.options.calibration_batch_size, needs)
    return found, calibration_facts(batches)


def calibration_facts(batches: Sequence[Sequence[Example]]) -> dict[str, Any]:
    """How many records and tokens were used, and which: a hash of their tokens."""
    ids = [example.ids for batch in batches for example in batch]
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
    return {"calibration_records": len(ids), "calibration_tokens": sum(map(len, ids)), "calibration_hash": digest}


GROUPS: Mapping[str, tuple[frozenset[str], Taking]] = {
    "gradients": (frozenset({"weight-gradient", "gradient-norm"}), _by_gradients),
}
"""Group -> the measures that one pass gives together, and who takes them."""
