"""A general text, to see what training on a task makes a model forget: windows of it, in which every token counts."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptive_lora.data.control_tokens import start_tokens
from adaptive_lora.data.encoding import Example
from adaptive_lora.data.records import RecordSet
from adaptive_lora.errors import DataError
from adaptive_lora.files import expanded
from adaptive_lora.streams import numpy_stream

WINDOWS = 64
"""Most windows: of 512 tokens, as much text as two hundred answers of ordinary length."""
_MOST_CHARACTERS = 4_000_000
"""Of a longer text the beginning is read."""


def is_text(source: str) -> bool:
    """Whether a source is a plain text file by its name."""
    return Path(source).suffix.lower() in (".txt", ".md")


def general_text(source: str, records_of: Callable[[str], RecordSet]) -> str:
    """The text of a .txt or .md file, or of all records of any other source, one behind the other.

    `records_of` opens other sources. DataError where there is no such file, or it is no text.
    """
    if not is_text(source):
        records = records_of(source).records
        return "\n\n".join(part for record in records for part in record.texts() if part)[:_MOST_CHARACTERS]
    path = expanded(source)
    if path.exists() and not path.is_file():
        raise DataError(f"{source} is no regular file; name a .txt file.")
    try:
        with path.open("rb") as file:
            content = file.read(4 * _MOST_CHARACTERS)
        # Where the last character is cut in two, it is behind what is taken.
        whole = codecs.getincrementaldecoder("utf-8-sig")().decode(content, len(content) < 4 * _MOST_CHARACTERS)
        return whole[:_MOST_CHARACTERS]
    except FileNotFoundError:
        raise DataError(f"{source} does not exist; `data.general` takes a .txt file, or what `source` takes.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read as UTF-8 text: {type(error).__name__}.") from None


def windows_of(text: str, tokenizer: Any, max_length: int, seed: int, name: str) -> tuple[Example, ...]:
    """Windows of `max_length` tokens, at most `WINDOWS` of them from the stream `general` of `seed`, in their order.

    Each begins with what the tokenizer writes before text; every other token but a window's very first is learnt. A
    shorter rest is left out, unless it is all there is. DataError where there are not two tokens.
    """
    start = start_tokens(tokenizer)
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    size = max(max_length - len(start), 1)
    parts = [ids[at : at + size] for at in range(0, max(len(ids) - size, 0) + 1, size)]
    if len(start) + len(parts[0]) < 2:
        raise DataError(f"{name} has no text to measure: it takes two tokens at least. Name another as `data.general`.")
    chosen = sorted(numpy_stream(seed, "general").permutation(len(parts))[:WINDOWS].tolist())
    return tuple(Example((*start, *parts[i]), len(start), False) for i in chosen)
