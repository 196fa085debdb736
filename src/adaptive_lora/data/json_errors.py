"""What is wrong with a text that should be JSON, in words, and where."""

from __future__ import annotations

import json
import re


def what_is_wrong(text: str, error: json.JSONDecodeError, first_line: int = 1) -> str:
    """`line 3, column 1: a comma stands before the closing ]; remove it`.

    `first_line` is the number of the text's first line in its file. Lines and columns are counted from 1.

    >>> try:
    ...     json.loads("[1, 2,]")
    ... except json.JSONDecodeError as error:
    ...     what_is_wrong("[1, 2,]", error)
    'line 1, column 6: not valid JSON: a comma stands before the closing `]`; remove it'
    """
    place, reason = _reason(text, error)
    line = text.count("\n", 0, place) + first_line
    column = place - (text.rfind("\n", 0, place) + 1) + 1
    return f"line {line}, column {column}: not valid JSON: {reason}"


def too_much(error: Exception) -> str:
    """Why valid JSON cannot be read.

    >>> too_much(RecursionError())
    'its lists or objects are nested too deeply; write them flatter, or as text'
    """
    if isinstance(error, RecursionError):
        return "its lists or objects are nested too deeply; write them flatter, or as text"
    return "a number has thousands of digits; write it as text, in double quotes"


def _reason(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    place, rest = error.pos, text[error.pos :].lstrip()
    before = text[:place].rstrip()
    closing = rest[:1] if rest[:1] in ("]", "}") else before[-1:] if before[-1:] in ("]", "}") else ""
    # Python 3.13 stops at the comma itself, earlier versions behind it.
    if rest[:1] == "," and (after := rest[1:].lstrip()[:1]) in ("]", "}") and after:
        return place, f"a comma stands before the closing `{after}`; remove it"
    if closing and before[-1:] == ",":
        return len(before) - 1, f"a comma stands before the closing `{closing}`; remove it"
    if rest[:1] == "'" or (rest[:1] in ("]", "}") and before[-1:] == "'"):
        return place, "texts and keys stand in double quotes, not in single ones"
    if error.msg.startswith("Extra data"):
        if rest == ",":
            return place, "a comma stands behind the record at the end of the line; in JSON Lines there is none"
        if rest[:1] == ",":
            return place, "a comma stands behind the first value; put [ ] around all records, or remove the commas"
        return place, f"{rest[:20]!r} follows behind a value that is complete"
    if word := re.match(r"(None|True|False|undefined)\b", rest):
        return place, f"`{word[0]}` is no JSON; write {_JSON_WORDS[word[0]]}"
    if rest.startswith(("//", "/*", "#")):
        return place, "JSON has no comments; remove it"
    if not rest or error.msg.startswith("Unterminated string"):
        return place, "the text ends in the middle of a value; the file may be cut short"
    if error.msg.startswith("Invalid control character") and text[place] not in "\n\r\t":
        sign = f"\\u{ord(text[place]):04x}"
        return place, f"the control character {sign} stands inside a text; write it as {sign}, or remove it"
    if error.msg.startswith("Invalid control character"):
        return place, "a line break or a tab stands inside a text; write it as \\n or \\t"
    if error.msg.startswith("Invalid \\escape"):
        return place, "a backslash inside a text is written twice (\\\\)"
    if error.msg.startswith("Expecting ',' delimiter"):
        return place, f'a comma is missing, or a quote inside a text is not written as \\", before {rest[:20]!r}'
    return place, f"{error.msg[0].lower()}{error.msg[1:]}, found {rest[:20]!r}"


_JSON_WORDS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}
