"""The reference engine: one adapter at a time, through PEFT and a plain loop, written to be read.

Every faster engine is tested against this one. Per update, in this order:

    batch   the examples that the seed's data order names; padded to the longest of them
    loss    Σ nll / Σ completion tokens over the batch
    grad    of the adapter's parameters only; its 2-norm is recorded, then it is clipped to `max_grad_norm`
    update  AdamW at the learning rate of this step, decay decoupled

Everything random is a function of (seed, name, step); global generators are never used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.training.adapter import ADAPTER, lora_layers, set_step, set_training, trainable
from adaptive_lora.training.batches import collate, sequence_losses
from adaptive_lora.training.checkpoint import Progress, StepRecord, load_checkpoint, save_checkpoint
from adaptive_lora.training.options import DataOrder, TrainingOptions


class Diverged(TrainingError):
    """The loss or gradient (`what`) of update `step` is not finite."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"The {what} at step {step} is not finite. Try a lower learning rate or a longer warm-up.")

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return type(self), (self.step, self.what)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often a run is saved."""

    path: Path
    run_id: str
    every_seconds: float = 30.0
    on_checkpoint: Callable[[int], None] = lambda steps_done: None
    """Called after each checkpoint."""
    say: Callable[[str], None] = lambda text: None
    """Told of a damaged checkpoint."""


def train(
    model: Any,
    examples: Sequence[Example],
    options: TrainingOptions,
    seed: int,
    checkpoints: CheckpointConfig | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    factors: Mapping[str, tuple[float, float]] | None = None,
) -> Progress:
    """Trains the adapter of a PeftModel (`adapter.attached`) in place and returns its progress and curve.

    With `checkpoints`, continues from the checkpoint of the same run and ends in the same bits as without
    interruption. `should_stop` is called between updates; True saves the run and raises KeyboardInterrupt.
    `factors` (`rate_factors`) multiply the learning rates of A and B by module. Raises Diverged.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        _groups(model, factors) if factors else parameters.values(),
        lr=0.0,
        betas=options.betas,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )
    progress = Progress()
    if checkpoints:
        progress = load_checkpoint(checkpoints.path, checkpoints.run_id, parameters, optimizer, checkpoints.say)
    order = DataOrder(seed, len(examples), options.batch_size)
    set_training(model, True)
    started = saved = time.monotonic()
    earlier, curve = progress.train_seconds, list(progress.curve)
    while progress.steps_done < options.steps:
        step = progress.steps_done
        batch = [examples[i] for i in order.batch(step)]
        curve.append(update(model, optimizer, batch, options, step))
        on_step(curve[-1])
        progress = Progress(step + 1, earlier + time.monotonic() - started)
        stopping = should_stop()
        trained = progress.steps_done == options.steps  # saved too: the evaluation may be interrupted
        if checkpoints and (stopping or trained or time.monotonic() - saved >= checkpoints.every_seconds):
            now = replace(progress, curve=tuple(curve))
            save_checkpoint(checkpoints.path, checkpoints.run_id, now, parameters, optimizer)
            checkpoints.on_checkpoint(progress.steps_done)
            saved = time.monotonic()
        if stopping:
            raise KeyboardInterrupt
    set_training(model, False)
    return replace(progress, curve=tuple(curve))


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    options: TrainingOptions,
    step: int,
) -> StepRecord:
    """One update of the adapter on one batch; raises Diverged before a non-finite value is applied."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batch = collate(examples).to(parameters[0].device)
    set_step(model, step, batch.attention_mask.bool())
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    losses = sequence_losses(logits, batch.labels)
    loss = losses.nll.sum() / losses.tokens.sum()
    if not torch.isfinite(loss):
        raise Diverged(step, "loss")

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = options.max_grad_norm if options.max_grad_norm is not None else float("inf")
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if not torch.isfinite(norm):
        raise Diverged(step, "gradient")

    rate = options.rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.step()
    return StepRecord(step, loss.item(), norm.item(), rate, int(losses.tokens.sum()))


def _groups(model: Any, factors: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """The adapter's parameters, grouped by their factor on the learning rate."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, layer in lora_layers(model).items():
        for factor, part in zip(factors[name], (layer.lora_A, layer.lora_B), strict=True):
            groups.setdefault(factor, []).append(part[ADAPTER].weight)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
