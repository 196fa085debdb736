"""One piece of training text before any template: what is asked, what is answered, and all that was said before."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MARK = re.compile(r"[^\w]|_")
_ASCII_PUNCTUATION = {place: None for place in range(128) if unicodedata.category(chr(place))[0] == "P"}
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

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn: no text and no tool call. Learnt, it would teach to say nothing."""
        return not self.completion.strip() and "tool_calls" not in self.fields

    def prompt_key(self) -> str:
        """A hash of what is asked, blind to case, white space and punctuation; records that share it never part.

        Plain text has no prompt: its own text counts.

        >>> Record("alpaca", "Say hi!", "", "hi").prompt_key() == Record("alpaca", "say  hi", "", "yo").prompt_key()
        True
        """
        return _text_hash(_letters(part) for part in self._asked())

    def place_key(self) -> str:
        """A hash of what is asked, blind to case and white space: what decides where in the order a record stands.

        It is older than `prompt_key`, and the splits of studies that were run rest on it.
        """
        return _text_hash(" ".join(part.split()).casefold() for part in self._asked())

    def content_key(self) -> str:
        """A hash of the whole record as it is written: case, white space, roles and tool calls count."""
        turns = [(turn.role, turn.content, turn.learnt, turn.fields) for turn in self.turns]
        return _text_hash([repr((self.prompt, self.context, turns, self.completion, self.fields, self.tools))])

    def texts(self) -> tuple[str, ...]:
        """All texts of the record as they are written, the answer last."""
        return (*(turn.content for turn in self.turns), self.prompt, self.context, self.completion)

    def _asked(self) -> list[str]:
        asked = [self.prompt, self.context, *(turn.content for turn in self.turns)]
        return asked if any(asked) else [self.completion]


@dataclass(frozen=True)
class Reading:
    """What became of a source's rows and columns on their way to records."""

    rows: int = 0
    """Rows of the source."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why rows gave no record -> how many."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Column -> how many rows have null or NaN there, where others have something."""
    used: tuple[str, ...] = ()
    """Columns that records are made of."""
    harmless: tuple[str, ...] = ()
    """Columns that are known to say nothing about question or answer (`id`), or to repeat them."""
    unused: tuple[str, ...] = ()
    """All other columns with something in them."""
    assumed: tuple[str, ...] = ()
    """What the data leave open and reading had to decide, a sentence each."""


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
    reading: Reading = Reading()

    def fingerprint(self) -> str:
        """A hash of the content in order; equal content gives equal fingerprints, wherever it lies."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
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
    return hashlib.sha256("\x1f".join(parts).encode(errors="replace")).hexdigest()


def _letters(text: str) -> str:
    """Letters, digits and symbols of a text; the text itself where it has none (a question mark, Morse code)."""
    kept = "".join(text.split())
    if kept.isascii():  # most of English, and three times as fast
        kept = kept.translate(_ASCII_PUNCTUATION)
    else:
        kept = _MARK.sub(lambda found: "" if unicodedata.category(found[0])[0] == "P" else found[0], kept)
    return kept.casefold() or text
