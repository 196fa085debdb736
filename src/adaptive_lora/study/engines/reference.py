"""Trains runs one after another, through PEFT and the plain loop."""

from __future__ import annotations

from collections.abc import Mapping

from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.finish import finished_run, splits_of
from adaptive_lora.study.executors.task import RunTask
from adaptive_lora.study.matrix import Run
from adaptive_lora.training.adapter import attached, weights_of
from adaptive_lora.training.checkpoint import remove_checkpoints
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.options import rate_factors
from adaptive_lora.training.reference import CheckpointConfig, Diverged, train


class ReferenceEngine(Engine):
    """`engine: reference`."""

    def train(self, pending: Mapping[str, Run]) -> None:
        for run_id, run in pending.items():
            if self.should_stop():
                raise KeyboardInterrupt
            steps = self.prepared.training_options(run).steps
            self.ledger.begin(run_id, "reference", str(self.prepared.base.device), steps, "torch")
            self.listener.begin(run.label, steps)
            try:
                self._train(self.task_of(run_id, run))
            except Diverged as error:
                self.diverged(run_id, run, error)
                remove_checkpoints(self.paths.checkpoint(run_id))
            except Exception as error:
                # One bad run must not take the others with it; the ledger has the reason.
                self.failed(run_id, run, error)
            finally:
                self.listener.close()

    def _train(self, task: RunTask) -> None:
        run_id, run, plan = task.run_id, task.run, task.plan
        examples = self.prepared.training_examples(run.seed)
        options = self.prepared.training_options(run)
        checkpoint = self.paths.checkpoint(run_id)

        def on_checkpoint(steps_done: int) -> None:
            self.ledger.record_step(run_id, steps_done)

        saving = CheckpointConfig(checkpoint, run_id, self.checkpoint_seconds, on_checkpoint, self.listener.stage)
        factors = rate_factors(plan, options)
        base, made = self.prepared.base, self.paths.adapter(f".{run_id}")
        checkpointing = self.prepared.study.spec.train.activation_checkpointing
        with attached(base, plan, run.seed, options.dropout, checkpointing) as model:
            progress = train(model, examples, options, run.seed, saving, self.listener.step, self.should_stop, factors)
            results = {
                split: evaluate(model, records, base.device, self.should_stop)
                for split, records in splits_of(self.prepared, run.phase).items()
            }
            result = finished_run(self.prepared, run_id, plan, weights_of(model), progress, results, made)
            self.record(task, result, made)
        remove_checkpoints(checkpoint)
