"""What the arms of a study are compared by: test loss, exact answers, or the scores of a command of the study's own.

A metric is a number of every record. Statistics take lower for better, so that values of a metric where higher is
better go in with the other sign (`Metric.costs`), and what comes out is turned back before it is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a study file is read, and its errors told, without scipy
    from adaptive_lora.stats.estimators import Floats

RESERVED = ("test_loss", "exact_match", "loss", "perplexity")
"""Names that a study's own metric cannot have: runs have columns of these."""


@dataclass(frozen=True)
class Metric:
    """One number of every record, and which way is better."""

    name: str
    title: str
    """As a sentence or an axis has it."""
    unit: str
    """As it stands behind a number; `in NAME` where a metric has no other."""
    column: str
    """Of a `runs_table`: the mean of a run."""
    higher_is_better: bool = False
    command: tuple[str, ...] = ()
    """What scores an adapter; empty where the study's own evaluation does."""

    @property
    def is_loss(self) -> bool:
        """Whether it is test loss, which everything else in a report is about too."""
        return self.name == "test_loss"

    @property
    def key(self) -> str:
        """What tells scores of one command from those of another, whatever they are called."""
        return hashlib.sha256(json.dumps([self.name, *self.command]).encode()).hexdigest()[:16]

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return -1 if self.higher_is_better else 1

    @property
    def better(self) -> str:
        """`lower` or `higher`."""
        return "higher" if self.higher_is_better else "lower"

    @property
    def better_differences(self) -> str:
        """Which sign an improvement has: `negative` or `positive`."""
        return "positive" if self.higher_is_better else "negative"

    @property
    def better_side(self) -> str:
        """Where on an axis it lies: `left` or `right`."""
        return "right" if self.higher_is_better else "left"

    def costs(self, records: Any) -> tuple[Floats, Floats] | None:
        """(sum of each record, its weight), lower is better; None where a run's records have no such value.

        `records` is a run's `SplitResult`. Losses are taken in single precision, as an archive keeps them, so that a
        ledger and its export give the same verdicts to the last digit.
        """
        if self.is_loss:
            return records.nll.astype(np.float32).astype(np.float64), records.tokens.astype(np.float64)
        values = records.score if self.command else records.exact
        return None if values is None else (self.sign * values.astype(np.float64), np.ones(len(values)))


TEST_LOSS = Metric("test_loss", "test loss", "nats per token", "test_loss")
EXACT_MATCH = Metric("exact_match", "exact match", "of the records", "test_exact_match", higher_is_better=True)


def metric_of(analysis: Mapping[str, Any]) -> Metric:
    """By what a study file says under `analysis`, as the ledger has it.

    >>> metric_of({}).unit, metric_of({"metric": "exact_match"}).better
    ('nats per token', 'higher')
    >>> own = metric_of({"metric": {"name": "f1", "command": ["python", "score.py"], "better": "higher"}})
    >>> own.column, own.unit, own.sign
    ('test_f1', 'in f1', -1)
    """
    asked = analysis.get("metric", TEST_LOSS.name)
    if isinstance(asked, str):
        return EXACT_MATCH if asked == EXACT_MATCH.name else TEST_LOSS
    name, higher = str(asked["name"]), asked["better"] == "higher"
    return Metric(name, name, f"in {name}", f"test_{name}", higher, tuple(asked["command"]))
