"""What of an answer counts, and when two answers are the same: a number behind `####`, the last number, or the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal

AnswerForm = Literal["auto", "marked", "number", "text"]
MARK = "####"
"""What GSM8K writes before the final number."""
_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?(?:/\d+(?!\d))?"
)
"""A sign behind a digit or a letter is none: 10-5 ends in 5."""
_LONGEST = 400
"""Characters of a number; what is longer is none, and cannot be reckoned with."""
_CLOSING = " \t.,;:!?\"'`"


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where it has none.

    Commas between thousands, a sign, decimals, an exponent and fractions are read; a currency before it and a unit
    behind it are passed over.

    >>> last_number("so 3 x 4 = 12, that is $1,234.50."), last_number("x = -3/4"), last_number("none")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    for found in reversed(list(_NUMBER.finditer(text))):
        if (number := _read(found.group())) is not None:
            return number
    return None


def _read(written: str) -> Fraction | None:
    whole, _, below = written.replace(",", "").replace("−", "-").partition("/")
    if not any(c.isdigit() for c in whole) or len(written) > _LONGEST:
        return None
    divisor = Fraction(below.strip() or 1)
    return Fraction(whole.strip()) / divisor if divisor else None


def marked_number(text: str) -> Fraction | None:
    """The number right behind the last `####`, but for a currency; None without the mark or without a number there.

    >>> marked_number("3 + 4 = 7\\n#### 7 apples, 2 of them red"), marked_number("7")
    (Fraction(7, 1), None)
    """
    _, mark, behind = text.rpartition(MARK)
    if not mark:
        return None
    found = _NUMBER.match(behind.lstrip(" \t\n$€£*"))
    return _read(found.group()) if found else None


def plain_text(text: str) -> str:
    """Without what is no part of an answer: case, runs of white space, quotes around it, closing punctuation.

    >>> plain_text("  The  Eiffel\\nTower. ")
    'the eiffel tower'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_CLOSING)


def is_a_number(text: str) -> bool:
    """Whether a text is a number and nothing more, but for a currency, a per cent sign or a full stop."""
    bare = plain_text(text).strip("$€£% ")
    found = _NUMBER.fullmatch(bare)
    return found is not None and _read(bare) is not None


READERS: Mapping[str, Callable[[str], Fraction | str | None]] = {
    "marked": marked_number,
    "number": last_number,
    "text": plain_text,
}


def form_of(reference: str, asked: AnswerForm = "auto") -> AnswerForm:
    """The form that counts for a record: the one that is asked for, else by its own answer.

    >>> form_of("5 + 2 = 7\\n#### 7"), form_of("7."), form_of("seven")
    ('marked', 'number', 'text')
    """
    if asked != "auto":
        return asked
    return "marked" if marked_number(reference) is not None else "number" if is_a_number(reference) else "text"


def is_right(answer: str, reference: str, asked: AnswerForm = "auto") -> bool:
    """Whether an answer gives what its record's own gives, in the form that counts.

    >>> is_right("I count 4, so\\n#### 1,000", "#### 1000"), is_right("It is 1000", "#### 1000")
    (True, False)
    """
    read = READERS[form_of(reference, asked)]
    expected = read(reference)
    return expected is not None and read(answer) == expected
