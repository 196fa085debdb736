"""Trains runs many at a time, in banks as large as memory allows, up to `LARGEST_BANK`.

A bank in progress is saved to disk (`resume.py`): its run ids, its pass size, one checkpoint per run. A study that is
run again forms the same bank again, so that on a CPU it ends in the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.resume import BankCheckpoints, Composition, read_compositions, replace_composition
from adaptive_lora.study.ledger import BASE
from adaptive_lora.study.matrix import Run
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.checkpoint import Progress, StepRecord
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.fidelity import check_bank
from adaptive_lora.training.memory import is_out_of_memory, members_at_once
from adaptive_lora.training.reference import Diverged

LARGEST_BANK = 64
"""Most runs in a bank: results appear only when a bank ends, and a larger one is no faster."""


@dataclass
class BankRun:
    """One run in a bank, and how far it has come."""

    run_id: str
    run: Run
    plan: RankPlan
    plan_seconds: float
    member: Member
    train_seconds: float = 0.0
    curve: list[StepRecord] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        """Checkpoint metadata: everything but tensors."""
        return Progress(len(self.curve), self.train_seconds, tuple(self.curve))


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
        waiting, most = dict(pending), min(LARGEST_BANK, self.largest_bank or LARGEST_BANK)
        for before in read_compositions(self.paths.bank, self.listener.stage):
            again = {run_id: waiting.pop(run_id) for run_id in before.members if run_id in waiting}
            if again:
                self._train_bank(self._bank_runs(again), before)
            elif all(self.ledger.status_of(run_id).is_finished for run_id in before.members):
                replace_composition(self.paths.bank, before)  # all results stored, but killed before it was cleaned up
        while waiting:
            some = {run_id: waiting.pop(run_id) for run_id in list(waiting)[:most]}
            runs = self._bank_runs(some)
            size = members_at_once(self.prepared.base, [run.plan for run in runs])
            for at in range(0, len(runs), size):
                chosen = runs[at : at + size]
                self._train_bank(chosen, Composition(tuple(run.run_id for run in chosen)))

    def _bank_runs(self, runs: Mapping[str, Run]) -> list[BankRun]:
        found = []
        for run_id, run in runs.items():
            plan, seconds = self.plan_of(run_id)
            member = Member(
                plan=plan, options=self.prepared.training_options(run), seed=run.seed,
                examples=self.prepared.training_examples(run.seed),
            )  # fmt: skip
            found.append(BankRun(run_id, run, plan, seconds, member))
        return found

    def _train_bank(self, runs: Sequence[BankRun], composition: Composition) -> None:
        """Trains, evaluates and records a bank; again in two halves where memory is not enough."""
        ids = [run.run_id for run in runs]
        checkpoints = BankCheckpoints(self.paths.bank, composition, self.checkpoint_seconds, ids, self.listener.stage)
        try:
            self._train(runs, checkpoints)
            return
        except Exception as error:
            if not (is_out_of_memory(error) and len(runs) > 1):
                # One bad bank must not take the others with it; the ledger has the reason.
                for run in self._unfinished(runs):
                    self.failed(run.run_id, run.run, error)
                return
        finally:
            self.listener.close()
        # Outside `except`: the traceback would keep the failed bank in memory.
        newest, left = checkpoints.composition, self._unfinished(runs)
        parts = [part for part in (left[: len(left) // 2], left[len(left) // 2 :]) if part]
        self.listener.stage(f"out of memory with {len(runs)} adapters; retrying with {max(map(len, parts), default=0)}")
        smaller = replace(newest, chunk_tokens=None, before_chunk_tokens=None)
        halves = [replace(smaller, members=tuple(run.run_id for run in part)) for part in parts]
        replace_composition(self.paths.bank, newest, *halves)
        for part, half in zip(parts, halves, strict=True):
            self._train_bank(part, half)

    def _unfinished(self, runs: Sequence[BankRun]) -> list[BankRun]:
        return [run for run in runs if not self.ledger.status_of(run.run_id).is_finished]

    def _train(self, runs: Sequence[BankRun], checkpoints: BankCheckpoints) -> None:
        phase, steps = runs[0].run.phase, max(run.member.options.steps for run in runs)
        bank = Bank(
            self.prepared.base,
            [run.member for run in runs],
            chunk_tokens=checkpoints.composition.chunk_tokens,
            checkpointing=self.prepared.study.spec.train.activation_checkpointing,
            texts=[example for split in self.splits_of(phase).values() for example in split],
        )
        with bank:
            for run in runs:
                # The size of the bank is recorded with the run: its seconds are a share of the bank's.
                name, device = f"bank of {len(runs)}", str(self.prepared.base.device)
                self.ledger.begin(run.run_id, name, device, run.member.options.steps, bank.kernels)
            self.listener.begin(f"{len(runs)} {phase} runs", steps)
            for run, slot in zip(runs, bank.slots, strict=True):
                progress = checkpoints.resume(run.run_id, slot)
                run.curve, run.train_seconds = list(progress.curve), progress.train_seconds
            while bank.running:
                self._update(bank, runs)
                stopping = self.should_stop()
                if stopping or not bank.running or checkpoints.due():
                    self._save(bank, runs, checkpoints)
                if stopping:
                    raise KeyboardInterrupt
            self._evaluate(bank, runs)
        if not self._unfinished(runs):  # else checkpoints stay: what failed to be recorded is only evaluated again
            replace_composition(self.paths.bank, checkpoints.composition)

    def _save(self, bank: Bank, runs: Sequence[BankRun], checkpoints: BankCheckpoints) -> None:
        states = {run.run_id: (run.progress, slot.tensors) for run, slot in zip(runs, bank.slots, strict=True)}
        checkpoints.save(states, bank.chunk_tokens)
        for run in runs:
            self.ledger.record_step(run.run_id, len(run.curve))

    def _update(self, bank: Bank, runs: Sequence[BankRun]) -> None:
        """One update of all, recorded; a run's share of the time is its share of the tokens."""
        began = time.monotonic()
        results = bank.step()
        seconds = time.monotonic() - began
        total = sum(bank.tokens.values())
        records = []
        for i, (run, result) in enumerate(zip(runs, results, strict=True)):
            if isinstance(result, Diverged):
                self.diverged(run.run_id, run.run, result)
            elif result is not None:
                run.curve.append(result)
                run.train_seconds += seconds * bank.tokens[i] / total
                records.append(result)
        if records:
            self.listener.step(_mean(records))

    def _evaluate(self, bank: Bank, runs: Sequence[BankRun]) -> None:
        alive = [i for i, run in enumerate(runs) if not self.ledger.status_of(run.run_id).is_finished]
        self.listener.stage(f"evaluating {len(alive)} runs")
        splits = self.splits_of(runs[0].run.phase)
        results: dict[str, list[Evaluation]] = {
            split: bank.evaluate(examples, self.should_stop, alive) for split, examples in splits.items()
        }
        for k, i in enumerate(alive):
            run = runs[i]
            own = {split: found[k] for split, found in results.items()}
            plan = run.plan, run.plan_seconds
            try:
                self.record(run.run_id, run.run, plan, bank.slots[i].weights(), run.progress, own)
            except Diverged as error:
                self.diverged(run.run_id, run.run, error)
            except Exception as error:
                self.failed(run.run_id, run.run, error)


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
