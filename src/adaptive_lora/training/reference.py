"""The reference engine: one adapter at a time, through PEFT and a plain loop, written to be read.

This is the truth that any faster engine is tested against. Per update, in this order:

    batch   the seed's data order decides which examples; padded to the longest of them
    loss    Σ nll / Σ completion tokens over the batch
    grad    of the adapter alone; its 2-norm is recorded, then scaled down to `max_grad_norm`
    update  AdamW at the rate of this step, decay decoupled

Everything random is a function of (seed, name, step): nothing is drawn from global generators.
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
    """A loss or gradient that is not finite; `step` says when."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"The {what} at step {step} is not finite. Try a lower learning rate or a longer warm-up.")

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return type(self), (self.step, self.what)


@dataclass(frozen=True)
class Keeping:
    """Where and how often a run is kept safe."""

    path: Path
    run_id: str
    every_seconds: float = 30.0
    on_kept: Callable[[int], None] = lambda steps_done: None
    """Called after each checkpoint."""


def train(
    model: Any,
    examples: Sequence[Example],
    options: TrainingOptions,
    seed: int,
    keeping: Keeping | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    factors: Mapping[str, tuple[float, float]] | None = None,
) -> Progress:
    """Trains the adapter of a PeftModel in place and says how it went.

    With `keeping`, continues from the checkpoint of the same run and ends as if never interrupted.
    `should_stop` is asked between updates; a yes is kept safe and raised as KeyboardInterrupt. `factors`
    (`rate_factors`) multiply the rates of A and B by module. Raises Diverged.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        _groups(model, factors) if factors else parameters.values(),
        lr=0.0,
        betas=options.betas,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )
    progress = load_checkpoint(keeping.path, keeping.run_id, parameters, optimizer) if keeping else Progress()
    order = DataOrder(seed, len(examples), options.batch_size)
    set_training(model, True)
    started = kept = time.monotonic()
    earlier, curve = progress.train_seconds, list(progress.curve)
    while progress.steps_done < options.steps:
        step = progress.steps_done
        batch = [examples[i] for i in order.batch(step)]
        curve.append(update(model, optimizer, batch, options, step))
        on_step(curve[-1])
        progress = Progress(step + 1, earlier + time.monotonic() - started)
        stopping = should_stop()
        trained = progress.steps_done == options.steps  # kept too: evaluating may take long, or be cut
        if keeping and (stopping or trained or time.monotonic() - kept >= keeping.every_seconds):
            save_checkpoint(keeping.path, keeping.run_id, _with(progress, curve), parameters, optimizer)
            keeping.on_kept(progress.steps_done)
            kept = time.monotonic()
        if stopping:
            raise KeyboardInterrupt
    set_training(model, False)
    return _with(progress, curve)


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    options: TrainingOptions,
    step: int,
) -> StepRecord:
    """One update of the adapter on one batch; raises Diverged before anything non-finite is applied."""
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
    """The adapter's parameters in groups that share a factor on the rate."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, layer in lora_layers(model).items():
        for factor, part in zip(factors[name], (layer.lora_A, layer.lora_B), strict=True):
            groups.setdefault(factor, []).append(part[ADAPTER].weight)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def _with(progress: Progress, curve: list[StepRecord]) -> Progress:
    return replace(progress, curve=tuple(curve))
