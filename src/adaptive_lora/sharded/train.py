"""Trains a job's adapters on a sharded base: this process's share of them, in lock-step with the other ranks."""

from __future__ import annotations

import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.files import write_atomically
from adaptive_lora.sharded.job import Adapter, Job, adapters_of, encoded
from adaptive_lora.study.prepare import open_base
from adaptive_lora.training.adapter import save_adapter
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import StepRecord
from adaptive_lora.training.evaluate import Evaluation
from adaptive_lora.training.peft_check import read_back
from adaptive_lora.training.ranks import Ranks
from adaptive_lora.training.reference import Diverged
from adaptive_lora.training.sharded import ShardedBank, share
from adaptive_lora.training.sharded_base import load_in_turn, sharded_bytes

_DONE, _GO_ON, _SAVE, _STOP = range(4)
"""What a rank wants next; the largest counts."""

Say = Callable[[str], None]


def train_sharded(
    job: Job, ranks: Ranks, say: Say = lambda _: None, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Trains, evaluates and saves the job's adapters, each on one rank; returns what `results.json` says, on all ranks.

    Goes on from the checkpoints that an interrupted call left, also with another number of ranks. Adapters are in
    PEFT's format, read back. Where `should_stop` says so on any rank, all save and raise KeyboardInterrupt. UsageError
    where the folder holds the results of another job.
    """
    say(f"loading {job.model}, one process of a machine after the other")
    base = load_in_turn(functools.partial(open_base, job.model, job.revision, job.dtype), ranks)
    adapters = adapters_of(job, base)
    if (done := _results_of(job, adapters, ranks)) is not None:
        say(f"{job.results} has these results already")
        return done
    test = encoded(job, base, job.test) if job.test else []
    own = [adapters[i] for i in share([adapter.member for adapter in adapters], ranks.world)[ranks.rank]]
    saved = job.out / "checkpoints"
    saved.mkdir(parents=True, exist_ok=True)
    how = {"chunk_tokens": job.chunk_tokens, "checkpointing": job.checkpointing}
    with ShardedBank(base, [adapter.member for adapter in own], ranks, texts=test, **how) as bank:
        for adapter, slot in zip(own, bank.slots, strict=False):
            adapter.resume(saved, slot, say)
        _train(bank, own, saved, job.checkpoint_seconds, _Reporter(say, job.options.steps), should_stop)
        say(f"evaluating {len(own)} adapters on {len(test)} records" if test else "no records to evaluate on")
        found = bank.evaluate(test) if test else [None] * len(own)
        for adapter, slot in zip(own, bank.slots, strict=False):
            if adapter.diverged_at is None:
                save_adapter(slot.weights(), adapter.member.plan, job.out / adapter.name, base, job.options.dropout)
                read_back(job.out / adapter.name, adapter.member.plan)
    rows = [_row(adapter, ranks, one) for adapter, one in zip(own, found, strict=True)]
    return _finish(job, base, ranks, rows, [adapter.name for adapter in adapters], bank.idle_passes)


def _train(
    bank: ShardedBank,
    own: Sequence[Adapter],
    folder: Path,
    seconds: float,
    report: _Reporter,
    should_stop: Callable[[], bool],
) -> None:
    """Updates until no rank has any left, with a checkpoint every so many seconds of the first rank's clock."""
    last = time.monotonic()
    while True:
        due = bank.ranks.is_first and bool(bank.running) and time.monotonic() - last >= seconds
        wanted = _STOP if should_stop() else _SAVE if due else _GO_ON if bank.running else _DONE
        agreed = bank.ranks.most(wanted)
        if agreed in (_SAVE, _STOP, _DONE):
            for adapter, slot in zip(own, bank.slots, strict=False):
                adapter.save(folder, slot)
            last = time.monotonic()
        if agreed == _STOP:
            raise KeyboardInterrupt
        if agreed == _DONE:
            return
        began = time.monotonic()
        results = bank.step()
        for adapter, result in zip(own, results, strict=False):
            if isinstance(result, Diverged):
                adapter.diverged_at = result.step
            elif result is not None:
                adapter.curve.append(result)
                adapter.seconds += time.monotonic() - began
        report.step([result for result in results if isinstance(result, StepRecord)])


class _Reporter:
    """Says every other second how far this rank is."""

    def __init__(self, say: Say, steps: int) -> None:
        self._say, self._steps, self._last = say, steps, -math.inf

    def step(self, records: Sequence[StepRecord]) -> None:
        """After an update."""
        if records and time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            loss = sum(record.loss for record in records) / len(records)
            furthest = max(record.step for record in records) + 1
            self._say(f"step {furthest} of {self._steps}: loss {loss:.4f} (mean of {len(records)} adapters)")


def _results_of(job: Job, adapters: Sequence[Adapter], ranks: Ranks) -> dict[str, Any] | None:
    """What an earlier call wrote, if of this job; as the first rank reads it, so that all go the same way."""
    text = job.results.read_text(encoding="utf-8") if ranks.is_first and job.results.exists() else None
    if (text := ranks.gather(text)[0]) is None:
        return None
    found: dict[str, Any] = json.loads(text)
    if sorted(row["run_id"] for row in found["adapters"]) != sorted(adapter.run_id for adapter in adapters):
        raise UsageError(
            f"{job.results} has the results of other plans, data or training. Name another folder with --out, or "
            "repeat the call that wrote it."
        )
    return found


def _row(adapter: Adapter, ranks: Ranks, evaluation: Evaluation | None) -> dict[str, Any]:
    diverged = adapter.diverged_at is not None
    return {
        "adapter": adapter.name,
        "run_id": adapter.run_id,
        "rank": ranks.rank,
        "trainable_parameters": adapter.member.plan.trainable_parameters,
        "steps": len(adapter.curve),
        "diverged_at": adapter.diverged_at,
        "train_loss": adapter.curve[-1].loss if adapter.curve else None,
        "test_loss": None if evaluation is None or diverged else evaluation.loss,
        "test_tokens": None if evaluation is None else int(evaluation.tokens.sum()),
        "seconds": adapter.seconds,
    }


def _finish(
    job: Job, base: FrozenBase, ranks: Ranks, rows: list[dict[str, Any]], order: Sequence[str], idle_passes: int
) -> dict[str, Any]:
    """Gathers the ranks' rows; the first writes them, and the checkpoints go."""
    every = {row["adapter"]: row for own in ranks.gather(rows) for row in own}
    per_rank = ranks.gather({**asdict(sharded_bytes(base.model, ranks)), "idle_passes": idle_passes})
    report = {
        "model": base.name,
        "revision": base.revision,
        "device": ranks.device.type,
        "ranks": per_rank,
        "adapters": [every[name] for name in order],
    }
    if ranks.is_first:
        write_atomically(job.results, json.dumps(report, indent=2) + "\n")
        shutil.rmtree(job.out / "checkpoints", ignore_errors=True)
    ranks.wait()
    return report
