"""The works that a paper can cite: `references.bib`, read strictly, and the forms in which they are cited."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from adaptive_lora.errors import PaperError


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
    arxiv: str = ""
    doi: str = ""
    url: str = ""

    @property
    def families(self) -> str:
        """Hu et al.; Holm; Biderman and Wolf."""
        names = [author.partition(",")[0] for author in self.authors]
        if len(names) > 2:
            return f"{names[0]} et al."
        return " and ".join(names)

    @property
    def people(self) -> str:
        """All authors, given names first."""
        named = [" ".join(reversed([part.strip() for part in author.split(",", 1)])) for author in self.authors]
        return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"

    @property
    def link(self) -> tuple[str, str]:
        """(words, address) of what identifies it."""
        if self.arxiv:
            return f"arXiv:{self.arxiv}", f"https://arxiv.org/abs/{self.arxiv}"
        if self.doi:
            return f"doi:{self.doi}", f"https://doi.org/{self.doi}"
        return self.url, self.url


_ENTRY = re.compile(r"@(\w+)\{([\w-]+),\n(.*?)\n\}", re.S)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", re.M)


@functools.cache
def works() -> Mapping[str, Work]:
    """Key -> work, of the file that is part of the package."""
    return read_works(bibliography())


def bibliography() -> str:
    """`references.bib` as it is."""
    return resources.files(__package__).joinpath("references.bib").read_text(encoding="utf-8")


def read_works(text: str) -> dict[str, Work]:
    """Entries with one field a line in braces; ValueError where one lacks what identifies a work."""
    found = {}
    for _, key, body in _ENTRY.findall(text):
        field = {name: _plain(value) for name, value in _FIELD.findall(body)}
        places = (field.get(name, "") for name in ("journal", "booktitle", "publisher", "howpublished"))
        place = next(filter(None, places), "")
        if not all(field.get(name) for name in ("title", "author", "year")):
            raise ValueError(f"{key} lacks a title, authors or a year.")
        work = Work(
            key, field["title"], tuple(field["author"].split(" and ")), field["year"], place,
            field.get("eprint", ""), field.get("doi", ""), field.get("url", ""),
        )  # fmt: skip
        if not work.link[0] and not place:
            raise ValueError(f"{key} has nothing that identifies it.")
        found[key] = work
    return found


def _plain(value: str) -> str:
    """Without the braces that keep capitals, and with a true dash."""
    return value.replace("{", "").replace("}", "").replace("--", "–")


def entry_of(key: str) -> str:
    """The entry as it stands in `references.bib`."""
    for found in _ENTRY.finditer(bibliography()):
        if found.group(2) == key:
            return found.group(0)
    raise PaperError(f"The text cites `{key}`, which references.bib does not have.")


def work(key: str) -> Work:
    """PaperError for a work that is not in `references.bib`."""
    entry_of(key)
    return works()[key]
