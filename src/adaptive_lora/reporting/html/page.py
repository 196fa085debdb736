"""The page: sections, figures and tables in one file that needs no network.

The policy in its head admits the one style sheet and the one script by their hashes alone; the figures'
own styles become attributes for that. Whatever is printed passes through `visible` and is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from adaptive_lora.reporting.answers import answers_of
from adaptive_lora.reporting.escaping import visible, visible_lines
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.html.sections import SECTIONS, sorted_into
from adaptive_lora.reporting.tables import Table, to_html
from adaptive_lora.reporting.templating import environment, render, render_all

FOLDED = 24
"""Rows beyond which a table of details is folded: a screenful."""


@dataclass(frozen=True)
class Drawing:
    """A figure as it stands on the page."""

    name: str
    svg: Markup
    caption: str


def render_page(found: Findings, tables: Mapping[str, Sequence[Table]], drawings: Sequence[Drawing]) -> str:
    """The whole page; `tables` by section."""
    answers = answers_of(found.facts)
    by_name = {drawing.name: drawing for drawing in drawings}
    sections = [
        {
            "name": section.name, "title": section.title, "tables": tables.get(section.name, ()),
            "figures": [by_name[name] for name in names], "remarks": list(section.remarks(found)),
            "most": FOLDED if section.detail else math.inf,
        }
        for section, names in sorted_into(list(by_name))
    ]  # fmt: skip
    return page_templates().get_template("report.html").render(
        found=found, status=found.status(), facts=found.facts, spec=found.facts["spec"],
        names=list(dict.fromkeys(found.runs["arm"])), licence=render("study.licence", found.facts["data"]),
        use_of_data=render("study.use_of_data", found.facts["data"]),
        verdict=render_all("comparisons.verdicts", found), description=render_all("comparisons.description", found),
        answers=answers, remarks=render_all("answers.remarks", answers, found) if answers else [],
        sections=[s for s in sections if s["tables"] or s["figures"] or s["remarks"]],
        **page_assets(),
    )  # fmt: skip


def page_templates() -> jinja2.Environment:
    """Of pages: what they print is escaped, and visible."""
    templates = environment("html", autoescape=True, finalize=_printed)
    templates.filters["foreign"] = lambda value: Markup("<bdi>{}</bdi>").format(visible(str(value)))
    templates.filters["words"] = lambda value: Markup('<bdi class="words">{}</bdi>').format(visible_lines(value, 4000))
    templates.filters["html"] = to_html
    return templates


def page_assets() -> dict[str, str]:
    """The one style sheet and the one script, and the hashes by which a page's policy admits them."""
    own = resources.files(__package__)
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return {
        "style": Markup(style), "script": Markup(script), "style_hash": _hash(style), "script_hash": _hash(script),
    }  # fmt: skip


def made_tables(found: Findings) -> dict[str, list[Table]]:
    """Section -> its tables, for those that have something to say."""
    made = {section.name: [make(found) for make in section.tables] for section in SECTIONS}
    return {name: [table for table in own if table is not None] for name, own in made.items()}


def _hash(text: str) -> str:
    """As a content security policy names an inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _printed(value: Any) -> Any:
    """What an expression of the template prints: markup and numbers as they are, all else made visible."""
    if value is None or isinstance(value, Markup | int | float | jinja2.Undefined):
        return value
    return visible(str(value), 2000)


_STYLE = re.compile(r' style="([^"]*)"')
_ID = re.compile(r' id="([^"]*)"')
_LINK = re.compile(r'(xlink:href="#|url\(#)([^")]*)')


def inline(svg: str, name: str, caption: str) -> Drawing:
    """An SVG file of matplotlib's as part of a page: without styles, with ids of its own, described by its caption.

    A <style> inside would hold for the whole page, and the page's policy admits none.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = _STYLE.sub(_as_attributes, svg)
    linked = {found.group(2) for found in _LINK.finditer(svg)}
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", name)
    svg = _ID.sub(lambda found: f' id="{prefix}-{found.group(1)}"' if found.group(1) in linked else "", svg)
    svg = _LINK.sub(lambda found: f"{found.group(1).removeprefix('xlink:')}{prefix}-{found.group(2)}", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    # What can be pointed at has words of its own, so the whole is a group then and not one picture.
    role = "group" if "<title>" in svg else "img"
    opening = Markup('<svg role="{}" aria-label="{}" stroke-linejoin="round" stroke-linecap="butt"').format(
        role, visible(caption, 2000)
    )
    return Drawing(name, Markup(svg.replace("<svg", str(opening), 1)), caption)  # matplotlib has escaped it


def _as_attributes(found: re.Match[str]) -> str:
    """`fill: none; stroke: #000` -> ` fill="none" stroke="#000"`: SVG has an attribute for each of them."""
    parts = (part.partition(":") for part in found.group(1).split(";") if ":" in part)
    return "".join(f' {escape(name.strip())}="{escape(value.strip())}"' for name, _, value in parts)
