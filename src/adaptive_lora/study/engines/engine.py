"""What both engines share: the frozen model's own losses, plans from the ledger, how a result is recorded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.engines.devices import warn_of_other_devices
from adaptive_lora.study.engines.scorer import Scorer
from adaptive_lora.study.engines.trackers import Trackers
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import BASE, GENERAL, Ledger, SplitResult
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.planning_phase import plan_runs
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.training.adapter import save_adapter
from adaptive_lora.training.checkpoint import Progress
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.fidelity import check_alone, check_causal
from adaptive_lora.training.peft_check import read_back
from adaptive_lora.training.reference import Diverged


@dataclass
class Tally:
    """How many of the study's runs have a result; counted here, so that no run makes anyone read the ledger."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Engine:
    """One process that trains the runs of one study."""

    prepared: PreparedStudy
    ledger: Ledger
    paths: StudyPaths
    listener: ProgressListener
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    trackers: Trackers = field(default_factory=Trackers)
    largest_bank: int | None = None
    """Most runs trained together; None leaves it to the engine."""
    tally: Tally = field(default_factory=Tally)
    scorer: Scorer | None = None
    """What makes the values of the study's metric, where its own evaluation does not."""

    def run_all(self, runs: Sequence[Run], expected: int) -> None:
        """Plans and trains what is not finished among `runs`, all of one phase of a study of `expected` runs."""
        context = self.prepared.context
        by_id = {run.run_id(context): run for run in runs}
        self.ledger.register(by_id)
        statuses = self.ledger.statuses()
        self.tally.done, self.tally.total = sum(status.is_finished for status in statuses.values()), expected
        pending = {run_id: run for run_id, run in by_id.items() if not statuses[run_id].is_finished}
        warn_of_other_devices(self.prepared, self.ledger, by_id, self.listener.stage)
        self.listener.runs(self.tally.done, self.tally.total)
        for run_id, error in plan_runs(self.prepared, self.ledger, pending, self.listener, self.should_stop).items():
            self.failed(run_id, pending.pop(run_id), error)
        self.train(pending)

    def train(self, pending: Mapping[str, Run]) -> None:
        """Trains planned runs by id."""
        raise NotImplementedError

    def evaluate_base(self) -> None:
        """The frozen model on every split, once a study, by the model itself; ModelError where its losses mean nothing:
        where it sees later tokens, or a text's loss depends on the others in its batch."""
        splits = {name: own for name, own in self.splits_of(Phase.EVALUATION).items() if not self._has_base(name)}
        if not splits:
            return
        self.listener.stage("evaluating the frozen model")
        base = self.prepared.base
        check_causal(base)
        found = {
            name: evaluate(base.model, examples, base.device, self.should_stop) for name, examples in splits.items()
        }
        if "test" in found:
            check_alone(base, splits["test"], found["test"])
        self.ledger.store_base({name: _result(evaluation) for name, evaluation in found.items()})

    def _has_base(self, split: str) -> bool:
        return (BASE, split) in self.ledger.totals()

    def plan_of(self, run_id: str) -> tuple[RankPlan, float]:
        """The plan that the ledger keeps of a run, and the seconds that it took."""
        found = self.ledger.planning.plan(run_id)
        if found is None:
            raise TrainingError(f"The ledger has no plan of run {run_id}; run the study again.")
        return RankPlan.from_json(found[0]), found[1]

    def splits_of(self, phase: Phase) -> dict[str, tuple[Example, ...]]:
        """Validation always; test, and a general text, for evaluation runs alone: nothing is ever tuned on them."""
        splits = {"validation": tuple(self.prepared.splits.validation)}
        if phase == Phase.EVALUATION:
            splits["test"] = tuple(self.prepared.splits.test)
            if self.prepared.general:
                splits[GENERAL] = self.prepared.general
        return splits

    def diverged(self, run_id: str, run: Run, error: Diverged) -> None:
        """Records a run whose loss or gradient was not finite."""
        self.ledger.fail(run_id, Status.DIVERGED, str(error), error.step)
        self.finished(run, f"diverged at step {error.step}")

    def failed(self, run_id: str, run: Run, error: Exception) -> None:
        """Records a run that could not be done; the next call tries it again."""
        reason = f"{type(error).__name__}: {error}"
        self.ledger.fail(run_id, Status.FAILED, reason)
        self.listener.result(run.label, f"failed: {reason}")

    def record(
        self,
        run_id: str,
        run: Run,
        plan: tuple[RankPlan, float],
        weights: Mapping[str, tuple[Tensor, Tensor]],
        progress: Progress,
        results: Mapping[str, Evaluation],
    ) -> None:
        """Saves the adapter and records everything else in the ledger; `plan` with its seconds. Raises Diverged."""
        # Of a text that nothing rests on a loss without end is missing, and makes no run one that diverged.
        results = {split: own for split, own in results.items() if split != GENERAL or math.isfinite(own.loss)}
        for split, result in results.items():
            if not math.isfinite(result.loss):
                raise Diverged(progress.steps_done, f"{split} loss")
        self._save_adapter(run_id, plan[0], weights)
        names = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
        self.ledger.complete(
            run_id,
            {**plan[0].to_json(), "updates": update_sizes(weights, plan[0], self.prepared.weight_norms)},
            {name: [float(getattr(record, name)) for record in progress.curve] for name in names},
            {split: _result(result) for split, result in results.items()},
            {"plan": plan[1], "train": progress.train_seconds},
        )
        self.trackers.log(run, progress.curve, {name: found.loss for name, found in results.items()})
        self.finished(run, ", ".join(f"{split} loss {result.loss:.4f}" for split, result in results.items()))

    def finished(self, run: Run, outcome: str) -> None:
        """Counts a run that has a result, and says so."""
        self.tally.done += 1
        self.listener.result(run.label, outcome)
        self.listener.runs(self.tally.done, self.tally.total)

    def _save_adapter(self, run_id: str, plan: RankPlan, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        folder = self.paths.adapter(run_id)
        temporary = folder.with_name(f".{run_id}")
        shutil.rmtree(temporary, ignore_errors=True)
        save_adapter(weights, plan, temporary, self.prepared.base, self.prepared.study.spec.train.dropout)
        read_back(temporary, plan)
        plan.save(temporary / "plan.json")
        # The new folder is whole before the old one goes, so that a kill leaves one of them.
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


def _result(evaluation: Evaluation) -> SplitResult:
    return SplitResult(evaluation.nll, evaluation.tokens, evaluation.exact)
