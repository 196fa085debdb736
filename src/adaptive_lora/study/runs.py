"""Which runs a study consists of, and what makes each of them the run it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.protocol import arms_on_budgets, baseline_of
from adaptive_lora.study.schema import ArmPart, ScalingPart, StudySpec
from adaptive_lora.study.settings import own_training, scaling_of


@dataclass(frozen=True)
class RunSpec:
    """One adapter to train: plan, learning rate and seed."""

    phase: Phase
    arm: ArmPart
    budget: str
    scaling: ScalingPart
    learning_rate: float
    seed: int
    replica: int = 0
    """Twins of a run differ in it alone; it enters no random stream."""

    def run_id(self, context: Mapping[str, Any]) -> str:
        """Hash of what determines the result: the study's material and training (`context`) and this run.

        The arm's name and the phase are labels and do not enter.
        """
        identity = {
            "context": context,
            "arm": self.arm.model_dump(mode="json", exclude={"name", "scaling", "train"}),
            **({"train": own} if (own := own_training(self.arm)) else {}),
            "budget": self.budget,
            "scaling": self.scaling.model_dump(mode="json"),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "replica": self.replica,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def tuning_runs(spec: StudySpec, grid: Sequence[float] | None = None) -> Iterator[RunSpec]:
    """Every arm at every rate of the grid, by default the study file's, with every tuning seed; none where there is
    one rate and so no choice."""
    if not single_rate(spec):
        for budget, arm in arms_on_budgets(spec):
            for rate in grid or spec.train.learning_rate:
                for seed in spec.seeds.tuning:
                    yield RunSpec(Phase.TUNING, arm, budget, scaling_of(spec, arm), rate, seed)


def evaluation_runs(spec: StudySpec, chosen: Mapping[tuple[str, str], float]) -> Iterator[RunSpec]:
    """Every arm with every evaluation seed, seed by seed, at the rate chosen for (arm, budget).

    Arms whose rate is not chosen yet are left out. The first seed has the baseline's twins too.
    """
    for seed in spec.seeds.evaluation:
        for budget, arm in arms_on_budgets(spec):
            if (rate := chosen.get((arm.name, budget))) is not None:
                own = RunSpec(Phase.EVALUATION, arm, budget, scaling_of(spec, arm), rate, seed)
                yield own
                if _has_twin(spec, own):
                    yield replace(own, replica=1)


def _has_twin(spec: StudySpec, run: RunSpec) -> bool:
    first, baseline = spec.seeds.evaluation[0], baseline_of(spec).name
    return "twin" in spec.controls and (run.seed, run.arm.name) == (first, baseline) and run.budget in spec.budgets


def single_rate(spec: StudySpec) -> dict[tuple[str, str], float]:
    """The choice where the study gives one learning rate, empty where it gives a grid."""
    rates, widen = spec.train.learning_rate, spec.train.widen
    return {} if len(rates) > 1 or widen else {(arm.name, budget): rates[0] for budget, arm in arms_on_budgets(spec)}


def count_runs(spec: StudySpec, grid: Sequence[float] | None = None) -> dict[Phase, int]:
    """How many runs each phase has in the end, with this grid of rates."""
    every = {(arm.name, budget): 1.0 for budget, arm in arms_on_budgets(spec)}
    return {
        Phase.TUNING: len(list(tuning_runs(spec, grid))),
        Phase.EVALUATION: len(list(evaluation_runs(spec, every))),
    }
