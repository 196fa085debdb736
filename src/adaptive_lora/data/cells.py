"""The cells of a source's rows: what is missing, what is text, and what is JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adaptive_lora.data.json_errors import too_much


class BadRow(Exception):
    """A row that cannot be read; its text says why, the caller says which."""


class LeftOut(Exception):
    """A row that gives no record to learn; its text is the reason that is counted."""


def is_missing(value: Any) -> bool:
    """Whether a cell is null, NaN, or what pandas has for them.

    >>> is_missing(None), is_missing(float("nan")), is_missing("")
    (True, True, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def is_filled(value: Any) -> bool:
    """Whether there is anything in a cell."""
    return not is_missing(value) and not (isinstance(value, str | list | tuple | Mapping) and not len(value))


def plain(value: Any) -> Any:
    """Arrays as lists and their numbers as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def required_text(row: Mapping[str, Any], column: str) -> str:
    """The text in a column, numbers, true and false as JSON has them; empty where it is missing.

    BadRow where it is no text or the row lacks the column.
    """
    if column not in row:
        raise BadRow(f"no `{column}`, which the others have.")
    value = row[column]
    if is_missing(value):
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow(f"`{column}` must be text, got a {type(value).__name__}.")
    return any_text(value)


def any_text(value: Any) -> str:
    """A cell as text for a prompt: texts as they are, lists of texts line by line, all else as JSON.

    >>> any_text(["a", "b"]), any_text({"rows": [1]}), any_text(None)
    ('a\\nb', '{"rows": [1]}', '')
    """
    if not is_filled(value):
        return ""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    return value if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """JSON in the order of the data: what is learnt of a call has it too."""
    return json.dumps(value, ensure_ascii=False, default=str)


def parsed(value: Any, column: str) -> Any:
    """A list or mapping, which CSV and some data sets write as JSON; BadRow where the text is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"`{column}` is text that is not valid JSON ({error.msg} at character {error.pos + 1}).") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"`{column}`: {too_much(error)}.") from None
