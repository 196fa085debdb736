"""Which columns a source has and what each is for: recognised once over all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptive_lora.data.cells import any_text, is_filled
from adaptive_lora.data.choices import ANSWERS as CHOICE_ANSWERS
from adaptive_lora.data.choices import LISTS as CHOICE_LISTS
from adaptive_lora.data.choices import choice_columns
from adaptive_lora.errors import DataError

CHATS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "input")
ANSWERS = ("output", "response", "completion", "answer", "answers", "target")
DOCUMENTS = ("text", "document", "article", "dialogue")
SUMMARIES = ("summary", "highlights")
SYSTEMS = ("system", "system_prompt", "system_message")
HISTORIES = ("history",)
TOOLS = ("tools", "functions")
CONTEXTS = ("context", "contexts", "passage", "passages", "paragraph", "paragraphs", "table", "tables", "schema",
            "background", "story", "support", "evidence", "knowledge", "premise", "hypothesis", "code", "problem",
            "hint")  # fmt: skip
"""What a question may be about; these, and questions and documents beside the question, are never left away."""

HARMLESS = frozenset({
    "id", "idx", "index", "uid", "uuid", "guid", "qid", "pid", "row", "unnamed: 0",
    "__index_level_0__", "category", "subcategory", "source", "dataset", "data_source", "url", "link", "timestamp",
    "date", "created_at", "language", "lang", "locale", "license", "licence", "split", "subset", "difficulty", "tags",
    "author", "token_count", "num_tokens", "length", "hash",
})  # fmt: skip
"""Columns that say nothing that question or answer would lack; so do all whose name ends in `_id`."""

_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
_FORMS = {"instruction": "alpaca", "input": "alpaca", "prompt": "prompt-completion", "question": "question-answer",
          "query": "question-answer", "source": "alpaca"}  # fmt: skip
_BESIDE = {*QUESTIONS, *DOCUMENTS, *CONTEXTS}
_CARRIES = {*_BESIDE, *SYSTEMS, *HISTORIES, *TOOLS, *CHOICE_LISTS}

FORMS_IN_WORDS = (
    "`messages` or `conversations` (chat), a question (`instruction`, `prompt`, `question`, `query` or `input`) with "
    "an answer (`output`, `response`, `completion`, `answer` or `target`), `text` with `summary`, or `text` alone"
)


@dataclass(frozen=True)
class Form:
    """What the columns of a source are for."""

    name: str
    """`alpaca`, `prompt-completion`, `question-answer`, `messages`, `summary` or `text`: goes into every record."""
    question: str = ""
    answer: str = ""
    """For a chat the column of its turns."""
    context: tuple[str, ...] = ()
    system: str = ""
    history: str = ""
    tools: str = ""
    choices: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()
    """Columns that say once more what the others say."""

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that records are made of."""
        every = (self.question, *self.context, self.system, self.history, self.tools, *self.choices, self.answer)
        return tuple(dict.fromkeys(column for column in every if column))


def recognise(rows: Sequence[Mapping[str, Any]], name: str) -> Form:
    """The form of a source by its columns, those with something in them first; DataError with what was found."""
    every = list(dict.fromkeys(column for row in rows for column in row))
    filled = [column for column in every if any(is_filled(row.get(column)) for row in rows)]
    for columns in (filled, every):
        if form := _recognise(columns):
            return form
    found = ", ".join(f"`{column}`" for column in every[:8]) or "no keys"
    raise DataError(f"{name}: its records have {found}; expected {FORMS_IN_WORDS}. Rename the columns.")


def _recognise(columns: Sequence[str]) -> Form | None:
    named = {column.strip().lower(): column for column in reversed(columns)}

    def first(names: Sequence[str]) -> str:
        return next((named[name] for name in names if name in named), "")

    found = _pair(columns, named, first)
    if found is None or found.name == "text":
        return found
    tools = first(TOOLS)
    # What calls tools is a chat, whose template shows them.
    name = "messages" if tools else found.name
    return replace(found, name=name, system=first(SYSTEMS), history=first(HISTORIES), tools=tools)


def _pair(columns: Sequence[str], named: Mapping[str, str], first: Callable[[Sequence[str]], str]) -> Form | None:
    """The form by question, what it is about, and answer."""
    if chat := first(CHATS):
        return Form("messages", answer=chat)
    question = first([q for q, a in _PAIRS if q in named and a in named]) or first(QUESTIONS)
    if "target" in named and "source" in named:  # a text and its translation; else a source is where a record is from
        question = question or named["source"]
    options = choice_columns(columns) or [column for column in [first(CHOICE_LISTS)] if column]
    if question and options and (answer := first(CHOICE_ANSWERS)):
        beside = _context(columns, {question, answer, *options})
        return Form("question-answer", question, answer, beside, choices=tuple(options))
    own = [a for q, a in _PAIRS if named.get(q) == question]
    answer = first([*own, *ANSWERS, *SUMMARIES])
    if question and answer and question != answer:
        return Form(_FORMS[question.strip().lower()], question, answer, _context(columns, {question, answer}))
    document, summary = first(DOCUMENTS), first(SUMMARIES)
    if document and summary and not question:
        return Form("summary", document, summary)
    return Form("text", answer=named["text"]) if "text" in named and not (question and answer) else None


def is_harmless(column: str) -> bool:
    """Whether a column is known to say nothing that question or answer would lack.

    >>> is_harmless("ID"), is_harmless("prompt_id"), is_harmless("passage")
    (True, True, False)
    """
    return column.strip().lower() in HARMLESS or column.strip().lower().endswith("_id")


def _context(columns: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    lower = {column: column.strip().lower() for column in columns if column not in taken}
    about = _BESIDE | ({"source"} if "target" in map(str.lower, taken) else set())
    return tuple(column for column, name in lower.items() if name in about)


def without_repeats(form: Form, rows: Sequence[Mapping[str, Any]]) -> Form:
    """The form without context columns that repeat what the others say, as `text` does in tatsu-lab/alpaca."""
    repeats = tuple(c for c in form.context if all(_repeats(row, c, form) for row in rows if is_filled(row.get(c))))
    return replace(form, context=tuple(c for c in form.context if c not in repeats), repeats=repeats)


def sort_columns(
    form: Form, rows: Sequence[Mapping[str, Any]], texts: Sequence[str | None], name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(harmless, unused) columns of those that a form does not use; `texts` are all words of each row's record,
    None where it has none.

    DataError for a column that carries the question and is not repeated in the record: it is never dropped.
    """
    harmless, unused = [], []
    for column in dict.fromkeys(column for row in rows for column in row):
        if column in form.used or not any(is_filled(row.get(column)) for row in rows):
            continue
        if column in form.repeats or is_harmless(column):
            harmless.append(column)
        elif column.strip().lower() not in _CARRIES:
            unused.append(column)
        elif all(text is None or _is_within(row, column, text) for row, text in zip(rows, texts, strict=True)):
            harmless.append(column)
        else:
            raise DataError(
                f"{name}: the column `{column}` may hold part of the question, and records read by "
                f"{', '.join(f'`{c}`' for c in form.used)} would lack it. Put it into one of these, or rename it if it "
                "is not part of the question."
            )
    return tuple(harmless), tuple(unused)


def _repeats(row: Mapping[str, Any], column: str, form: Form) -> bool:
    """Whether a column says nothing new: it stands in the question, or holds the whole record written out."""
    value, asked, answered = (any_text(row.get(c)).strip() for c in (column, form.question, form.answer))
    return value in asked or (bool(answered) and asked in value and answered in value)


def _is_within(row: Mapping[str, Any], column: str, text: str) -> bool:
    return any_text(row.get(column)).strip() in text
