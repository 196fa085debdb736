"""What every worker does alike: the frozen model's own losses, what is pending, how a result is kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.engines.trackers import Trackers
from adaptive_lora.study.engines.watcher import Watcher
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.learning_rate_search import outcome_of
from adaptive_lora.study.ledger import BASE, Ledger, SplitResult
from adaptive_lora.study.prepare import Material
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.training.adapter import save_adapter
from adaptive_lora.training.checkpoint import Progress
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.reference import Diverged


@dataclass(frozen=True)
class Worker:
    """One process at work on one study."""

    material: Material
    ledger: Ledger
    paths: StudyPaths
    watcher: Watcher
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    trackers: Trackers = field(default_factory=Trackers)

    def run_all(self, runs: Sequence[RunSpec]) -> None:
        """Trains what is not finished among `runs`, all of one phase."""
        raise NotImplementedError

    def evaluate_base(self) -> None:
        """The frozen model on both splits, once a study."""
        if (BASE, "test") in self.ledger.totals():
            return
        self.watcher.stage("evaluating the frozen model")
        base = self.material.base
        splits = {"validation": self.material.splits.validation, "test": self.material.splits.test}
        self.ledger.store_base(
            {
                name: _result(evaluate(base.model, examples, base.device, self.should_stop))
                for name, examples in splits.items()
            }
        )

    def register(self, runs: Sequence[RunSpec]) -> dict[str, RunSpec]:
        """Makes the runs known to the ledger; all of them by id."""
        context = self.material.context()
        by_id = {run.run_id(context): run for run in runs}
        self.ledger.register(by_id)
        return by_id

    def tell_planned(self) -> None:
        """Tells the watcher how many runs stand; KeyboardInterrupt if the study shall stop."""
        outcome = outcome_of(self.material.study.spec, self.ledger)
        self.watcher.planned(outcome.completed + outcome.diverged, outcome.total)

    def splits_of(self, phase: Phase) -> dict[str, tuple[Example, ...]]:
        """Validation always; test for evaluation runs alone, so that nothing is ever tuned on it."""
        splits = {"validation": tuple(self.material.splits.validation)}
        if phase == Phase.EVALUATION:
            splits["test"] = tuple(self.material.splits.test)
        return splits

    def diverged(self, run_id: str, error: Diverged) -> str:
        """Records a run that gave no result; says so in a few words."""
        self.ledger.fail(run_id, Status.DIVERGED, str(error), error.step)
        return f"diverged at step {error.step}"

    def failed(self, run_id: str, error: Exception) -> str:
        """Records a run that could not be done; says so in a few words."""
        reason = f"{type(error).__name__}: {error}"
        self.ledger.fail(run_id, Status.FAILED, reason)
        return f"failed: {reason}"

    def keep(
        self,
        run_id: str,
        run: RunSpec,
        plan: RankPlan,
        weights: Mapping[str, tuple[Tensor, Tensor]],
        progress: Progress,
        results: Mapping[str, Evaluation],
        plan_seconds: float,
    ) -> str:
        """The adapter to its folder and everything else to the ledger; says the losses. Raises Diverged."""
        for split, result in results.items():
            if not math.isfinite(result.loss):
                raise Diverged(progress.steps_done, f"{split} loss")
        self._keep_adapter(run_id, plan, weights)
        names = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
        self.ledger.complete(
            run_id,
            {**plan.to_json(), "updates": update_sizes(weights, plan, self.material.weight_norms)},
            {name: [float(getattr(record, name)) for record in progress.curve] for name in names},
            {split: _result(result) for split, result in results.items()},
            {"plan": plan_seconds, "train": progress.train_seconds},
        )
        self.trackers.tell(run, label_of(run), progress.curve, {name: found.loss for name, found in results.items()})
        return ", ".join(f"{split} loss {result.loss:.4f}" for split, result in results.items())

    def _keep_adapter(self, run_id: str, plan: RankPlan, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        folder = self.paths.adapter(run_id)
        temporary = folder.with_name(f".{run_id}")
        shutil.rmtree(temporary, ignore_errors=True)
        save_adapter(weights, plan, temporary, self.material.base, self.material.study.spec.train.dropout)
        plan.save(temporary / "plan.json")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)


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


def label_of(run: RunSpec) -> str:
    """A run in a line: `evaluation uniform rank:8 seed 0 rate 0.001`."""
    return f"{run.phase} {run.arm.name} {run.budget} seed {run.seed} rate {run.learning_rate:g}"


def _result(evaluation: Evaluation) -> SplitResult:
    return SplitResult(evaluation.nll, evaluation.tokens, evaluation.exact)
