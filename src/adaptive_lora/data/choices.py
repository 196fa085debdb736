"""Multiple choice: the options as lettered lines, the answer as the line that is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.data.cells import BadRow, LeftOut, any_text, is_filled, parsed

LISTS = ("choices", "options")
"""Columns that hold all options of a question."""
ANSWERS = ("answer", "answerkey", "answer_key", "answer_idx", "answer_index", "label", "correct_answer",
           "correct_option", "cop", "correct", "gold", "target")  # fmt: skip
"""Columns that say which one is right, the first that is there counts."""

_COLUMN = re.compile(r"(?:(?:option|choice|answer|op)[ _]?)?([a-j])|(?:option|choice)[ _]?([1-9])")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True)
class Counting:
    """What numbers as answers mean, the same in all rows of a source."""

    base: int = 0
    """The number of the first option: 0 or 1."""
    is_told: bool = True
    """Whether the data tell: a 0 is among the answers, or the count of the options is, or there are no numbers."""
    zero: bool = False
    """Whether an answer is 0 where no option is called so; numbers are then no labels."""
    is_text: bool = False
    """Whether numbers are the options themselves, as in `3 + 4?` with 6, 7 and 8."""


COUNTED_FROM_0 = (
    "numbers as answers are read as counted from 0, as neither a 0 nor the number of options is among them; write "
    "letters, or the options' own words, if they count from 1"
)
"""What is said where `Counting.is_told` is False."""


def counting_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], answer: str) -> Counting:
    """What numbers in the column `answer` mean, decided once over all rows: text where each is one of its options,
    else counted from 0 where a 0 is among them, from 1 where the count of the options is, from 0 otherwise.

    >>> rows = [{"choices": ["oak", "elm"], "answer": 2}, {"choices": ["ash", "fir"], "answer": 1}]
    >>> counting_of(rows, ["choices"], "answer").base
    1
    """
    found = list(_numbers(rows, columns, answer))
    if found and all(said in texts for said, _, texts in found):
        return Counting(is_text=True)
    counted = [(said, texts) for said, labels, texts in found if said not in labels]
    zero = any(int(said) == 0 for said, _ in counted)
    last = any(int(said) == len(texts) for said, texts in counted)
    return Counting(int(last and not zero), zero or last or not counted, zero)


def choice_columns(columns: Sequence[str]) -> list[str]:
    """Columns that hold one option each (`A`, `B`, `option_a`, `opa`, `choice1`), in order; empty where there are not
    at least two in a row.

    >>> choice_columns(["question", "B", "A", "answer"])
    ['A', 'B']
    """
    named = {_label(column): column for column in columns if _label(column)}
    for marks in ("abcdefghij", "123456789"):
        found = [named[mark] for mark in marks[: len(named)] if mark in named]
        if len(found) > 1 and all(mark in named for mark in marks[: len(found)]):
            return found
    return []


def read_choices(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """(labels as the data have them, texts) of a row's options; BadRow where they are not."""
    if len(columns) > 1:
        found = {_label(column).upper(): any_text(row.get(column)) for column in columns if is_filled(row.get(column))}
        # The number in `choice1` is a column's, and says nothing of how answers count.
        return [LETTERS[int(label) - 1] if label.isdigit() else label for label in found], list(found.values())
    value = parsed(row.get(columns[0]), columns[0])
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        texts = [any_text(text) for text in value["text"]]
        labels = [str(label) for label in value.get("label", LETTERS[: len(texts)])]
    elif isinstance(value, Mapping):
        labels, texts = [str(key) for key in value], [any_text(text) for text in value.values()]
    elif isinstance(value, list | tuple) and value:
        pairs = [_labelled(option) for option in value]
        texts = [text for _, text in pairs]
        labels = [label or LETTERS[i % 26] for i, (label, _) in enumerate(pairs)]
    else:
        raise BadRow(f"`{columns[0]}` must be a list of options or {{text: [...], label: [...]}}, got {value!r:.60}.")
    if not 0 < len(texts) <= len(LETTERS) or len(texts) != len(labels):
        raise BadRow(f"`{columns[0]}` has {len(texts)} options and {len(labels)} labels.")
    return labels, texts


def lettered(texts: Sequence[str]) -> str:
    """Options one below the other.

    >>> lettered(["oak", "elm"])
    'A. oak\\nB. elm'
    """
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))


def right_choice(
    answer: Any, column: str, labels: Sequence[str], texts: Sequence[str], counting: Counting = Counting()
) -> str:
    """The line that is right; `answer` is a number as `counting` says, an option's label or letter, or its text.

    LeftOut where the answer is not told (empty, -1), BadRow where it is none of the options.

    >>> right_choice(1, "answer", ["A", "B"], ["oak", "elm"]), right_choice("oak", "answer", ["A", "B"], ["oak", "elm"])
    ('B. elm', 'A. oak')
    """
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if not is_filled(answer) or answer in (-1, "-1"):
        raise LeftOut("no answer")
    said = _said(answer)
    index = _numbered(said, labels, texts, counting) if _NUMBER.fullmatch(said) else _named(said, labels, texts)
    if index is None:
        options = ", ".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))[:120]
        count = "are options as they are" if counting.is_text else f"count from {counting.base}"
        raise BadRow(
            f"`{column}` is {answer!r}, which is none of the options ({options}); numbers {count} in these data. Give "
            "the option's letter or its text."
        )
    return f"{LETTERS[index]}. {texts[index]}"


def _numbers(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], answer: str
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(number, labels, texts) of the rows whose answer is a number."""
    for row in rows:
        value = row.get(answer)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if not _NUMBER.fullmatch(said := _said(value)) or not any(is_filled(row.get(c)) for c in columns):
            continue
        try:
            labels, texts = read_choices(row, columns)
        except BadRow:
            continue  # said with its record when that is read
        yield said, labels, texts


def _said(answer: Any) -> str:
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()


def _numbered(said: str, labels: Sequence[str], texts: Sequence[str], counting: Counting) -> int | None:
    if said in labels and not (counting.zero and "0" not in labels):
        return labels.index(said)
    place = int(said) - counting.base
    if not counting.is_text and 0 <= place < len(texts):
        return place
    return texts.index(said) if said in texts else None


def _named(said: str, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    if said in texts:
        return texts.index(said)
    if said in labels:
        return labels.index(said)
    blind = [text.strip().casefold() for text in texts]
    if said.casefold() in blind:
        return blind.index(said.casefold())
    if found := _LETTER.fullmatch(said):
        upper = [label.upper() for label in labels]
        letter = found[1].upper()
        index = upper.index(letter) if letter in upper else LETTERS.index(letter)
        return index if index < len(texts) else None
    return None


def _label(column: str) -> str:
    if len(column) == 1 and not column.isupper():
        return ""  # `a` and `b` may be anything
    found = _COLUMN.fullmatch(column.lower())
    return (found[1] or found[2]) if found else ""


def _labelled(option: Any) -> tuple[str, str]:
    if isinstance(option, Mapping) and is_filled(option.get("text")):
        return str(option.get("label", option.get("key", ""))), any_text(option["text"])
    return "", any_text(option)
