"""Runs many at a time, in banks as large as memory allows.

A bank in progress is on disk as a whole: one folder with a file per run, and `bank.json`, replaced last,
that says which folder counts, which runs form the bank and how it was cut. A study that goes on forms
the same bank again, so that on a processor it ends in the same bits.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adaptive_lora.files import write_atomically
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.record.runs import RunSpec
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.checkpoint import Progress, StepRecord, read_checkpoint, write_checkpoint
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.memory import is_out_of_memory, members_at_once
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Slot
from adaptive_lora.workers.common import Worker, label_of

_MOST = 64
"""Runs in a bank: results appear when a bank is through, and more gain nothing."""


@dataclass(frozen=True)
class Composition:
    """A bank in progress, as `bank.json` has it."""

    members: tuple[str, ...] = ()
    """Run ids in their order; a run that has diverged since is still named."""
    chunk_tokens: int | None = None
    folder: str = ""
    """Where the runs' checkpoints are; empty before the first."""

    @classmethod
    def read(cls, path: Path) -> Composition:
        """What was in progress; nothing if nothing was, or the file cannot be read."""
        try:
            content = json.loads(path.read_text())
            return cls(tuple(content["members"]), content["chunk_tokens"], content["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


@dataclass
class _Seat:
    """One run in a bank."""

    run_id: str
    run: RunSpec
    plan: RankPlan
    plan_seconds: float
    member: Member
    train_seconds: float = 0.0
    curve: list[StepRecord] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        return Progress(len(self.curve), self.train_seconds, tuple(self.curve))


class BankWorker(Worker):
    """`engine: bank`, the default."""

    def run_all(self, runs: Sequence[RunSpec]) -> None:
        by_id = self.register(runs)
        self.tell_planned()
        pending = {run_id: run for run_id, run in by_id.items() if not self.ledger.status_of(run_id).is_finished}
        before = Composition.read(self.paths.bank)
        again = {run_id: pending.pop(run_id) for run_id in before.members if run_id in pending}
        if again:
            self._together(self._seats(again), before)
        while pending:
            some = {run_id: pending.pop(run_id) for run_id in list(pending)[:_MOST]}
            seats = self._seats(some)
            size = members_at_once(self.material.base, [seat.plan for seat in seats]) if seats else 1
            for at in range(0, len(seats), size):
                chosen = seats[at : at + size]
                self._together(chosen, Composition(tuple(seat.run_id for seat in chosen)))

    def _seats(self, runs: Mapping[str, RunSpec]) -> list[_Seat]:
        """Plans the runs; one that cannot be planned is recorded as failed and left out."""
        self.watcher.stage(f"planning {len(runs)} runs")
        seats = []
        for run_id, run in runs.items():
            if self.should_stop():
                raise KeyboardInterrupt
            options = self.material.training_options(run)
            began = time.monotonic()
            try:
                examples = self.material.training_examples(run.seed)
                plan = self.material.plan(run, examples)
                member = Member(plan=plan, options=options, seed=run.seed, examples=examples)
                seats.append(_Seat(run_id, run, plan, time.monotonic() - began, member))
            except Exception as error:
                self.watcher.end(label_of(run), self.failed(run_id, error))
        return seats

    def _together(self, seats: Sequence[_Seat], composition: Composition) -> None:
        """Trains, evaluates and keeps a bank; half and half again where it finds no room."""
        if not seats:
            return
        try:
            self._train(seats, composition)
            return
        except Exception as error:
            if not (is_out_of_memory(error) and len(seats) > 1):
                # One bad bank must not take the others with it; the reason stands in the ledger.
                for seat in seats:
                    if not self.ledger.status_of(seat.run_id).is_finished:
                        self.watcher.end(label_of(seat.run), self.failed(seat.run_id, error))
                return
        # Outside the handler: the error holds the bank's frames, and they its memory.
        self.watcher.stage(f"no room for {len(seats)} adapters at once: half as many")
        for part in (seats[: len(seats) // 2], seats[len(seats) // 2 :]):
            unfinished = [seat for seat in part if not self.ledger.status_of(seat.run_id).is_finished]
            self._together(unfinished, Composition(composition.members, None, composition.folder))

    def _train(self, seats: Sequence[_Seat], composition: Composition) -> None:
        spec = self.material.study.spec.train
        steps = max(seat.member.options.steps for seat in seats)
        for seat in seats:
            engine = f"bank of {len(seats)}"  # what its seconds are to be read with
            self.ledger.begin(seat.run_id, engine, str(self.material.base.device), seat.member.options.steps)
        self.watcher.stage(f"training {len(seats)} {seats[0].run.phase} runs together")
        self.watcher.begin(f"{len(seats)} {seats[0].run.phase} runs", steps)
        bank = Bank(
            self.material.base,
            [seat.member for seat in seats],
            chunk_tokens=composition.chunk_tokens,
            checkpointing=spec.activation_checkpointing,
        )
        with bank:
            for seat, slot in zip(seats, bank.slots, strict=True):
                self._restore(seat, slot, composition)
            saving = _Saving(self, seats, bank, composition)
            while bank.running:
                self._update(bank, seats)
                if self.should_stop():
                    saving.save()
                    raise KeyboardInterrupt
                if not bank.running or time.monotonic() - saving.saved >= self.checkpoint_seconds:
                    saving.save()
            self._finish(bank, seats)
        self.paths.bank.unlink(missing_ok=True)
        for folder in self.paths.bank.parent.glob("bank-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _restore(self, seat: _Seat, slot: Slot, composition: Composition) -> None:
        path = self.paths.bank.parent / composition.folder / f"{seat.run_id}.safetensors"
        found = read_checkpoint(path, seat.run_id) if composition.folder else None
        seat.curve, seat.train_seconds = [], 0.0
        if found is None:
            return
        progress, tensors = found
        try:
            slot.restore(tensors)
        except (KeyError, RuntimeError):
            slot.reset()  # measured again, the plan came out otherwise: its run begins anew
            return
        slot.step, seat.curve, seat.train_seconds = progress.steps_done, list(progress.curve), progress.train_seconds

    def _update(self, bank: Bank, seats: Sequence[_Seat]) -> None:
        """One update of all, recorded; a run's share of the time is its share of the tokens."""
        began = time.monotonic()
        results = bank.step()
        seconds = time.monotonic() - began
        total = sum(bank.tokens.values())
        records = []
        for i, (seat, result) in enumerate(zip(seats, results, strict=True)):
            if isinstance(result, Diverged):
                self.watcher.end(label_of(seat.run), self.diverged(seat.run_id, result))
            elif result is not None:
                seat.curve.append(result)
                seat.train_seconds += seconds * bank.tokens[i] / total
                records.append(result)
        if records:
            self.watcher.step(_mean(records))

    def _finish(self, bank: Bank, seats: Sequence[_Seat]) -> None:
        alive = [i for i, seat in enumerate(seats) if not self.ledger.status_of(seat.run_id).is_finished]
        self.watcher.stage(f"evaluating {len(alive)} runs")
        splits = self.splits_of(seats[0].run.phase)
        results: dict[str, list[Evaluation]] = {
            split: bank.evaluate(examples, self.should_stop, alive) for split, examples in splits.items()
        }
        for k, i in enumerate(alive):
            seat = seats[i]
            own = {split: found[k] for split, found in results.items()}
            try:
                outcome = self.keep(
                    seat.run_id, seat.run, seat.plan, bank.slots[i].weights(), seat.progress, own, seat.plan_seconds
                )
            except Diverged as error:
                outcome = self.diverged(seat.run_id, error)
            except Exception as error:
                outcome = self.failed(seat.run_id, error)
            self.watcher.end(label_of(seat.run), outcome)
            self.tell_planned()


class _Saving:
    """Keeps a bank on disk: all runs of one moment, or those of the moment before."""

    def __init__(self, worker: BankWorker, seats: Sequence[_Seat], bank: Bank, composition: Composition) -> None:
        self._worker, self._seats, self._bank, self._composition = worker, seats, bank, composition
        self.saved = time.monotonic()

    def save(self) -> None:
        """Writes every run's checkpoint to a new folder, then the file that makes it count."""
        paths, before = self._worker.paths, self._composition
        folder = paths.bank.parent / f"bank-{max(len(seat.curve) for seat in self._seats)}"
        folder.mkdir(parents=True, exist_ok=True)
        for seat, slot in zip(self._seats, self._bank.slots, strict=True):
            write_checkpoint(folder / f"{seat.run_id}.safetensors", seat.run_id, seat.progress, slot.tensors())
        self._composition = Composition(before.members, self._bank.chunk_tokens, folder.name)
        write_atomically(paths.bank, json.dumps(asdict(self._composition)))
        if before.folder and before.folder != folder.name:
            shutil.rmtree(paths.bank.parent / before.folder, ignore_errors=True)
        for seat in self._seats:
            self._worker.ledger.record_step(seat.run_id, len(seat.curve))
        self.saved = time.monotonic()


def _mean(records: Sequence[StepRecord]) -> StepRecord:
    """The furthest step, the mean loss: what a watcher is told of a bank."""
    last = max(records, key=lambda record: record.step)
    return StepRecord(
        last.step,
        sum(record.loss for record in records) / len(records),
        sum(record.gradient_norm for record in records) / len(records),
        last.learning_rate,
        sum(record.tokens for record in records),
    )
