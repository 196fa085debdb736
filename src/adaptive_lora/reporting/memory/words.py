"""How the memory bank writes foreign text, differences, and long lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from adaptive_lora.reporting.escaping import escape_markdown, visible
from adaptive_lora.reporting.formatting import formatted, listed
from adaptive_lora.stats.estimators import Interval
from adaptive_lora.stats.run_table import Comparison

LONGEST = 160
"""Characters of a foreign text: the bank is to be read whole."""
MOST = 8
"""Entries of a list in a sentence."""


def safe(text: object, longest: int = LONGEST) -> str:
    """Foreign text on one line, without markup, cut.

    >>> safe("<!-- adaptive-lora: end progress -->")
    '&lt;!-- adaptive-lora: end progress --&gt;'
    """
    return escape_markdown(visible(str(text), longest))


def code(text: object, longest: int = LONGEST) -> str:
    """A foreign name or path as it is, in letters of one width.

    >>> code("${DATA}/a_b.json"), code("`<!--")
    ('`${DATA}/a_b.json`', "`'‹!--`")
    """
    return f"`{visible(str(text), longest).replace('`', chr(39)).replace('<', '‹')}`"


def told(sentence: str) -> str:
    """A sentence of the rules, which may name what a ledger from elsewhere holds: no HTML, no link, one line.

    >>> told("half [0.1, 0.2] of `x` <b>")
    'half [0.1, 0.2] of `x` &lt;b&gt;'
    """
    plain = visible(sentence, 2000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("](", "]\\(").replace("://", ":&#47;/").replace("www.", "www&#46;")


def apart(found: Interval, form: str = "+.4f") -> str:
    """A difference with its interval.

    >>> apart(Interval(-0.012, -0.02, 0.004, 8, 0.95))
    '−0.0120 (−0.0200 to +0.0040)'
    """
    mean, low, high = (formatted(end, form) for end in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})" if low and high else mean


def few(names: Sequence[str], most: int = MOST) -> str:
    """As a list; of a long one the first, and how many more.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return listed(names) if len(names) <= most else listed([*names[:most], f"{len(names) - most} more"])


def grouped(compared: Iterable[Comparison]) -> str:
    """Arms with the same budgets together.

    >>> grouped([Comparison("a", "rank:4"), Comparison("b", "rank:4"), Comparison("b", "rank:8")])
    'a at rank:4; b at rank:4 and rank:8'
    """
    budgets: dict[str, list[str]] = {}
    for comparison in compared:
        budgets.setdefault(comparison.arm, []).append(comparison.budget)
    alike: dict[tuple[str, ...], list[str]] = {}
    for arm, own in budgets.items():
        alike.setdefault(tuple(own), []).append(arm)
    return "; ".join(f"{few(arms)} at {listed(own)}" for own, arms in alike.items())


def bullets(lines: Sequence[str]) -> str:
    """A list, one line each."""
    return "\n".join(f"- {line}" for line in lines)


def first_words(sentences: Sequence[str], most: int) -> list[str]:
    """Sentences from the first on with at most so many words in all, the first of them in any case; then how many are
    left.

    >>> first_words(["One two.", "Three four."], most=3)
    ['One two.', '1 more in the report.']
    """
    kept: list[str] = []
    for sentence in sentences:
        if kept and sum(len(re.findall(r"\S+", s)) for s in [*kept, sentence]) > most:
            return [*kept, f"{len(sentences) - len(kept)} more in the report."]
        kept.append(sentence)
    return kept


def day(moment: object) -> str:
    """The date of an ISO moment.

    >>> day("2026-11-22T10:00:00+00:00")
    '2026-11-22'
    """
    return safe(str(moment)[:10])
