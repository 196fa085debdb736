"""What the arms of a study are compared by: test loss, exact answers, or scores that are made after training.

A metric is a number of every record. Statistics take lower for better, so that values of a metric where higher is
better go in with the other sign (`Metric.costs`), and what comes out is turned back before it is shown. Values that are
shares of right answers are kept as such, 0 to 1, and shown, compared and given margins in percentage points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a study file is read, and its errors told, without scipy
    from adaptive_lora.stats.estimators import Floats

RESERVED = ("test_loss", "exact_match", "answer_match", "loss", "perplexity")
"""Names that a study's own metric cannot have: runs have columns of these, or other metrics are called so."""
ANSWER_MATCH = "answer_match"
POINTS = "percentage points"
_SHARES = ("acc", "acc_norm", "acc_all", "acc_bytes", "acc_mutual_info", "exact_match", "em", "pass@1")
"""What lm-evaluation-harness calls shares of right answers: in percentage points, higher is better."""
_HIGHER = (*_SHARES, "f1", "bleu", "chrf", "chrf++", "mcc", "rouge1", "rouge2", "rougeL", "rougeLsum", "likelihood")
_LOWER = ("ter", "brier_score", "wer", "cer")


class Origin(StrEnum):
    """Where a metric's values come from."""

    EVALUATION = "evaluation"
    """The study's own evaluation of its test records."""
    COMMAND = "command"
    """A command of the study's own, on records of its own."""
    ANSWERS = "answers"
    """Greedy answers to the test records."""
    TASK = "task"
    """A task of lm-evaluation-harness, on its items."""


def known_direction(name: str) -> str | None:
    """`higher` or `lower` for what lm-evaluation-harness calls so; None where a name does not say it.

    >>> known_direction("acc_norm"), known_direction("ter"), known_direction("helpfulness")
    ('higher', 'lower', None)
    """
    return "higher" if name in _HIGHER else "lower" if name in _LOWER else None


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
    """What scores an adapter; empty where no command does."""
    origin: Origin = Origin.EVALUATION
    """Where values come from."""
    settings: str = ""
    """Of answers and tasks: all that values depend on, as JSON."""
    scale: float = 1.0
    """What a kept value of 1 is in `unit`: 100 where shares are shown in percentage points."""
    arms: tuple[str, ...] = ()
    """The arms that have values; empty for all."""

    @property
    def is_loss(self) -> bool:
        """Whether it is test loss, which everything else in a report is about too."""
        return self.name == "test_loss"

    @property
    def places(self) -> int:
        """Decimals of a value without an interval."""
        return 2 if self.unit == POINTS else 4

    @property
    def is_scored(self) -> bool:
        """Whether its values are made after training, once a run, and kept beside its losses."""
        return self.origin is not Origin.EVALUATION

    @property
    def has_own_records(self) -> bool:
        """Whether its records are others than the study's test records."""
        return self.origin in (Origin.COMMAND, Origin.TASK)

    def covers(self, arm: str) -> bool:
        """Whether the runs of an arm are to have values."""
        return not self.arms or arm in self.arms

    @property
    def key(self) -> str:
        """What tells the scores of one command, task or rule from those of another, whatever they are called."""
        asked = [self.name, *self.command] if self.origin is Origin.COMMAND else [self.origin, self.settings]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

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
        values = records.score if self.is_scored else records.exact
        return None if values is None else (self.sign * self.scale * values.astype(np.float64), np.ones(len(values)))


TEST_LOSS = Metric("test_loss", "test loss", "nats per token", "test_loss")
EXACT_MATCH = Metric("exact_match", "exact match", "of the records", "test_exact_match", higher_is_better=True)


def metric_of(analysis: Mapping[str, Any]) -> Metric:
    """By what a study file says under `analysis`, as the ledger has it.

    >>> metric_of({}).unit, metric_of({"metric": "exact_match"}).better
    ('nats per token', 'higher')
    >>> own = metric_of({"metric": {"name": "f1", "command": ["python", "score.py"], "better": "higher"}})
    >>> own.column, own.unit, own.sign
    ('test_f1', 'in f1', -1)
    >>> task = metric_of({"metric": {"task": "arc_easy", "metric": "acc_norm"}})
    >>> task.title, task.unit, task.origin.value
    ('acc_norm of arc_easy', 'percentage points', 'task')
    """
    asked = analysis.get("metric", TEST_LOSS.name)
    if asked == ANSWER_MATCH:
        asked = {"answers": "auto"}
    if isinstance(asked, str):
        return EXACT_MATCH if asked == EXACT_MATCH.name else TEST_LOSS
    if "command" in asked:
        name, higher = str(asked["name"]), asked["better"] == "higher"
        return Metric(name, name, f"in {name}", f"test_{name}", higher, tuple(asked["command"]), Origin.COMMAND)
    arms = tuple(dict.fromkeys([str(analysis.get("baseline", "uniform")), *(asked.get("arms") or ())]))
    return _made(asked, arms if asked.get("arms") else ())


def _made(asked: Mapping[str, Any], arms: tuple[str, ...]) -> Metric:
    """Of answers or of a task. A file that may lie elsewhere tomorrow goes by its name."""
    if "answers" in asked:
        settings = json.dumps([asked["answers"], asked.get("tokens")])
        title = "answer match"
        return Metric(
            ANSWER_MATCH, title, POINTS, f"test_{ANSWER_MATCH}", True, (), Origin.ANSWERS, settings, 100.0, arms
        )
    task, measured = PurePath(asked["task"]), str(asked.get("metric", "acc"))
    filtered = str(asked.get("filter", "none"))
    label = measured if filtered == "none" else f"{measured},{filtered}"
    told = {key: asked.get(key) for key in ("metric", "filter", "fewshot", "limit", "chat")}
    share = measured in _SHARES
    return Metric(
        name=f"{task.stem}_{label}",
        title=f"{label} of {task.stem}",
        unit=POINTS if share else f"in {measured}",
        column=f"test_{task.stem}_{label}",
        higher_is_better=(asked.get("better") or known_direction(measured)) == "higher",
        origin=Origin.TASK,
        settings=json.dumps([task.name, told], sort_keys=True),
        scale=100.0 if share else 1.0,
        arms=arms,
    )
