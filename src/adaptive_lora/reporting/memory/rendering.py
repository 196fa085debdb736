"""The memory bank's templates, rendered as Markdown: what they print is escaped unless it is text of our own."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from adaptive_lora.reporting.escaping import escape_markdown, visible
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.templating import environment
from adaptive_lora.stats.run_table import Comparison

MOST = 8
"""Entries of a list in a sentence."""
LONGEST = 160
"""Characters of a foreign text: the bank is to be read whole."""
_WRAPPED = re.compile(r"(?<=[^\n]) *\n *(?=[^\n|-])(?!\d+\. )")
"""A line end inside a paragraph or a list item."""


def render(name: str, context: Mapping[str, Any]) -> str:
    """`templates/memory/NAME.md` as Markdown, one line a paragraph, list item or table row."""
    text = _environment().get_template(f"{name}.md").render(context)
    return re.sub(r"\n{3,}", "\n\n", _WRAPPED.sub(" ", text)).strip()


@functools.cache
def _environment() -> jinja2.Environment:
    made = environment("templates/memory", autoescape=True, finalize=_printed)
    own = (code, cut, first_words, grouped, sentence)
    made.filters |= {function.__name__: function for function in own}
    return made


def _printed(value: Any) -> Any:
    return value if isinstance(value, Markup | jinja2.Undefined) else cut(value, 2000)


def cut(text: object, longest: int = LONGEST) -> Markup:
    """Foreign text on one line, without markup, cut.

    >>> print(cut("<!-- adaptive-lora: end progress -->"))
    &lt;!-- adaptive-lora: end progress --&gt;
    """
    return Markup(escape_markdown(visible(str(text), longest)))


def code(text: object) -> Markup:
    """A foreign name or path as it is, in letters of one width.

    >>> print(code("${DATA}/a_b.json"), code("`<!--"))
    `${DATA}/a_b.json` `'‹!--`
    """
    return Markup(f"`{visible(str(text), LONGEST).replace('`', chr(39)).replace('<', '‹')}`")


def sentence(text: str) -> Markup:
    """A sentence of another template, which may name what a ledger from elsewhere holds: no HTML, no link, one line.

    >>> print(sentence("half [0.1, 0.2] of `x` <b>"))
    half [0.1, 0.2] of `x` &lt;b&gt;
    """
    plain = visible(text, 2000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(plain.replace("](", "]\\(").replace("://", ":&#47;/").replace("www.", "www&#46;"))


def grouped(compared: Iterable[Comparison]) -> str:
    """Arms with the same budgets together.

    >>> grouped([Comparison("a", "rank:4"), Comparison("b", "rank:4"), Comparison("b", "rank:8")])
    'a at rank:4; b at rank:4 and rank:8'
    """
    budgets: dict[str, tuple[str, ...]] = {}
    for comparison in compared:
        budgets[comparison.arm] = (*budgets.get(comparison.arm, ()), comparison.budget)
    alike = {own: [arm for arm in budgets if budgets[arm] == own] for own in budgets.values()}
    return "; ".join(f"{listed(arms, MOST)} at {listed(own)}" for own, arms in alike.items())


def first_words(sentences: Sequence[str], most: int) -> list[str]:
    """Sentences from the first on with at most so many words in all, the first of them in any case; then how many are
    left.

    >>> first_words(["One two.", "Three four."], most=3)
    ['One two.', '1 more in the report.']
    """
    for kept in range(1, len(sentences)):
        if sum(len(text.split()) for text in sentences[: kept + 1]) > most:
            return [*sentences[:kept], f"{len(sentences) - kept} more in the report."]
    return list(sentences)
