"""Trains and evaluates one bank, by its task alone: no ledger here. The driver does this itself, or a worker for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adaptive_lora.data.encoding import Example
from adaptive_lora.study.engines.finish import finished_run, splits_of
from adaptive_lora.study.engines.resume import BankCheckpoints
from adaptive_lora.study.executors.task import BankReporter, BankTask, RunTask
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.checkpoint import Progress, StepRecord
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.reference import Diverged


@dataclass
class BankRun:
    """One run in a bank, and how far it has come."""

    task: RunTask
    member: Member
    train_seconds: float = 0.0
    curve: list[StepRecord] = field(default_factory=list)
    lost: bool = False
    """Whether it has diverged."""

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.task.run_id

    @property
    def progress(self) -> Progress:
        """Checkpoint metadata: everything but tensors."""
        return Progress(len(self.curve), self.train_seconds, tuple(self.curve))


@dataclass(frozen=True)
class BankTraining:
    """One bank on its way; see `train_bank`."""

    prepared: PreparedStudy
    task: BankTask
    reporter: BankReporter
    should_stop: Callable[[], bool]
    checkpoints: BankCheckpoints
    runs: Sequence[BankRun]

    def train(self) -> None:
        """Goes on from the newest checkpoint to the last update, and evaluates."""
        bank = Bank(
            self.prepared.base,
            [run.member for run in self.runs],
            chunk_tokens=self.checkpoints.composition.chunk_tokens,
            checkpointing=self.prepared.study.spec.train.activation_checkpointing,
            texts=[example for split in self._splits.values() for example in split],
        )
        with bank:
            self.reporter.began(str(self.prepared.base.device), bank.kernels)
            for run, slot in zip(self.runs, bank.slots, strict=True):
                progress = self.checkpoints.resume(run.run_id, slot)
                run.curve, run.train_seconds = list(progress.curve), progress.train_seconds
            while bank.running:
                self._update(bank)
                stopping = self.should_stop()
                if stopping or not bank.running or self.checkpoints.due():
                    self._save(bank)
                if stopping:
                    raise KeyboardInterrupt
            self._evaluate(bank)

    @property
    def _splits(self) -> dict[str, tuple[Example, ...]]:
        return splits_of(self.prepared, self.task.runs[0].run.phase)

    def _save(self, bank: Bank) -> None:
        states = {run.run_id: (run.progress, slot.tensors) for run, slot in zip(self.runs, bank.slots, strict=True)}
        self.checkpoints.save(states, bank.chunk_tokens)
        self.reporter.saved({run.run_id: len(run.curve) for run in self.runs})

    def _update(self, bank: Bank) -> None:
        """One update of all, recorded; a run's share of the time is its share of the tokens."""
        began = time.monotonic()
        results = bank.step()
        seconds = time.monotonic() - began
        total = sum(bank.tokens.values())
        records = []
        for i, (run, result) in enumerate(zip(self.runs, results, strict=True)):
            if isinstance(result, Diverged):
                self._diverged(run, result)
            elif result is not None:
                run.curve.append(result)
                run.train_seconds += seconds * bank.tokens[i] / total
                records.append(result)
        if records:
            self.reporter.step(_mean(records))

    def _diverged(self, run: BankRun, error: Diverged) -> None:
        run.lost = True
        self.reporter.diverged(run.run_id, error.step, error.what)

    def _evaluate(self, bank: Bank) -> None:
        alive = [i for i, run in enumerate(self.runs) if not run.lost]
        self.reporter.evaluating(len(alive))
        results: dict[str, list[Evaluation]] = {
            split: bank.evaluate(examples, self.should_stop, alive) for split, examples in self._splits.items()
        }
        for k, i in enumerate(alive):
            run = self.runs[i]
            own, folder = {split: found[k] for split, found in results.items()}, self.task.adapter(run.run_id)
            try:
                result = finished_run(
                    self.prepared, run.run_id, run.task.plan, bank.slots[i].weights(), run.progress, own, folder
                )
                self.reporter.result(result)
            except Diverged as error:
                self._diverged(run, error)
            except Exception as error:
                self.reporter.failed(run.run_id, error)


def train_bank(
    prepared: PreparedStudy,
    task: BankTask,
    reporter: BankReporter,
    should_stop: Callable[[], bool],
    checkpoints: BankCheckpoints | None = None,
) -> None:
    """Trains and evaluates a bank from where its task says that it is; results go to `reporter`.

    KeyboardInterrupt after a checkpoint where `should_stop` says so; whatever goes wrong otherwise is raised, and the
    bank can go on from what `checkpoints` saved last.
    """
    checkpoints = checkpoints or checkpoints_of(task, reporter.say)
    runs = [
        BankRun(
            own,
            Member(
                plan=own.plan,
                options=prepared.training_options(own.run),
                seed=own.run.seed,
                examples=prepared.training_examples(own.run.seed),
            ),
        )
        for own in task.runs
    ]
    BankTraining(prepared, task, reporter, should_stop, checkpoints, runs).train()


def checkpoints_of(task: BankTask, say: Callable[[str], None]) -> BankCheckpoints:
    """Where a bank goes on from: its newest checkpoint that is sound; `say` is told of one that is not."""
    return BankCheckpoints(
        task.checkpoints, task.composition, task.checkpoint_seconds, [own.run_id for own in task.runs], say
    )


def _mean(records: Sequence[StepRecord]) -> StepRecord:
    """The furthest step and the mean loss: the bank's progress in one record."""
    last = max(records, key=lambda record: record.step)
    return StepRecord(
        last.step,
        sum(record.loss for record in records) / len(records),
        sum(record.gradient_norm for record in records) / len(records),
        last.learning_rate,
        sum(record.tokens for record in records),
    )
