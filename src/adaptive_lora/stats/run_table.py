"""What statistics read: one row a run, with these columns, phases and states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

RUN_COLUMNS = (
    "run_id", "phase", "arm", "strategy", "budget", "seed", "replica", "learning_rate", "scaling",
    "trainable_parameters", "status", "base_loss", "validation_loss", "test_loss", "test_perplexity",
    "test_exact_match", "plan_seconds", "train_seconds", "engine", "device", "step", "error",
)  # fmt: skip
"""One row a run. Losses in nats per completion token; `base_loss` is the frozen model's on the split
that the phase is about (validation for tuning, test for evaluation). What does not exist is empty."""


class Phase(StrEnum):
    """What a run is for."""

    TUNING = "tuning"
    """Chooses a learning rate, on validation, with tuning seeds."""
    EVALUATION = "evaluation"
    """Counts, on test, with evaluation seeds."""


class Status(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    """Begun; interrupted if nobody works on the study now."""
    COMPLETED = "completed"
    DIVERGED = "diverged"
    """A loss or gradient was not finite; recorded with the step, not tried again."""
    FAILED = "failed"
    """Anything else went wrong; tried again by the next `run`."""

    @property
    def is_finished(self) -> bool:
        """Whether a result stands and the run is not to be repeated."""
        return self in (Status.COMPLETED, Status.DIVERGED)


@dataclass(frozen=True, order=True)
class Comparison:
    """An arm against the baseline at a budget."""

    arm: str
    budget: str
