"""How a record becomes the text a model sees: a prompt, which is masked, and a completion, which is learnt."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from adaptive_lora.data.chat import called_tools, check_default, template_names, where
from adaptive_lora.data.records import Record
from adaptive_lora.errors import DataError, UsageError

WORDS = ("auto", "alpaca", "alpaca-short", "question", "chat", "plain")
"""What a study may say beside the names of a model's own chat templates."""

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


GOES_ON = ("prompt-completion", "text", "summary")
"""Forms of records whose answers `plain` writes right behind what is asked; it breaks the line before all others."""

AUTO: Mapping[str, str] = {"alpaca": "alpaca", "question-answer": "question", "messages": "chat"}
"""Form of records -> the template for `auto` where the model has no chat template; all others are `plain`."""


def as_template(text: str) -> str:
    """`text` where it may be the name of a template; UsageError where it is one of ours misspelled.

    No model is asked: it may have chat templates of any other name, which `check_template` knows.
    """
    if text not in WORDS and (near := difflib.get_close_matches(text, WORDS, n=1, cutoff=0.8)):
        raise UsageError(
            f"The template must be one of {', '.join(WORDS)}, or a named chat template of the model, got {text!r}; "
            f"did you mean {near[0]!r}?"
        )
    return text


def check_template(text: str, tokenizer: Any) -> None:
    """UsageError unless `text` is `auto`, `chat`, a template here, or the name of one that `tokenizer` has."""
    names = template_names(tokenizer)
    if text not in WORDS and text not in names:
        own = f"its named ones are {', '.join(names)}" if names else "it has no named ones"
        raise UsageError(
            f"The template must be one of {', '.join(WORDS)}, or a named chat template of the model ({own}), got "
            f"{text!r}."
        )


def choose_template(template: str, form: str, tokenizer: Any) -> str:
    """The template in force for data of `form` where the study says `auto`; any other is what it says.

    A tokenizer with a chat template is an instruct model's, and its template is what the model knows: it writes
    everything but plain text. Without one, Alpaca records take the Alpaca prompts, questions with answers are called
    that, and everything else is used as it is. Raises DataError where messages meet a model without a chat template,
    UsageError where its templates have names and none is the default.

    >>> choose_template("auto", "alpaca", tokenizer=None)
    'alpaca'
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "auto":
        template = "chat" if has_chat and form != "text" else AUTO.get(form, "plain")
    if template == "chat" and not has_chat:
        raise DataError(
            "The template `chat` was asked for (or chosen for records with `messages`), but this model's "
            "tokenizer has no chat template. Write `template: alpaca` or `template: plain` under `data`: they show all "
            "turns, one below the other, without their roles."
        )
    if template == "chat":
        check_default(tokenizer)
    return template


def render(record: Record, template: str) -> tuple[str, str]:
    """(prompt, completion) of a record as text, by one of the templates here; `data.chat` has the models' own.

    `alpaca`, `alpaca-short` and `question` fill the prompt with or without an input; `plain` joins what there is with
    newlines, the answer too unless it goes on (`GOES_ON`). There is one place for what is asked: the turns of a chat
    stand one below the other. Raises DataError for tools and tool calls, which only chat templates write.
    """
    _check_tools(record, template)
    asked = "\n".join(text for text in (*(turn.content for turn in record.turns), record.prompt) if text)
    if template in PROMPTS:
        with_input, without_input = PROMPTS[template]
        text = with_input if record.context else without_input
        # Split, not str.format: a record may hold braces and placeholders of its own.
        head, tail = text.split("{instruction}")
        return head + asked + tail.replace("{input}", record.context), record.completion
    prompt = "\n".join(part for part in (asked, record.context) if part)
    breaks = prompt and not prompt.endswith("\n") and record.form not in GOES_ON
    return prompt + "\n" * bool(breaks), record.completion


def _check_tools(record: Record, template: str) -> None:
    remedy = "Leave such records out, or choose `template: chat` and a model that knows tools."
    if calls := called_tools(record, record.answer()):
        raise DataError(
            f"{where(record)}the answer calls the tool {calls[0]}, which only a chat template can write: "
            f"`template: {template}` would learn to say nothing. {remedy}"
        )
    if calls := [name for turn in record.turns for name in called_tools(record, turn)]:
        raise DataError(
            f"{where(record)}an earlier turn calls the tool {calls[0]}, which only a chat template can write: "
            f"`template: {template}` would leave the call away. {remedy}"
        )
    if record.tools:
        raise DataError(
            f"{where(record)}the record has `tools`, which only a chat template can write: `template: {template}` "
            "would leave them away. Leave `tools` out of the records, or choose `template: chat` and a model that "
            "knows tools."
        )
