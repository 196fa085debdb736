"""The paper's templates: `<< >>` prints and `<% %>` acts, since braces are LaTeX's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting import templating
from adaptive_lora.reporting.escaping import visible
from adaptive_lora.reporting.paper.document import LITERAL
from adaptive_lora.reporting.paper.facts import NATS, Fact, Value
from adaptive_lora.stats.looks import decided_at
from adaptive_lora.stats.power import width_with

_MARKS = {
    "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<", "variable_end_string": ">>",
    "comment_start_string": "<#", "comment_end_string": "#>",
}  # fmt: skip


def environment(
    finalize: Callable[[Any], Any], autoescape: bool = False, folder: str | Path = "paper/text"
) -> jinja2.Environment:
    """Of the templates in `text` or another folder; `finalize` makes what an expression prints safe."""
    made = templating.environment(folder, autoescape=autoescape, finalize=finalize, **_MARKS)
    made.filters["value"] = value
    made.globals.update(nats=NATS, render=templating.render, render_all=templating.render_all)
    made.globals.update(width_with=width_with, look_levels=decided_at)
    return made


def value(known: Value | None, form: str = "", unit: str = "") -> str:
    """A value that must be there, written as a fact is."""
    if known is None:
        raise PaperError("The text needs a value that the results do not have.")
    return Fact(known, form, unit).text


@functools.cache
def text_environment() -> jinja2.Environment:
    """Whatever it prints is words in which nothing is markup, but for `Markup` of our own."""
    return environment(finalize=_literal)


def own_environment(folder: Path) -> jinja2.Environment:
    """As `text_environment`, of a text that a person wrote."""
    return environment(finalize=_literal, folder=folder)


def _literal(value: Any) -> str:
    return value if isinstance(value, Markup) else f"{LITERAL[0]}{visible(str(value), 2000)}{LITERAL[1]}"
