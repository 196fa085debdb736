"""How a record becomes the text a model sees: a prompt, which is masked, and a completion, which is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jinja2

from adaptive_lora.data.records import Record
from adaptive_lora.errors import DataError, UsageError

TemplateName = Literal["auto", "alpaca", "alpaca-short", "question", "chat", "plain"]

# The two prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, README, "Data Release").
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

# The same without the preamble, for models whose context the preamble would fill.
SHORT_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
SHORT_WITHOUT_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"

QUESTION_WITH_INPUT = "Question: {instruction}\n{input}\n\nAnswer: "
QUESTION_WITHOUT_INPUT = "Question: {instruction}\n\nAnswer: "

PROMPTS = {
    "alpaca": (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT),
    "alpaca-short": (SHORT_WITH_INPUT, SHORT_WITHOUT_INPUT),
    "question": (QUESTION_WITH_INPUT, QUESTION_WITHOUT_INPUT),
}


_DATE = "26 Jul 2024"
"""Today, to the chat templates of Llama 3, whose own default it is: lest prompts change overnight."""

AUTO: Mapping[str, TemplateName] = {"alpaca": "alpaca", "question-answer": "question", "messages": "chat"}
"""Form of records -> the template where the study says `auto`; all others are `plain`."""


def as_template(text: str) -> TemplateName:
    """`text` as the name of a template; UsageError where there is none of that name."""
    for name in get_args(TemplateName):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise UsageError(f"The template must be one of {', '.join(get_args(TemplateName))}, got {text!r}.")


def choose_template(template: TemplateName, form: str, has_chat_template: bool) -> TemplateName:
    """The template in force for data of `form` where the study says `auto`.

    Chat messages take the model's chat template, Alpaca records the Alpaca prompts, questions with
    answers are called that, everything else is used as it is. Raises DataError where messages meet a model without a
    chat template.
    """
    if template == "auto":
        template = AUTO.get(form, "plain")
    if template == "chat" and not has_chat_template:
        raise DataError(
            "The template `chat` was asked for (or chosen for records with `messages`), but this model's "
            "tokenizer has no chat template. Write `template: alpaca` or `template: plain` under `data`: they show all "
            "turns, one below the other, without their roles."
        )
    return template


def render(record: Record, template: TemplateName, tokenizer: Any = None) -> tuple[str, str]:
    """(prompt, completion) of a record as text.

    `alpaca`, `alpaca-short` and `question` fill the prompt with or without an input; `chat` asks `tokenizer`, whose
    template is the model's own; `plain` joins what there is with newlines. `tokenizer` is needed for `chat` alone.
    All but `chat` have one place for what is asked: there the turns of a chat stand one below the other.
    """
    asked = "\n".join(text for text in (*(turn.content for turn in record.turns), record.prompt) if text)
    if template in PROMPTS:
        with_input, without_input = PROMPTS[template]
        text = with_input if record.context else without_input
        # Split, not str.format: a record may hold braces and placeholders of its own.
        head, tail = text.split("{instruction}")
        return head + asked + tail.replace("{input}", record.context), record.completion
    if template == "chat":
        return _render_chat(record, tokenizer), record.completion
    return "\n".join(part for part in (asked, record.context) if part), record.completion


def _render_chat(record: Record, tokenizer: Any) -> str:
    turns = [turn.message() for turn in record.before()]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string=_DATE))
    except jinja2.TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"The model's chat template refuses a record with the turns {roles}: {error}. Leave such records out, or "
            "write `template: plain` under `data`, which shows the turns without their roles."
        ) from None
