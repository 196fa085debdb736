"""A manuscript that a person wrote around named facts, as `paper --text FOLDER` takes it.

The folder has `title.txt`, `abstract.txt`, and the parts of the body as other `.txt` files, taken in the order of their
names. They are templates as those of the package (`document`, `text_environment`) and know

    study("LABEL")   what templates know of one study: n("fact"), found, better, worse, ceilings, ...
    planted          what became of planted ranks, of the first file of them; None without one
    recovery("NAME") the same of any file, by its name without `.json`

and show `LABEL-NAME` of any table or figure that a study's paper could have, and the figure `ceilings` of all
studies that locked one. A claim stands in a condition on the verdict that it rests on, so that other results cannot
leave it standing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from matplotlib.figure import Figure

from adaptive_lora.errors import PaperError, nearest_hint
from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.figures.ceilings import several_ceilings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.formatting import listed
from adaptive_lora.reporting.paper.document import Block, read_blocks
from adaptive_lora.reporting.paper.figures import study_figures
from adaptive_lora.reporting.paper.other_studies import label_of
from adaptive_lora.reporting.paper.planted import planted_context
from adaptive_lora.reporting.paper.prose import Account
from adaptive_lora.reporting.paper.study_facts import gather
from adaptive_lora.reporting.paper.tables import study_tables
from adaptive_lora.reporting.paper.text_environment import own_environment
from adaptive_lora.reporting.recovered import Recovered
from adaptive_lora.reporting.tables import Table
from adaptive_lora.reporting.templating import render
from adaptive_lora.stats.ceiling import Ceiling

HEAD = ("title", "abstract")
CEILINGS = "ceilings"


@dataclass(frozen=True)
class OwnText:
    """The blocks of a manuscript and what they show."""

    blocks: Mapping[str, list[Block]]
    """`title`, `abstract`, and all else under `body`."""
    tables: Mapping[str, Table]
    figures: Mapping[str, tuple[Figure, str]]
    """Name -> figure and caption, of those that are shown."""


def own_text(folder: Path, studies: Sequence[Findings], planted: Mapping[str, Recovered], tools: str) -> OwnText:
    """Fills in a person's text; PaperError with what it asks for and nobody has."""
    parts = _parts(folder)
    by_label = {label_of(found): found for found in studies}
    tables = {f"{label}-{name}": replace(table, name=f"{label}-{name}")
              for label, found in by_label.items() for name, table in study_tables(found).items()}  # fmt: skip
    recovered = {name: planted_context(file) for name, file in planted.items()}
    context = {"study": _lookup(by_label, tables), "planted": next(iter(recovered.values()), None),
               "recovery": functools.partial(_recovery, recovered), "tools": tools, "listed": listed,
               "studies": list(by_label), "cells": functools.partial(_cells, by_label)}  # fmt: skip
    made, text = own_environment(folder), {}
    for name in parts:
        try:
            text[name] = read_blocks(made.get_template(f"{name}.txt").render(context))
        except (jinja2.UndefinedError, SecurityError) as error:
            raise PaperError(f"{folder / name}.txt asks for what no study has: {error}.") from None
        except jinja2.TemplateSyntaxError as error:
            raise PaperError(f"{folder / name}.txt, line {error.lineno}: {error.message}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # else blamed on a study
            raise PaperError(f"{folder / name}.txt could not be filled in: {type(error).__name__}: {error}.") from error
    body = [block for name in parts if name not in HEAD for block in text[name]]
    return OwnText({**{name: text[name] for name in HEAD}, "body": body}, tables, _drawn(body, by_label))


def _parts(folder: Path) -> list[str]:
    found = sorted(path.stem for path in folder.glob("*.txt"))
    if missing := [f"{name}.txt" for name in HEAD if name not in found]:
        raise PaperError(
            f"{folder}: a text of one's own needs title.txt, abstract.txt and at least one more .txt for its body; "
            f"missing: {', '.join(missing)}."
        )
    if len(found) == len(HEAD):
        raise PaperError(f"{folder} has no body: add its parts as .txt files, which are taken in order of their names.")
    return found


def _lookup(by_label: Mapping[str, Findings], tables: Mapping[str, Table]) -> Callable[[str], Mapping[str, Any]]:
    known: dict[str, Mapping[str, Any]] = {}

    def study(label: str) -> Mapping[str, Any]:
        if label not in by_label:
            raise PaperError(
                f"The text tells of a study {label!r}{nearest_hint(label, by_label)}; name its folder with --with. "
                f"There are: {', '.join(by_label)}."
            )
        if label not in known:
            found = by_label[label]
            own = [name for name in tables if name.startswith(f"{label}-")]
            known[label] = Account(found, gather(found), own, []).context()
        return known[label]

    return study


def _cells(
    by_label: Mapping[str, Findings], labels: Sequence[str], verdict: str | None = None
) -> list[tuple[str, Ceiling]]:
    """Label and budget of every ceiling of these studies, or of those with a verdict."""
    every = [(label, cell) for label in labels if label in by_label for cell in ceilings_of(by_label[label])]
    return [(label, cell) for label, cell in every if verdict in (None, cell.verdict)]


def _recovery(recovered: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    if name not in recovered:
        raise PaperError(
            f"The text tells of planted ranks {name!r}{nearest_hint(name, recovered)}; name the file with --with. "
            f"There are: {', '.join(recovered) or 'none'}."
        )
    return recovered[name]


def shown_of(found: Findings) -> dict[str, list[str]]:
    """Names of the tables and figures of a study that a text can show."""
    return {"tables": list(study_tables(found)), "figures": list(study_figures(found))}


def _drawn(body: Sequence[Block], by_label: Mapping[str, Findings]) -> dict[str, tuple[Figure, str]]:
    """Those that are shown, of the studies that have one shown."""
    wanted = [block.content for block in body if block.kind == "figure"]
    found: dict[str, tuple[Figure, str]] = {}
    if CEILINGS in wanted and (figure := several_ceilings(_ceilings(by_label))) is not None:
        found[CEILINGS] = figure, render("captions.ceilings_figure")
    for label, findings in by_label.items():
        if any(name.startswith(f"{label}-") for name in wanted):
            found |= {f"{label}-{name}": drawing for name, drawing in study_figures(findings).items()}
    return {name: found[name] for name in wanted if name in found}


def _ceilings(by_label: Mapping[str, Findings]) -> dict[str, Sequence[Ceiling]]:
    """By the words of labels beyond those that all begin with."""
    known = {label: own for label, found in by_label.items() if (own := ceilings_of(found))}
    words = [label.split("-") for label in known]
    same = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*words, strict=False)) if len(words) > 1 else ()
    start = len(list(same))
    return {"-".join(label.split("-")[start:]) or label: own for label, own in known.items()}
