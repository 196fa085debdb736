"""One piece of training text before any template: what is asked, what is answered, and all that was said before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    learnt: bool = True
    """Whether an assistant's words may be learnt; no, where the data give the turn weight 0."""
    fields: str = ""
    """What else a chat template may need (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`), as JSON."""

    def message(self) -> dict[str, Any]:
        """The turn as chat templates take it.

        >>> Turn("tool", "9 degrees", fields='{"name": "weather"}').message()
        {'role': 'tool', 'content': '9 degrees', 'name': 'weather'}
        """
        extra: Mapping[str, Any] = json.loads(self.fields) if self.fields else {}
        return {"role": self.role, "content": self.content, **extra}


@dataclass(frozen=True)
class Record:
    """One conversation up to the answer that is learnt; most have one question and one answer."""

    form: str
    """How it was written: `alpaca`, `prompt-completion`, `question-answer`, `messages`, `text`, ..."""
    prompt: str
    """What is asked last; empty for plain text, and where the answer follows no user turn."""
    context: str
    """What the question is about: Alpaca's `input`, a passage, a table's schema; may be empty."""
    completion: str
    """What is learnt; empty where the answer is a tool call alone."""
    turns: tuple[Turn, ...] = ()
    """What was said before the question: a system turn, earlier questions and answers, the output of tools."""
    fields: str = ""
    """What belongs to the answer beside its text, as in `Turn.fields`."""
    tools: str = ""
    """The tools that the conversation may call: a list of JSON schemas, as JSON."""
    row: int | None = None
    """Its row in the source, counted from 0."""

    def before(self) -> tuple[Turn, ...]:
        """All turns before the answer, the question with its context last."""
        asked = "\n".join(part for part in (self.prompt, self.context) if part)
        return (*self.turns, Turn("user", asked)) if asked else self.turns

    def answer(self) -> Turn:
        """The answer as a turn."""
        return Turn("assistant", self.completion, fields=self.fields)

    def prompt_key(self) -> str:
        """A hash of what is asked, blind to case and white space; records that share it never part.

        Plain text has no prompt: its own text counts.
        """
        asked = [self.prompt, self.context, *(turn.content for turn in self.turns)]
        return _text_hash(asked if any(asked) else [self.completion])

    def content_key(self) -> str:
        """A hash of the whole record, blind to case and white space."""
        return _text_hash([self.prompt, self.context, *(turn.content for turn in self.turns), self.completion])


@dataclass(frozen=True)
class RecordSet:
    """All records of a source, with what a report must say about them."""

    name: str
    """The source as the user wrote it."""
    form: str
    records: tuple[Record, ...]
    revision: str | None
    """The hub's commit, or nothing for local and generated data."""
    licence: str | None = None
    exact_answers: bool = False
    """Whether each prompt has one right completion, so that exact match means something."""

    def fingerprint(self) -> str:
        """A hash of the content in order; equal content gives equal fingerprints, wherever it lies."""
        digest = hashlib.sha256(self.form.encode())
        for record in self.records:
            turns = tuple((turn.role, turn.content) for turn in record.turns)
            extra = tuple((turn.learnt, turn.fields) for turn in record.turns if not turn.learnt or turn.fields)
            parts: tuple[Any, ...] = (record.prompt, record.context, record.completion, turns)
            if extra or record.fields or record.tools:
                parts = (*parts, extra, record.fields, record.tools)
            digest.update(repr(parts).encode(errors="replace"))
        return digest.hexdigest()


def _text_hash(parts: Iterable[str]) -> str:
    text = "\x1f".join(" ".join(part.split()).casefold() for part in parts)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
