"""Runs many at a time, in banks as large as memory allows.

A bank in progress is on disk as a whole (`composition.py`): its runs, how it was cut, a checkpoint of each. A
study that goes on forms the same bank again, so that on a processor it ends in the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.engines.devices import warn_of_other_devices
from adaptive_lora.study.engines.engine import Worker, label_of
from adaptive_lora.study.engines.resume import Composition, read_compositions, replace_composition
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.checkpoint import Progress, StepRecord, read_checkpoint, write_checkpoint
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.memory import is_out_of_memory, members_at_once
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.slots import Slot

_MOST = 64
"""Runs in a bank: results appear when a bank is through, and more gain nothing."""


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
        warn_of_other_devices(self, by_id)
        self.tell_planned()
        pending = {run_id: run for run_id, run in by_id.items() if not self.ledger.status_of(run_id).is_finished}
        for before in read_compositions(self.paths.bank):
            again = {run_id: pending.pop(run_id) for run_id in before.members if run_id in pending}
            if again:
                self._together(self._seats(again), before)
            elif all(self.ledger.status_of(run_id).is_finished for run_id in before.members):
                replace_composition(self.paths.bank, before)  # cut between its last result and its end
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
        saving = _Saving(self, seats, composition)
        try:
            self._train(seats, saving)
            return
        except Exception as error:
            if not (is_out_of_memory(error) and len(seats) > 1):
                # One bad bank must not take the others with it; the reason stands in the ledger.
                for seat in self._unfinished(seats):
                    self.watcher.end(label_of(seat.run), self.failed(seat.run_id, error))
                return
        # Outside the handler: the error holds the bank's frames, and they its memory.
        self.watcher.stage(f"no room for {len(seats)} adapters at once: half as many")
        newest, left = saving.composition, self._unfinished(seats)
        parts = [part for part in (left[: len(left) // 2], left[len(left) // 2 :]) if part]
        halves = [Composition(tuple(seat.run_id for seat in part), None, newest.folder) for part in parts]
        replace_composition(self.paths.bank, newest, *halves)
        for part, half in zip(parts, halves, strict=True):
            self._together(part, half)

    def _unfinished(self, seats: Sequence[_Seat]) -> list[_Seat]:
        return [seat for seat in seats if not self.ledger.status_of(seat.run_id).is_finished]

    def _train(self, seats: Sequence[_Seat], saving: _Saving) -> None:
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
            chunk_tokens=saving.composition.chunk_tokens,
            checkpointing=spec.activation_checkpointing,
        )
        with bank:
            for seat, slot in zip(seats, bank.slots, strict=True):
                self._restore(seat, slot, saving.composition)
            while bank.running:
                self._update(bank, seats)
                if self.should_stop():
                    saving.save(bank)
                    raise KeyboardInterrupt
                if not bank.running or time.monotonic() - saving.saved >= self.checkpoint_seconds:
                    saving.save(bank)
            self._finish(bank, seats)
        if not self._unfinished(seats):  # what could not be kept is evaluated again, not trained
            replace_composition(self.paths.bank, saving.composition)

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

    def __init__(self, worker: BankWorker, seats: Sequence[_Seat], composition: Composition) -> None:
        self._worker, self._seats = worker, seats
        self.composition = composition
        """The newest on disk: what the runs go on from, whatever becomes of the bank."""
        self.saved = time.monotonic()

    def save(self, bank: Bank) -> None:
        """Writes every run's checkpoint to a new folder, then the file that makes it count."""
        path, before = self._worker.paths.bank, self.composition
        folder = path.parent / f"bank-{max(len(seat.curve) for seat in self._seats)}"
        folder.mkdir(parents=True, exist_ok=True)
        for seat, slot in zip(self._seats, bank.slots, strict=True):
            write_checkpoint(folder / f"{seat.run_id}.safetensors", seat.run_id, seat.progress, slot.tensors())
        self.composition = Composition(before.members, bank.chunk_tokens, folder.name)
        replace_composition(path, before, self.composition)
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
