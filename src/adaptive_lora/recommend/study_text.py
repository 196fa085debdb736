"""The study file of a recommendation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptive_lora.planning.outline import DType
from adaptive_lora.recommend.rates import bracket
from adaptive_lora.recommend.sizing import Size

MARGIN = 0.01
"""Nats a token, about 1 % of perplexity: differences within it do not matter."""
WARMUP, SCHEDULE = 0.05, "linear"


@dataclass(frozen=True)
class Question:
    """What a recommendation is about; the same question in the same folder goes on."""

    model: str
    data: str
    targets: str
    rank: int
    """The middle of the three uniform ranks."""
    max_length: int
    template: str
    dtype: DType = "float32"


def study_text(question: Question, size: Size, rate: float) -> str:
    """Of a study of this size, tuned around a rate; the same words for the same arguments."""
    arms = [_arm(trial.strategy, trial.options) for trial in size.trials]
    looks = f", looks: {list(size.looks)}" if size.looks else ""
    low, middle, high = (f"{value:g}" for value in bracket(rate))
    primary = "" if arms else ", primary: []"
    return f"""\
# Written by `adaptive-lora recommend`. How much rank: uniform at half, once and twice {_budget(question)}
# (`controls`). Which rank where: the strategies that committed studies speak for most. One learning rate for all, tuned
# on uniform at {_budget(question)}.
name: {_name(question)}
model: {{name: {json.dumps(question.model)}, dtype: {question.dtype}}}
data:
  source: {json.dumps(question.data)}
  train: {size.train}
  validation: {size.validation}
  test: {size.test}
  max_length: {question.max_length}
  template: {json.dumps(question.template)}
targets: {json.dumps(question.targets.split(",") if "," in question.targets else question.targets)}
budgets: ["{_budget(question)}"]
arms: [{", ".join(["uniform", *arms])}]
seeds: {{evaluation: {size.seeds}, tuning: 1{looks}}}
train:
  steps: {size.steps}
  batch_size: {size.batch_size}
  learning_rate: [{low}, {middle}, {high}, auto]
  tune: shared
  schedule: {SCHEDULE}
  warmup: {WARMUP}
analysis: {{margin: {MARGIN}{primary}}}
controls: [half, double]
"""


def _arm(strategy: str, options: Mapping[str, Any]) -> str:
    return f"{{strategy: {strategy}, options: {json.dumps(dict(options))}}}" if options else strategy


def _budget(question: Question) -> str:
    return f"rank:{question.rank}"


def _name(question: Question) -> str:
    return slug(f"recommend-{_last(question.model)}-{_last(question.data)}")[:64]


def slug(text: str) -> str:
    """Fit for a file or a study's name.

    >>> slug("recommend-demo:fine tuning")
    'recommend-demo-fine-tuning'
    """
    return "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in text).strip("-._")


def _last(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2].removesuffix(".json").removesuffix(".jsonl")
