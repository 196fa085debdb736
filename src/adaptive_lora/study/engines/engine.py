"""What both engines share: the frozen model's own losses, plans from the ledger, how a result is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.engines.devices import warn_of_other_devices
from adaptive_lora.study.engines.finish import splits_of
from adaptive_lora.study.engines.scorer import Scorer
from adaptive_lora.study.engines.trackers import Trackers
from adaptive_lora.study.executors.door import Door
from adaptive_lora.study.executors.task import RunResult, RunTask
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.kept_adapters import drop_adapters
from adaptive_lora.study.ledger import BASE, Ledger, SplitResult
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.planning_phase import plan_runs
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.study.shards import Shard, ShardWaits, finished_before
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.fidelity import check_alone, check_causal
from adaptive_lora.training.reference import Diverged

_DROPPED_EVERY = 64
"""Runs after which adapters that are not to be kept are deleted."""


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
    door: Door | None = None
    """To other workers; None trains in this process."""
    shard: Shard | None = None
    """Which share of the banks is trained here; None is all of them."""
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
        if self.shard is None:
            self.train(pending)
        else:
            self._train_share(self.shard, by_id, pending)
        drop_adapters(self.prepared.study, self.ledger, self.paths)

    def _train_share(self, shard: Shard, asked: Mapping[str, Run], pending: Mapping[str, Run]) -> None:
        """Trains the share of a shard; ShardWaits where others have the rest, without which nothing follows."""
        before = finished_before(self.ledger, shard)
        share = shard.share({run_id: run for run_id, run in asked.items() if run_id not in before}, self.largest_bank)
        self.train({run_id: run for run_id, run in share.items() if run_id in pending})
        statuses = self.ledger.statuses()
        if missing := [run_id for run_id in asked if run_id not in share and not statuses[run_id].is_finished]:
            raise ShardWaits(len(missing))

    def train(self, pending: Mapping[str, Run]) -> None:
        """Trains planned runs by id."""
        raise NotImplementedError

    def evaluate_base(self) -> None:
        """The frozen model on every split, once a study, by the model itself; ModelError where its losses mean nothing:
        where it sees later tokens, or a text's loss depends on the others in its batch."""
        splits = {
            name: own for name, own in splits_of(self.prepared, Phase.EVALUATION).items() if not self._has_base(name)
        }
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

    def task_of(self, run_id: str, run: Run) -> RunTask:
        """A run with the plan that the ledger keeps of it, and the seconds that this took."""
        found = self.ledger.planning.plan(run_id)
        if found is None:
            raise TrainingError(f"The ledger has no plan of run {run_id}; run the study again.")
        return RunTask(run_id, run, RankPlan.from_json(found[0]), found[1])

    def diverged(self, run_id: str, run: Run, error: Diverged) -> None:
        """Records a run whose loss or gradient was not finite."""
        self.ledger.fail(run_id, Status.DIVERGED, str(error), error.step)
        self.finished(run, f"diverged at step {error.step}")

    def failed(self, run_id: str, run: Run, error: Exception | str) -> None:
        """Records a run that could not be done; the next call tries it again."""
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.ledger.fail(run_id, Status.FAILED, reason)
        self.listener.result(run.label, f"failed: {reason}")

    def record(self, task: RunTask, result: RunResult, adapter: Path) -> None:
        """Takes the adapter to its place and records everything else in the ledger."""
        self._take_adapter(task.run_id, adapter)
        names = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
        self.ledger.complete(
            task.run_id,
            {**task.plan.to_json(), "updates": dict(result.updates)},
            {name: [float(getattr(record, name)) for record in result.curve] for name in names},
            {split: _result(own) for split, own in result.results.items()},
            {"plan": task.plan_seconds, "train": result.train_seconds},
        )
        losses = {name: found.loss for name, found in result.results.items()}
        self.trackers.log(task.run, result.curve, losses)
        self.finished(task.run, ", ".join(f"{split} loss {loss:.4f}" for split, loss in losses.items()))

    def finished(self, run: Run, outcome: str) -> None:
        """Counts a run that has a result, and says so."""
        self.tally.done += 1
        self.listener.result(run.label, outcome)
        self.listener.runs(self.tally.done, self.tally.total)
        if not self.tally.done % _DROPPED_EVERY:
            drop_adapters(self.prepared.study, self.ledger, self.paths)

    def _take_adapter(self, run_id: str, made: Path) -> None:
        folder = self.paths.adapter(run_id)
        # The new folder is whole before the old one goes, so that a kill leaves one of them.
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def _result(evaluation: Evaluation) -> SplitResult:
    return SplitResult(evaluation.nll, evaluation.tokens, evaluation.exact)
