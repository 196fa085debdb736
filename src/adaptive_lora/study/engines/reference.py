"""Runs one after another, through PEFT and the plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adaptive_lora.study.engines.devices import warn_of_other_devices
from adaptive_lora.study.engines.engine import Worker, label_of
from adaptive_lora.study.runs import RunSpec
from adaptive_lora.training.adapter import attached, weights_of
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import rate_factors
from adaptive_lora.training.reference import CheckpointConfig, Diverged, train


class ReferenceWorker(Worker):
    """`engine: reference`."""

    def run_all(self, runs: Sequence[RunSpec]) -> None:
        by_id = self.register(runs)
        warn_of_other_devices(self, by_id)
        for run_id, run in by_id.items():
            self.tell_planned()
            if not self.ledger.status_of(run_id).is_finished:
                if self.should_stop():
                    raise KeyboardInterrupt
                self._run(run_id, run)
        self.tell_planned()

    def _run(self, run_id: str, run: RunSpec) -> None:
        options = self.material.training_options(run)
        self.ledger.begin(run_id, "reference", str(self.material.base.device), options.steps)
        self.watcher.begin(label_of(run), options.steps)
        try:
            outcome = self._train(run_id, run)
        except Diverged as error:
            outcome = self.diverged(run_id, error)
            self.paths.checkpoint(run_id).unlink(missing_ok=True)
        except Exception as error:
            # One bad run must not take the others with it; the reason stands in the ledger.
            outcome = self.failed(run_id, error)
        self.watcher.end(label_of(run), outcome)

    def _train(self, run_id: str, run: RunSpec) -> str:
        examples = self.material.training_examples(run.seed)
        began = time.monotonic()
        plan = self.material.plan(run, examples)
        plan_seconds = time.monotonic() - began
        options = self.material.training_options(run)
        checkpoint = self.paths.checkpoint(run_id)
        saving = CheckpointConfig(checkpoint, run_id, self.checkpoint_seconds, self._tell_ledger(run_id))
        factors = rate_factors(plan, options)
        base = self.material.base
        checkpointing = self.material.study.spec.train.activation_checkpointing
        with attached(base, plan, run.seed, options.dropout, checkpointing) as model:
            progress = train(model, examples, options, run.seed, saving, self.watcher.step, self.should_stop, factors)
            results = {
                split: evaluate(model, records, base.device, self.should_stop)
                for split, records in self.splits_of(run.phase).items()
            }
            outcome = self.keep(run_id, run, plan, weights_of(model), progress, results, plan_seconds)
        checkpoint.unlink(missing_ok=True)
        return outcome

    def _tell_ledger(self, run_id: str) -> Callable[[int], None]:
        return lambda steps_done: self.ledger.record_step(run_id, steps_done)
