"""Which columns a source has and what each is for: recognised once over all rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptive_lora.data.cells import any_text, is_filled
from adaptive_lora.data.choices import ANSWERS as CHOICE_ANSWERS
from adaptive_lora.data.choices import LISTS as CHOICE_LISTS
from adaptive_lora.data.choices import Counting, choice_columns
from adaptive_lora.errors import DataError

CHATS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "input")
ANSWERS = ("output", "response", "completion", "answer", "answers", "target", "chosen")
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

RENDERED = ("text", "prompt", "full_text", "full_prompt", "formatted", "formatted_text", "formatted_prompt")
"""Columns that may be the whole record, or its prompt, as some template writes it; no others are taken for that."""
_NEARLY_ALL = 0.99
_MARKS = re.compile(r"(?:<\|?/?\w+\|?>|\[/?\w+\]|#+ ?(?i:end)|\s)*")
"""What a template may write behind an answer: marks as `</s>` or `### End`."""

_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
_FORMS = {"instruction": "alpaca", "input": "alpaca", "prompt": "prompt-completion", "question": "question-answer",
          "query": "question-answer", "source": "alpaca"}  # fmt: skip
_BESIDE = {*QUESTIONS, *DOCUMENTS, *CONTEXTS}
_CARRIES = {*_BESIDE, *SYSTEMS, *HISTORIES, *TOOLS, *CHOICE_LISTS}

_RENAMES = (
    ({"ctx", "endings"}, "Rename `ctx` to `question` and `endings` to `choices` (HellaSwag)"),
    ({"chosen"}, "Rename `chosen` to `messages` if it holds turns, to `text` if it is one text (preferences)"),
)
"""Columns of well-known data -> what to call them."""

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
    counting: Counting = field(default_factory=Counting)
    """What numbers among the answers mean where there are choices."""
    wanted: str = ""
    """A column of yes and no: rows with no are examples of what is not wanted (KTO)."""
    repeats: tuple[str, ...] = ()
    """Columns that say once more what the others say."""

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that records are made of."""
        every = (
            self.question,
            *self.context,
            self.system,
            self.history,
            self.tools,
            *self.choices,
            self.answer,
            self.wanted,
        )
        return tuple(dict.fromkeys(column for column in every if column))


def recognise(rows: Sequence[Mapping[str, Any]], name: str) -> Form:
    """The form of a source by its columns, those with something in them first; DataError with what was found."""
    every = list(dict.fromkeys(column for row in rows for column in row))
    filled = [column for column in every if any(is_filled(row.get(column)) for row in rows)]
    for columns in (filled, every):
        if form := _recognise(columns):
            return form
    found = ", ".join(f"`{column}`" for column in every[:8]) or "no keys"
    lower = {column.strip().lower() for column in every}
    renames = "; ".join(said for columns, said in _RENAMES if columns <= lower) or "Rename the columns"
    raise DataError(f"{name}: its records have {found}; expected {FORMS_IN_WORDS}. {renames}.")


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
    if document and not question and (answer := first(ANSWERS)):
        return Form("question-answer", document, answer, _context(columns, {document, answer}))
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


def with_wanted(form: Form, rows: Sequence[Mapping[str, Any]]) -> Form:
    """The form with the column that says whether an answer is wanted, if there is one and it is yes or no throughout.

    Beside a prompt and its completion that is KTO's `label`; elsewhere a label may say anything.
    """
    if (form.question.strip().lower(), form.answer.strip().lower()) != ("prompt", "completion"):
        return form
    for column in dict.fromkeys(column for row in rows for column in row):
        said = {str(row[column]).lower() for row in rows if is_filled(row.get(column))}
        if column.strip().lower() == "label" and said and said <= {"true", "false"}:
            return replace(form, wanted=column)
    return form


def without_repeats(form: Form, rows: Sequence[Mapping[str, Any]], name: str) -> Form:
    """The form without columns that are the record written out by a template, as `text` is in tatsu-lab/alpaca.

    DataError where only some rows are: as context, the column would put their answers into their prompts.
    """
    rendered = [column for column in form.context if column.strip().lower() in RENDERED]
    repeats = tuple(column for column in rendered if _is_rendered(rows, column, form, name))
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


def _is_rendered(rows: Sequence[Mapping[str, Any]], column: str, form: Form, name: str) -> bool:
    """Whether a column says nothing new: it stands in the question, or is the record or its prompt in a template."""
    others = [form.question, *(c for c in form.context if c.strip().lower() not in RENDERED)]
    cells = [
        _Written(_flat(row.get(column)), tuple(_flat(row.get(c)) for c in others), _flat(row.get(form.answer)))
        for row in rows
        if is_filled(row.get(column)) and is_filled(row.get(form.question)) and is_filled(row.get(form.answer))
    ]
    if not cells:
        return False
    tails = Counter(tail for cell in cells if (tail := cell.tail()) is not None)
    usual = {tail for tail, count in tails.items() if _MARKS.fullmatch(tail) or count > max(1, len(cells) // 2)}
    whole = [cell.tail() in usual for cell in cells]
    repeated = sum(full or cell.value in cell.others[0] for full, cell in zip(whole, cells, strict=True))
    if repeated >= _NEARLY_ALL * len(cells) or _is_prompt(cells):
        return True
    if any(whole):
        raise DataError(
            f"{name}: the column `{column}` holds question and answer together in {sum(whole):,} of {len(cells):,} "
            f"records that have an answer (the first is record {_nth_filled(rows, column, form, whole)}). Used, it "
            "would show the model the answers it has to give; remove the column, or rename it to `context` if it is "
            "what the question is about."
        )
    return False


@dataclass(frozen=True)
class _Written:
    """A cell that may be a record written out, with what the record's own columns say; white space is one blank."""

    value: str
    others: tuple[str, ...]
    """The question and what stands beside it."""
    answer: str

    def tail(self) -> str | None:
        """What follows on the answer; None where the cell does not hold the question with the answer behind it."""
        start = self.value.find(self.others[0])
        place = self.value.rfind(self.answer)
        if start < 0 or place < start + len(self.others[0]):
            return None
        return self.value[place + len(self.answer) :].strip()

    def frame(self) -> str | None:
        """What a template adds to question and context; None where they are not all there."""
        rest = self.value
        for part in sorted(filter(None, self.others), key=len, reverse=True):
            if part not in rest:
                return None
            rest = rest.replace(part, "\0", 1)
        return rest


def _is_prompt(cells: Sequence[_Written]) -> bool:
    """Whether the cells are prompts of one template, or of Alpaca's two (with and without `input`)."""
    frames = Counter(frame for cell in cells if (frame := cell.frame()) is not None)
    usual = frames.most_common(2)
    asked = len({cell.others for cell in cells})
    return asked > len(usual) and sum(count for _, count in usual) >= _NEARLY_ALL * len(cells)


def _nth_filled(rows: Sequence[Mapping[str, Any]], column: str, form: Form, whole: Sequence[bool]) -> int:
    columns = (column, form.question, form.answer)
    places = [place for place, row in enumerate(rows, 1) if all(is_filled(row.get(c)) for c in columns)]
    return places[whole.index(True)]


def _flat(value: Any) -> str:
    return " ".join(any_text(value).split())


def _is_within(row: Mapping[str, Any], column: str, text: str) -> bool:
    return any_text(row.get(column)).strip() in text
