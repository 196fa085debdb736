"""Trains runs many at a time, in banks as large as memory allows, up to `LARGEST_BANK`.

A bank is described by a `BankTask`, trained by `bank_training.py` in this process or through an executor's door
(`executors/`), and recorded here. A bank in progress is saved to disk (`resume.py`): its run ids, its pass size, one
checkpoint per run. A study that is run again forms the same bank again, so that on a CPU it ends in the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from adaptive_lora.study.engines.bank_training import checkpoints_of, train_bank
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.ledger_reporter import LedgerReporter
from adaptive_lora.study.engines.resume import Composition, replace_composition
from adaptive_lora.study.executors.dispatch import Dispatcher
from adaptive_lora.study.executors.lease import banks_in_progress, copy_bank, drop
from adaptive_lora.study.executors.task import BankReporter, BankTask, RunTask, context_hash
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.progress import ProgressListener
from adaptive_lora.study.shards import banks_of
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.fidelity import check_bank
from adaptive_lora.training.memory import is_out_of_memory, members_at_once

LARGEST_BANK = 64
"""Most runs in a bank: results appear only when a bank ends, and a larger one is no faster."""


class BankEngine(Engine):
    """`engine: bank`, the default."""

    def evaluate_base(self) -> None:
        """Likewise, and once a study and machine the bank's pass without adapters against it, on the test split."""
        super().evaluate_base()
        base, test = self.prepared.base, self.prepared.splits.test
        versions = {name: metadata.version(name) for name in ("adaptive-lora", "torch", "transformers")}
        here = {"device": base.device.type, **versions}
        own = self.ledger.by_record(BASE, "test")
        if own is None or self.ledger.facts().get("bank_check", {}).get("here") == here:
            return
        self.listener.stage("comparing the bank with the frozen model")
        evaluation = Evaluation(own.nll, own.tokens, own.exact)
        found = check_bank(base, self.prepared.modules, test, evaluation, self.should_stop)
        self.ledger.set_facts({"bank_check": {"here": here, **asdict(found)}})

    def train(self, pending: Mapping[str, Run]) -> None:
        if self.door is not None:
            Dispatcher(self, self.door).train(list(self._tasks(pending)))
            return
        for task in self._tasks(pending):
            self._train_bank(task)

    def reporter(self, task: BankTask, listener: ProgressListener) -> BankReporter:
        """What hears of a bank and writes the ledger."""
        return LedgerReporter(self, task, listener)

    def unfinished(self, task: BankTask) -> tuple[RunTask, ...]:
        """The runs of a bank that have no result yet."""
        return tuple(run for run in task.runs if not self.ledger.status_of(run.run_id).is_finished)

    def _tasks(self, pending: Mapping[str, Run]) -> Iterator[BankTask]:
        """The banks of some runs: first those that were begun before, as they were."""
        waiting = dict(pending)
        for file, before in banks_in_progress(self.paths, self.listener.stage):
            again = {run_id: waiting.pop(run_id) for run_id in before.members if run_id in waiting}
            if again:
                yield self._task([self.task_of(run_id, run) for run_id, run in again.items()], before, file)
            elif all(self.ledger.status_of(run_id).is_finished for run_id in before.members):
                drop(file, before)  # all results stored, but killed before it was cleaned up
        most = self._most(len(waiting))
        while waiting:
            some = [(run_id, waiting.pop(run_id)) for run_id in list(waiting)[:most]]
            size = members_at_once(self.prepared.base, [self.task_of(*own).plan for own in some])
            size = max(1, size // (self.door.sharing if self.door else 1))
            for chosen in banks_of(some, size):
                composition = Composition(tuple(run_id for run_id, _ in chosen))
                yield self._task([self.task_of(*own) for own in chosen], composition, self.paths.bank)

    def _most(self, waiting: int) -> int:
        """Most runs of a bank: so many that every worker has one, unless the caller says."""
        share = math.ceil(waiting / self.door.count) if self.door and self.door.count else waiting
        return max(1, min(LARGEST_BANK, self.largest_bank or share))

    def _task(self, runs: Sequence[RunTask], composition: Composition, file: Path) -> BankTask:
        study = self.prepared.study
        return BankTask(
            study=dataclasses.replace(study, path=study.path.resolve()),
            context=context_hash(self.prepared.context),
            runs=tuple(runs),
            folder=self.paths.folder.resolve(),
            checkpoints=file.resolve(),
            composition=composition,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def _train_bank(self, task: BankTask) -> None:
        """Trains, evaluates and records a bank here; again in two halves where memory is not enough."""
        if task.checkpoints != self.paths.bank.resolve() and task.composition.folder:  # another process had begun it
            copy_bank(task.checkpoints, task.composition, self.paths.bank)
            drop(task.checkpoints, task.composition)
        checkpoints = checkpoints_of(dataclasses.replace(task, checkpoints=self.paths.bank), self.listener.stage)
        try:
            train_bank(self.prepared, task, LedgerReporter(self, task, self.listener), self.should_stop, checkpoints)
            if not self.unfinished(task):  # else checkpoints stay: what failed to be recorded is only evaluated again
                replace_composition(self.paths.bank, checkpoints.composition)
            return
        except Exception as error:
            if not (is_out_of_memory(error) and len(task.runs) > 1):
                # One bad bank must not take the others with it; the ledger has the reason.
                for run in self.unfinished(task):
                    self.failed(run.run_id, run.run, error)
                return
        finally:
            self.listener.close()
        # Outside `except`: the traceback would keep the failed bank in memory.
        newest, left = checkpoints.composition, self.unfinished(task)
        parts = [part for part in (left[: len(left) // 2], left[len(left) // 2 :]) if part]
        most = max(map(len, parts), default=0)
        self.listener.stage(f"out of memory with {len(task.runs)} adapters; retrying with {most}")
        halves = [newest.half([run.run_id for run in part]) for part in parts]
        replace_composition(self.paths.bank, newest, *halves)
        for part, half in zip(parts, halves, strict=True):
            self._train_bank(self._task(part, half, self.paths.bank))
