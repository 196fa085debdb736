"""Files of JSON and of numbers, with errors that say where."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptive_lora.data.json_errors import too_much, what_is_wrong
from adaptive_lora.errors import UsageError
from adaptive_lora.files import read_bounded

_LARGEST = 2**32
"""Bytes of one file of results."""


def parsed(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    return _object(text_of(path), str(path), 1)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE, line N`, object) of every line that is not blank."""
    for at, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {at}", _object(line, str(path), at)


def number(value: Any, where: str) -> float:
    """A finite number, be it written as text; UsageError that begins with `where`."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{where} is {shortened(value)}, which is no finite number. Leave out what has no value.")
    return found


def part(told: Mapping[str, Any], key: str, where: object) -> Mapping[str, Any]:
    """The object under a key, empty where there is none; UsageError where something else stands there."""
    found = told.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise UsageError(f"{where}: `{key}` is {shortened(found)}; an object, {{...}}, is needed.")
    return found or {}


def shortened(value: Any) -> str:
    """A value of a foreign file for a message, on one line and not for long.

    >>> shortened(["a"] * 100)
    "['a', 'a', 'a', 'a', 'a', 'a', 'a', ...]"
    """
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


def text_of(path: Path) -> str:
    """The UTF-8 text of a regular file; UsageError where it is none."""
    try:
        return read_bounded(path, _LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text at byte {error.start}.") from None


def _object(text: str, path: str, line: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, {what_is_wrong(text, error, line)}.") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path}, line {line}: {too_much(error)}.") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}, line {line}: {{...}} is needed, got {text.strip()[:40]!r}.")
    return found
