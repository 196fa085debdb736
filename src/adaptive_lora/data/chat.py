"""Conversations written by a model's own chat template, and what the template adds for an answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from adaptive_lora.data.records import Record, Turn
from adaptive_lora.errors import DataError, UsageError

DATE = "26 Jul 2024"
"""Today, to chat templates (Llama 3's own default): lest prompts change overnight."""

# What `strftime_now` gives on that day; no day of another year or locale may show.
_DATE_PARTS = {
    "%-d": "26", "%-m": "7", "%d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%y": "24", "%Y": "2024",
    "%A": "Friday", "%a": "Fri", "%j": "208", "%F": "2024-07-26", "%x": "07/26/24", "%D": "07/26/24", "%H": "00",
    "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%X": "00:00:00", "%T": "00:00:00", "%Z": "UTC", "%z": "+0000",
}  # fmt: skip

# A macro of that name hides transformers' function, which cannot be replaced by a variable: transformers 5 makes
# strings of what it does not know. The newline at the end is eaten (`trim_blocks`), so the template begins as before.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({part!r}, {text!r})" for part, text in _DATE_PARTS.items())
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True)
class Difference:
    """A conversation up to an answer, as text, without it and with it."""

    prompt: str
    """What the model is given: all turns before, and the beginning of its own turn."""
    full: str
    """The conversation with the answer, as the template writes it."""

    @property
    def continues(self) -> bool:
        """Whether the whole text begins with the prompt; not so where templates open a think block only in prompts."""
        return self.full.startswith(self.prompt)

    @property
    def completion(self) -> str:
        """What the answer adds: its text, and the end of the turn as the template has it."""
        return self.full[shared_length(self.prompt, self.full) :]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer that is in force: its default one, or one of its named ones."""

    tokenizer: Any
    name: str | None = None
    """None: the default, and `tool_use` where there is one of that name and a record has tools."""

    def difference(self, record: Record) -> Difference:
        """A record without and with its answer; DataError, saying which record, where the template does not write it.

        >>> ChatTemplate(tokenizer).difference(record)  # doctest: +SKIP
        Difference(prompt='<|user|>Hi<|end|><|assistant|>', full='<|user|>Hi<|end|><|assistant|>Yo<|end|>')
        """
        before = record.before()
        if not before:
            raise DataError(
                f"{where(record)}a chat template needs something asked before the answer, and this record has no "
                "prompt. Leave such records out, or write `template: plain` under `data`."
            )
        found = self._answered(record, before, record.answer())
        if record.tools:
            self._check_tools(record, found.prompt)
        return found

    def earlier(self, record: Record, at: int) -> Difference:
        """The same for an earlier answer, which is turn `at`: the turns before it, and those up to it."""
        turns = record.before()
        return self._answered(record, turns[:at], turns[at])

    def _answered(self, record: Record, before: Sequence[Turn], answer: Turn) -> Difference:
        found = Difference(self._render(record, before, True), self._render(record, (*before, answer), False))
        self._check_answer(record, before, answer, found)
        return found

    def warnings(self) -> list[str]:
        """What the template does that a user should know of, tried on one question and its answer."""
        try:
            tried = self.difference(Record("messages", "Which bird sings?", "", "A lark."))
        except DataError:  # it wants something else; each record is checked when its turn comes
            return []
        found = []
        if tried.full.rstrip().endswith("A lark."):
            found.append(
                "The model's chat template writes no end behind an answer, so the model does not learn where to stop."
            )
        if not tried.continues:
            cue = tried.prompt[shared_length(tried.prompt, tried.full) :]
            found.append(
                f"The model's chat template ends a prompt with {cue!r} and does not write that before an answer that "
                "is there: the model learns to answer without, and is asked with it."
            )
        return found

    def _render(self, record: Record, turns: Sequence[Turn], generation: bool, shown: bool = True) -> str:
        """The turns as the template writes them, the tools of the record among them unless they are not `shown`."""
        for turn in turns:
            called_tools(record, turn)  # calls that are none would end in the template, or here
        messages = [turn.message() for turn in turns]
        tools = json.loads(record.tools) if record.tools else None
        asked: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation, "date_string": DATE}
        template = self._with_tools if tools else self._without_tools
        asked |= {"tools": tools if shown else None, "chat_template": template}
        render = functools.partial(self.tokenizer.apply_chat_template, **asked)
        try:
            # Templates take a call's arguments as an object, which most write as JSON, or as the text that it is.
            if not any("tool_calls" in message for message in messages):
                return str(render(messages))
            try:
                return str(render([_with_arguments(message, as_text=False) for message in messages]))
            except TypeError:
                return str(render([_with_arguments(message, as_text=True) for message in messages]))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(
                f"{where(record)}the model's chat template refuses a record with the turns {roles}: {error}. Leave "
                "such records out, or write `template: plain` under `data`, which shows the turns without their roles."
            ) from None

    @functools.cached_property
    def _without_tools(self) -> str:
        return self._text(False)

    @functools.cached_property
    def _with_tools(self) -> str:
        return self._text(True)

    def _text(self, tools: bool) -> str:
        templates = self.tokenizer.chat_template
        if self.name is not None:
            text = templates[self.name]
        elif isinstance(templates, dict):
            text = templates["tool_use"] if tools and "tool_use" in templates else templates["default"]
        else:
            text = templates
        return _FIXED_DATE + text if "strftime_now" in text else str(text)

    def _check_tools(self, record: Record, prompt: str) -> None:
        """DataError where the prompt is the same without the tools, by the same template."""
        try:
            without = self._render(record, record.before(), True, shown=False)
        except DataError:  # a template that wants tools writes them
            return
        if without == prompt:
            raise DataError(
                f"{where(record)}this model's chat template cannot write tools: its prompt is the same without them. "
                "Leave `tools` out of the records, or choose a model whose template knows them."
            )

    def _check_answer(self, record: Record, before: Sequence[Turn], answer: Turn, found: Difference) -> None:
        # The answer stands behind the prompt, or behind the turns before it where the template writes that otherwise.
        begin = len(found.prompt) if found.continues else self._header(record, before, found)
        written = found.full[begin:]
        for name in called_tools(record, answer):
            if name not in written:
                raise DataError(
                    f"{where(record)}this model's chat template cannot write tool calls: the answer calls {name}, "
                    "and what would be learnt is an answer without it. Leave such records out, or choose a model whose "
                    "template knows tools."
                )
        if said(answer) not in written or not written:
            raise DataError(
                f"{where(record)}the model's chat template does not write the answer {answer.content[:60]!r} "
                "behind the turns before it. Write `template: plain` or `template: alpaca` under `data`."
            )

    def _header(self, record: Record, before: Sequence[Turn], found: Difference) -> int:
        """Where the prompt begins the model's turn; the whole text may differ from there on and not before."""
        header = shared_length(self._render(record, before, False), found.prompt)
        if shared_length(found.full, found.prompt) < header:
            raise DataError(
                f"{where(record)}the model's chat template writes the turns before an answer otherwise once the "
                "answer stands there, so that nothing tells what the answer adds. Write `template: plain` or "
                "`template: alpaca` under `data`."
            )
        return header


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many characters or tokens two texts have in common at their beginning.

    >>> shared_length("plane", "plant")
    4
    """
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(second))


def said(turn: Turn) -> str:
    """What a turn says, without what it thought, which templates move or drop.

    >>> said(Turn("assistant", "<think>2 + 2</think> 4"))
    '4'
    """
    return (turn.content.rpartition("</think>")[2] if turn.role == "assistant" else turn.content).strip()


def called_tools(record: Record, turn: Turn) -> list[str]:
    """Names of the functions that a turn of a record calls; DataError where a call names none.

    >>> call = Turn("assistant", "", fields='{"tool_calls": [{"function": {"name": "tides"}}]}')
    >>> called_tools(Record("messages", "", "", ""), call)
    ['tides']
    """
    if "tool_calls" not in turn.fields:
        return []
    names = []
    for call in json.loads(turn.fields).get("tool_calls") or ():
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{where(record)}a tool call must be an object with a `function` that has a `name`, got "
                f"{json.dumps(call, ensure_ascii=False)[:60]}. Repair such records, or leave them out."
            )
        names.append(name)
    return names


def template_names(tokenizer: Any) -> tuple[str, ...]:
    """Names of a tokenizer's chat templates; none where there is one without a name, or none at all."""
    templates = getattr(tokenizer, "chat_template", None)
    return tuple(sorted(templates)) if isinstance(templates, dict) else ()


def check_default(tokenizer: Any) -> None:
    """UsageError where a tokenizer has named chat templates and none of them is `default`."""
    if (names := template_names(tokenizer)) and "default" not in names:
        raise UsageError(
            f"This model has several chat templates and no default: {', '.join(names)}. Write one of them under "
            f"`data`, for example `template: {names[0]}`."
        )


def where(record: Record) -> str:
    """How a message begins that is about one record: its place in the source, where that is known."""
    return "" if record.row is None else f"Record {record.row + 1}: "


def _with_arguments(message: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """A message whose tool calls have their arguments as an object, or as JSON text."""

    def written(call: dict[str, Any]) -> dict[str, Any]:
        inner = call.get("function", call)
        value = inner.get("arguments")
        if as_text and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        elif not as_text and isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                return call
        inner = {**inner, "arguments": value}
        return {**call, "function": inner} if "function" in call else inner

    calls = message.get("tool_calls")
    return {**message, "tool_calls": [written(call) for call in calls]} if calls else message
