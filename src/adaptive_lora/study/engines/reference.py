"""Trains runs one after another, through PEFT and the plain loop."""

from __future__ import annotations

from collections.abc import Mapping

from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.engines.engine import Engine
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
                self._train(run_id, run, self.plan_of(run_id))
            except Diverged as error:
                self.diverged(run_id, run, error)
                remove_checkpoints(self.paths.checkpoint(run_id))
            except Exception as error:
                # One bad run must not take the others with it; the ledger has the reason.
                self.failed(run_id, run, error)
            finally:
                self.listener.close()

    def _train(self, run_id: str, run: Run, planned: tuple[RankPlan, float]) -> None:
        plan, _ = planned
        examples = self.prepared.training_examples(run.seed)
        options = self.prepared.training_options(run)
        checkpoint = self.paths.checkpoint(run_id)

        def on_checkpoint(steps_done: int) -> None:
            self.ledger.record_step(run_id, steps_done)

        saving = CheckpointConfig(checkpoint, run_id, self.checkpoint_seconds, on_checkpoint, self.listener.stage)
        factors = rate_factors(plan, options)
        base = self.prepared.base
        checkpointing = self.prepared.study.spec.train.activation_checkpointing
        with attached(base, plan, run.seed, options.dropout, checkpointing) as model:
            progress = train(model, examples, options, run.seed, saving, self.listener.step, self.should_stop, factors)
            results = {
                split: evaluate(model, records, base.device, self.should_stop)
                for split, records in self.splits_of(run.phase).items()
            }
            self.record(run_id, run, planned, weights_of(model), progress, results)
        remove_checkpoints(checkpoint)
