"""A manuscript as a value: title, abstract, blocks, what they show, and who answers for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptive_lora.reporting.paper.bibliography import Work
from adaptive_lora.reporting.paper.document import Block
from adaptive_lora.reporting.tables import Table


@dataclass(frozen=True)
class Author:
    """As `authors.txt` names one."""

    name: str
    affiliation: str = ""


@dataclass(frozen=True)
class People:
    """What only a human can say of a manuscript."""

    authors: tuple[Author, ...] = ()
    tools: str = ""
    """Which generative tools were used, and for what."""
    group: str = ""
    """Who stands on the first page while no person does; for arXiv that is nobody."""


@dataclass(frozen=True)
class Manuscript:
    """All of it, before any form of writing."""

    title: str
    abstract: tuple[Block, ...]
    blocks: tuple[Block, ...]
    tables: Mapping[str, Table]
    figures: Mapping[str, str]
    """Name -> caption, of those that blocks show."""
    works: Sequence[Work]
    """Those cited, in order of their authors."""
    people: People


def read_people(text: str) -> People:
    """Lines `author: NAME | AFFILIATION`, `group: NAME` and `tools: STATEMENT`; `#` begins a comment.

    >>> read_people("author: A. B. Meyer | Somewhere\\ntools: none").authors
    (Author(name='A. B. Meyer', affiliation='Somewhere'),)
    """
    said = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    authors = [value.partition("|") for key, value in said if key == "author" and value]
    tools, groups = ([value for key, value in said if key == wanted] for wanted in ("tools", "group"))
    return People(tuple(Author(name.strip(), place.strip()) for name, _, place in authors),
                  tools[-1] if tools else "", groups[-1] if groups else "")  # fmt: skip
