"""`references.bib`: read whole, printed as written, and told apart where names and year agree."""

from __future__ import annotations

import re
from importlib import resources

from adaptive_lora.reporting.escaping import escape_latex
from adaptive_lora.reporting.paper.bibliography import in_order, work, works
from adaptive_lora.reporting.paper.document import read_blocks
from adaptive_lora.reporting.paper.forms import render_markdown, render_references
from adaptive_lora.reporting.paper.manuscript import Manuscript, People


def test_every_entry_is_read_and_identified() -> None:
    text = resources.files("adaptive_lora.reporting.paper").joinpath("references.bib").read_text(encoding="utf-8")
    assert re.findall(r"^@\w+\{(.*),$", text, re.M) == list(works())  # each once: a dict would hide a second
    books = {"cochran1977sampling", "westfall1993resampling"}
    for key, found in works().items():
        assert re.fullmatch(r"[a-z]+\d{4}\w+", key) and re.fullmatch(r"\d{4}", found.year), key
        assert re.fullmatch(r"(\d{4}\.\d{5})?", found.arxiv) and re.fullmatch(r"(10\.\d{4,}/.+)?", found.doi), key
        assert found.place and (found.link[0] or key in books), key


def test_names_and_titles_are_printed_as_they_are_written() -> None:
    for key, found in works().items():
        printed = found.people + found.title + found.place
        assert not set(printed) & set('\\"{}'), f"{key} has TeX where every form prints what stands there: {printed}"
        assert "U+" not in escape_latex(printed), f"{key} has a letter that pdfLaTeX lacks"
    assert "Gaël Varoquaux" in work("bouthillier2021variance").people


def test_works_of_the_same_names_and_year_are_told_apart() -> None:
    keys = ("zhang2024heterolora", "hu2022lora", "zhang2024autolora", "zhang2023adalora")
    ordered = in_order(map(work, keys))
    assert [(w.key, w.year) for w in ordered] == [
        ("hu2022lora", "2022"),
        ("zhang2023adalora", "2023"),
        ("zhang2024autolora", "2024a"),
        ("zhang2024heterolora", "2024b"),
    ]
    blocks = tuple(read_blocks(f"Of @{keys[0]} and more [@{keys[2]}; @{keys[3]}]."))
    markdown = render_markdown(Manuscript("T", (), blocks, {}, {}, ordered, People()))
    assert "Of [Zhang et al. (2024b)](#zhang2024heterolora)" in markdown
    assert "([Zhang et al., 2024a](#zhang2024autolora); [Zhang et al., 2023](#zhang2023adalora))" in markdown
    references = render_references(ordered)
    assert "Zhang et~al.(2024a)" in references and "Zhang et~al.(2024b)" in references
    assert work("zhang2024autolora").year == "2024"
