"""Where the sentences are made: one way to load templates, and filters for lists, plurals and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2.runtime import LoopContext

from adaptive_lora.stats.words import counted, listed, number


def environment(folder: str = "templates", **options: Any) -> jinja2.Environment:
    """Of the templates in a folder beside this file; a name that they do not know is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", folder), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, **options,
    )  # fmt: skip
    made.filters |= {"comma": comma, "counted": counted, "few": few, "listed": listed, "number": number}
    return made


def line(template: str, **values: Any) -> str:
    """A template as one line of plain text."""
    return " ".join(environment().get_template(template).render(values).split())


def few(names: Iterable[str], most: int = 8) -> str:
    """As a list; of a long one the first, and how many more.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    every = list(names)
    return listed(every if len(every) <= most else [*every[:most], f"{len(every) - most} more"])


def comma(loop: LoopContext, every: int | None = None) -> str:
    """What stands after an entry of a list that a template writes in a loop; `every`: how many there are in all."""
    more = (every or loop.length) - loop.length
    if loop.last:
        return f" and {more} more" if more else ""
    return " and " if loop.revindex == 2 and not more else ", "
