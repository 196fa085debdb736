"""What a study may be judged by, as its file says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from adaptive_lora.stats.metrics import RESERVED, known_direction
from adaptive_lora.study.schema_texts import PathText
from adaptive_lora.study.schema_training import Part


def _own_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is what runs have anyway; give your own metric another name")
    return name


class MetricPart(Part):
    """A metric of the study's own: a command that scores every adapter that is compared."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$"), AfterValidator(_own_name)]
    """What tables and figures call it, such as `f1`."""
    command: Annotated[list[str], Field(min_length=1)]
    """Program and arguments, such as `[python, score.py]`, run without a shell in the folder of the study file. Three
    arguments are added: the adapter's folder (as PEFT saves it), the base model, and the file to write: CSV with the
    columns `record` and `value`, or JSON lines of both, one value a record and the same records for every adapter."""
    better: Literal["higher", "lower"]
    """Which values are better."""


_PLAIN = r"^[A-Za-z0-9._:@-]{1,64}$"


def _task_name(text: str) -> str:
    if not re.fullmatch(_PLAIN, PurePath(text).name):
        raise ValueError("a task, or the file that has it, is called by letters, digits, `.`, `_`, `:`, `@` and `-`")
    return text


Arms = Annotated[list[str], Field(min_length=1)] | None


class AnswersPart(Part):
    """Right answers: every test record is answered greedily, and the answer is compared with the record's own."""

    answers: Literal["auto", "marked", "number", "text"]
    """What of an answer counts: the number behind the last `####` (`marked`, as GSM8K has it), the last `number`, or
    the whole `text` but for case, white space and closing punctuation. `auto` goes by each record's own answer:
    `marked` where it has such a number, `number` where it is a number, else `text`."""
    tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Longest answer in tokens; by default that of the longest reference answer among the test records."""
    arms: Arms = None
    """The arms that are answered for, the baseline always among them; by default all, controls too."""


class TaskPart(Part):
    """A task of lm-evaluation-harness (the extra `eval`), run on every adapter that is compared."""

    task: Annotated[PathText, AfterValidator(_task_name)]
    """Name of a task that comes with the harness, such as `arc_easy`, or a task file of yours (.yaml) without code."""
    metric: Annotated[str, Field(pattern=_PLAIN)] = "acc"
    """One of the task's metrics, such as `acc_norm` or `exact_match`."""
    filter: Annotated[str, Field(pattern=_PLAIN)] = "none"
    """One of the task's filters, such as `strict-match`."""
    better: Literal["higher", "lower"] | None = None
    """Which values are better, for a metric whose name does not say it."""
    fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each question, in place of what the task says, or of none where it says nothing."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Only so many items, the first; by default all."""
    chat: bool = False
    """Whether questions are put in the model's chat template."""
    arms: Arms = None
    """The arms that are evaluated, the baseline always among them; by default all, controls too."""

    @model_validator(mode="after")
    def _directed(self) -> TaskPart:
        known = known_direction(self.metric)
        if known is None and self.better is None:
            raise ValueError(
                f"nothing says whether a higher {self.metric!r} is better; write `better: higher` or `better: lower`"
            )
        if known and self.better and known != self.better:
            raise ValueError(f"a {known} {self.metric!r} is better, got `better: {self.better}`; leave `better` out")
        return self


def _form_of(value: Any) -> str:
    if isinstance(value, MetricPart | AnswersPart | TaskPart):
        return {MetricPart: "~own", AnswersPart: "~answers", TaskPart: "~task"}[type(value)]
    if not isinstance(value, Mapping):
        return "~named"
    return "~answers" if "answers" in value else "~task" if "task" in value else "~own"


MetricField = Annotated[
    Annotated[Literal["test_loss", "exact_match", "answer_match"], Tag("~named")]
    | Annotated[MetricPart, Tag("~own")]
    | Annotated[AnswersPart, Tag("~answers")]
    | Annotated[TaskPart, Tag("~task")],
    Discriminator(_form_of),
]
"""Told apart by the form, so that a complaint speaks of the one that was meant."""
