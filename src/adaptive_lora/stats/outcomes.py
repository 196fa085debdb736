"""What a finished run came to: it learned, ended no better than the frozen model, or diverged.

A run whose loss stayed finite may still have learned nothing. Its loss is held against the frozen model's on the
split that its phase is about: validation for tuning, test for evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

import numpy as np
import pandas as pd

from adaptive_lora.stats.run_table import Phase, Status


class Outcome(StrEnum):
    """What a finished run came to; `Status` says whether it is finished."""

    LEARNED = "learned"
    """Its loss is below the frozen model's."""
    NO_BETTER = "no better than the frozen model"
    """It ended with a loss that is not below the frozen model's."""
    DIVERGED = "diverged"


def gains(runs: pd.DataFrame) -> pd.Series:
    """The frozen model's loss less the run's on the split of its phase, nats per token, by the rows of a `runs_table`.

    Missing where a run has not completed or one of the two losses is not known; minus infinity for an infinite loss.

    >>> runs = {"phase": ["tuning"], "status": ["completed"], "base_loss": [3.0], "validation_loss": [2.0]}
    >>> gains(pd.DataFrame({**runs, "test_loss": [None]})).tolist()
    [1.0]
    """
    losses = runs.reindex(columns=["validation_loss", "test_loss", "base_loss"])  # made elsewhere, not all are there
    validation, test, frozen = (pd.to_numeric(losses[name]).astype("float64") for name in losses)
    own = validation.where(runs["phase"] == Phase.TUNING, test)
    found: pd.Series = (frozen - own).where(runs["status"] == Status.COMPLETED)
    return found


def outcomes(runs: pd.DataFrame) -> pd.Series:
    """The `Outcome` of every row of a `runs_table`; None where it is not finished, or a loss is not known.

    >>> outcomes(pd.DataFrame({"phase": ["evaluation"], "status": ["completed"], "base_loss": [3.0],
    ...                        "validation_loss": [2.0], "test_loss": [3.0]})).eq(Outcome.NO_BETTER).tolist()
    [True]
    """
    gain = gains(runs)
    ended = np.where(gain > 0, Outcome.LEARNED, Outcome.NO_BETTER)
    found = pd.Series(ended, index=runs.index, dtype=object).where(gain.notna(), None)
    return found.mask(runs["status"] == Status.DIVERGED, Outcome.DIVERGED)


def count_no_better(runs: pd.DataFrame) -> int:
    """Runs that ended no better than the frozen model, of a `runs_table`."""
    return int((outcomes(runs) == Outcome.NO_BETTER).sum())


def no_better(runs: pd.DataFrame) -> Mapping[tuple[str, str], int]:
    """(arm, phase) -> how many of them, where there are any."""
    ended = runs[outcomes(runs) == Outcome.NO_BETTER]
    return Counter(zip(ended["arm"], ended["phase"], strict=True))
