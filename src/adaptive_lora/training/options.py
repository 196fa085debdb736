"""How one adapter is trained: a frozen value, and the pure functions of it that both engines share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptive_lora.errors import UsageError
from adaptive_lora.planning.modules import ModuleShape
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.streams import numpy_stream

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How one run is trained, except for its seed."""

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
    """Clips the 2-norm of the adapter's whole gradient; None: no clipping."""
    dropout: float = 0.0
    """Probability of LoRA dropout, on the adapter's inputs."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    b_multiplier: float = 1.0
    """The rate of B over that of A (LoRA+, arXiv 2402.12354, takes about 16)."""
    rank_exponent: float = 0.0
    """A module of rank r learns at (r_ref / r)^exponent times the rate, r_ref being the scaling rule's
    (1/2 keeps the first steps alike under constant scaling, arXiv 2602.06204)."""
    module_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Factor on the rate by full module name, by last part of the name (`c_attn`), or by kind (`attention`)."""

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
    """Which training examples each update sees: every epoch a new permutation; its last batch may be short.

    Depends on (seed, epoch) alone, so that arms sharing a seed see the same batches, and a resumed
    run needs no state but its step.
    """

    seed: int
    examples: int
    batch_size: int
    _current: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The permutation of the last epoch asked for: drawing it anew for each update of each run costs more than
    the update where there are many examples."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Indices of the examples of update `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch not in self._current:
            self._current.clear()
            self._current[epoch] = numpy_stream(self.seed, "data", epoch).permutation(self.examples)
        return self._current[epoch][within * self.batch_size : (within + 1) * self.batch_size].copy()


def rate_factors(plan: RankPlan, options: TrainingOptions) -> dict[str, tuple[float, float]]:
    """Factors on the learning rates of A and of B, by module; (1, 1) unless the options say otherwise.

    Of several multipliers for a module the most specific counts: full name, last part, kind.
    """
    factors = {}
    for shape in plan.modules:
        factor = next((options.module_multipliers[n] for n in _names(shape) if n in options.module_multipliers), 1.0)
        factor *= (plan.scaling.reference_rank / plan.ranks[shape.name]) ** options.rank_exponent
        factors[shape.name] = (factor, factor * options.b_multiplier)
    return factors


def check_multipliers(multipliers: Mapping[str, float], modules: Sequence[ModuleShape]) -> None:
    """UsageError if a multiplier matches none of the modules."""
    known = {name for shape in modules for name in _names(shape)}
    if unknown := sorted(multipliers.keys() - known):
        short = ", ".join(sorted({name for shape in modules for name in _names(shape)[1:]}))
        raise UsageError(
            f"A rate multiplier is given for {unknown[0]!r}, which matches no target module by full name, last part "
            f"of the name, or kind. Parts and kinds here: {short}."
        )


def _names(shape: ModuleShape) -> tuple[str, str, str]:
    return shape.name, shape.name.split(".")[-1], shape.kind


def initial_a(seed: int, name: str, rank: int, d_in: int) -> NDArray[np.float32]:
    """The initial A of a module, (rank, d_in), uniform in ±1/sqrt(d_in) (PEFT's Kaiming bound; B is 0).

    Filled row by row from one stream of (seed, module): a smaller rank holds the first rows of a larger one.
    """
    uniform = numpy_stream(seed, "init", name).random((rank, d_in), dtype=np.float32)
    return (2 * uniform - 1) / np.float32(math.sqrt(d_in))
