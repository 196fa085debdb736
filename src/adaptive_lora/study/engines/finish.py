"""What a trained adapter is evaluated on, and its result: the adapter is saved and read back, numbers are gathered."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.run_table import Phase
from adaptive_lora.study.adapter_files import seal_adapter
from adaptive_lora.study.executors.task import RunResult
from adaptive_lora.study.ledger import GENERAL
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.training.adapter import save_adapter
from adaptive_lora.training.checkpoint import Progress
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.peft_check import read_back
from adaptive_lora.training.reference import Diverged


def finished_run(
    prepared: PreparedStudy,
    run_id: str,
    plan: RankPlan,
    weights: Mapping[str, tuple[Tensor, Tensor]],
    progress: Progress,
    results: Mapping[str, Evaluation],
    folder: Path,
) -> RunResult:
    """A run's result, its adapter saved in `folder`; raises Diverged where a loss that counts is not finite."""
    # Of a text that nothing rests on a loss without end is missing, and makes no run one that diverged.
    results = {split: own for split, own in results.items() if split != GENERAL or math.isfinite(own.loss)}
    for split, result in results.items():
        if not math.isfinite(result.loss):
            raise Diverged(progress.steps_done, f"{split} loss")
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(weights, plan, folder, prepared.base, prepared.study.spec.train.dropout)
    read_back(folder, plan)
    plan.save(folder / "plan.json")
    seal_adapter(folder)
    updates = update_sizes(weights, plan, prepared.weight_norms)
    return RunResult(run_id, progress.curve, progress.train_seconds, results, updates)


def splits_of(prepared: PreparedStudy, phase: Phase) -> dict[str, tuple[Example, ...]]:
    """Validation always; test, and a general text, for evaluation runs alone: nothing is ever tuned on them."""
    splits = {"validation": tuple(prepared.splits.validation)}
    if phase == Phase.EVALUATION:
        splits["test"] = tuple(prepared.splits.test)
        if prepared.general:
            splits[GENERAL] = prepared.general
    return splits


def update_sizes(
    weights: Mapping[str, tuple[Tensor, Tensor]], plan: RankPlan, norms: Mapping[str, float]
) -> dict[str, float]:
    """Module -> ‖s B A‖ / ‖W‖, Frobenius norms: how far training moved it. ‖B A‖² = Σ (Bᵀ B) ⊙ (A Aᵀ).

    Weights of zeros have no such size and are left out.
    """
    sizes = {}
    for name, (a, b) in weights.items():
        if not norms[name]:
            continue
        a, b = a.double(), b.double()
        squared = float(((b.t() @ b) * (a @ a.t())).sum())
        sizes[name] = plan.scaling_of(name) * math.sqrt(max(squared, 0.0)) / norms[name]
    return sizes
