"""Multiple choice: the options as lettered lines, the answer as the line that is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        return list(found), list(found.values())
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


def right_choice(answer: Any, column: str, labels: Sequence[str], texts: Sequence[str]) -> str:
    """The line that is right; `answer` is a number counted from 0, an option's label or letter, or its text.

    LeftOut where the answer is not told (empty, -1), BadRow where it is none of the options.

    >>> right_choice(1, "answer", ["A", "B"], ["oak", "elm"]), right_choice("oak", "answer", ["A", "B"], ["oak", "elm"])
    ('B. elm', 'A. oak')
    """
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if not is_filled(answer) or answer in (-1, "-1"):
        raise LeftOut("no answer")
    index = _index(answer, labels, texts)
    if index is None:
        options = ", ".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
        raise BadRow(f"`{column}` is {answer!r}, which is none of the options ({options[:120]}).")
    return f"{LETTERS[index]}. {texts[index]}"


def _index(answer: Any, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    said = str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()
    is_number = isinstance(answer, int | float)
    if not is_number and said in texts:
        return texts.index(said)
    if said in labels and not (is_number and labels[0] == "0"):
        return labels.index(said)
    if said.isdigit():
        return int(said) if int(said) < len(texts) else None
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
