"""How one adapter is trained: a frozen value, and the pure functions of it that both engines share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.streams import numpy_stream

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """One run's training, seed apart."""

    learning_rate: float
    steps: int
    """Optimizer updates in all."""
    batch_size: int = 4
    """Sequences per update."""
    schedule: Schedule = "linear"
    warmup: float = 0.0
    """Share of the steps over which the rate rises, if below 1; a number of steps otherwise."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay, on A and B alike."""
    max_grad_norm: float | None = 1.0
    """The adapter's whole gradient is scaled down to this 2-norm; nothing: never."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped, LoRA's own dropout."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def rate_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0.

        Warm-up rises over w steps as (step + 1) / w; then `linear` falls as (T - step) / (T - w),
        `cosine` as (1 + cos(pi (step - w) / (T - w))) / 2, `constant` stays. No update has rate 0.
        """
        warmup, total = self.warmup_steps, self.steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warmup) / max(total - warmup, 1)
        factor = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * factor


@dataclass(frozen=True)
class DataOrder:
    """Which training examples each update sees: every epoch a new permutation, the last batch kept short.

    Depends on (seed, epoch) alone, so that arms sharing a seed see the same batches, and a resumed
    run needs to remember nothing but its step.
    """

    seed: int
    examples: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples of update `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = numpy_stream(self.seed, "data", epoch).permutation(self.examples)
        return order[within * self.batch_size : (within + 1) * self.batch_size]


def initial_a(seed: int, name: str, rank: int, d_in: int) -> NDArray[np.float32]:
    """The first A of a module, (rank, d_in), uniform in ±1/sqrt(d_in) (PEFT's Kaiming bound; B is 0).

    Filled row by row from one stream of (seed, module): a smaller rank holds the first rows of a larger one.
    """
    uniform = numpy_stream(seed, "init", name).random((rank, d_in), dtype=np.float32)
    return (2 * uniform - 1) / np.float32(math.sqrt(d_in))
