"""The works that a paper can cite: `references.bib`, read strictly, and the forms in which they are cited."""

from __future__ import annotations

import functools
import itertools
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.formatting import listed


@dataclass(frozen=True)
class Work:
    """One entry; an arXiv number or a DOI or an address identifies it."""

    key: str
    title: str
    authors: tuple[str, ...]
    """`Family, Given`, in order."""
    year: str
    place: str
    """Journal, proceedings or publisher."""
    entry: str
    """As `references.bib` has it."""
    arxiv: str = ""
    doi: str = ""
    url: str = ""

    @property
    def families(self) -> str:
        """Hu et al.; Holm; Biderman and Wolf."""
        names = [author.partition(",")[0] for author in self.authors]
        return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)

    @property
    def people(self) -> str:
        """All authors, given names first."""
        return listed([" ".join(part.strip() for part in reversed(author.split(",", 1))) for author in self.authors])

    @property
    def link(self) -> tuple[str, str]:
        """(words, address) of what identifies it."""
        if self.arxiv:
            return f"arXiv:{self.arxiv}", f"https://arxiv.org/abs/{self.arxiv}"
        return (f"doi:{self.doi}", f"https://doi.org/{self.doi}") if self.doi else (self.url, self.url)


_ENTRY = re.compile(r"@\w+\{([\w-]+),\n(.*?)\n\}", re.S)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", re.M)


@functools.cache
def works() -> Mapping[str, Work]:
    """Key -> work, of the `references.bib` that is part of the package."""
    return read_works(resources.files(__package__).joinpath("references.bib").read_text(encoding="utf-8"))


def read_works(text: str) -> dict[str, Work]:
    """Entries with one field a line in braces; ValueError where one lacks a title, authors or a year."""
    found = {}
    for entry in _ENTRY.finditer(text):
        key, body = entry.group(1, 2)
        # Without the braces that keep capitals, and with a true dash.
        field = {name: re.sub("[{}]", "", value).replace("--", "–") for name, value in _FIELD.findall(body)}
        if not all(field.get(name) for name in ("title", "author", "year")):
            raise ValueError(f"{key} lacks a title, authors or a year.")
        places = (field.get(name, "") for name in ("journal", "booktitle", "publisher", "howpublished"))
        found[key] = Work(
            key, field["title"], tuple(field["author"].split(" and ")), field["year"], next(filter(None, places), ""),
            entry.group(0), field.get("eprint", ""), field.get("doi", ""), field.get("url", ""),
        )  # fmt: skip
    return found


def work(key: str) -> Work:
    """PaperError for a work that is not in `references.bib`."""
    if key not in works():
        raise PaperError(f"The text cites `{key}`, which references.bib does not have.")
    return works()[key]


def in_order(cited: Iterable[Work]) -> list[Work]:
    """By names, year and title; where names and year agree, letters tell works apart, as natbib does: 2024a, 2024b."""
    ordered = sorted(cited, key=lambda w: (w.families.lower(), w.year, w.title))
    told_apart = []
    for _, alike in itertools.groupby(ordered, key=lambda w: (w.families, w.year)):
        same = list(alike)
        several = len(same) > 1
        told_apart += [replace(w, year=w.year + string.ascii_lowercase[i] * several) for i, w in enumerate(same)]
    return told_apart
