"""Jinja templates: one environment for page, paper and sentences, with the filters of `formatting`.

Sentences that several texts need are macros of plain text in `templates/`; `render` gives one as a string, which page,
paper, memory bank and terminal escape as they do any other text. A template prints only what it is given: an unknown
name is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adaptive_lora.reporting.formatting import FILTERS
from adaptive_lora.stats.arms import frozen_score
from adaptive_lora.stats.assays import untested_budgets
from adaptive_lora.stats.cost_equivalents import baseline_curve
from adaptive_lora.stats.looks import decided_at
from adaptive_lora.stats.power import MOST, POWER, width_with


def environment(
    folder: str | Path, *, autoescape: bool, finalize: Callable[..., Any] | None = None, **syntax: Any
) -> jinja2.Environment:
    """Of the templates in a folder of this package, or in any other by its path.

    `syntax` are delimiters other than Jinja's own. `finalize` makes what an expression prints safe. Lines that hold
    nothing but a block tag leave no blank line.
    """
    # What a person wrote is a text and no program: its expressions reach nothing but what they are given.
    kind = ImmutableSandboxedEnvironment if isinstance(folder, Path) else jinja2.Environment
    made = kind(
        loader=_loader(folder), undefined=jinja2.StrictUndefined,
        autoescape=autoescape, finalize=finalize, trim_blocks=True, lstrip_blocks=True, **syntax,
    )  # fmt: skip
    made.filters.update(FILTERS)
    return made


def _loader(folder: str | Path) -> jinja2.BaseLoader:
    if isinstance(folder, Path):
        return jinja2.FileSystemLoader(folder)
    return jinja2.PackageLoader("adaptive_lora.reporting", folder)


def render(name: str, *values: Any, **named: Any) -> str:
    """The macro `FILE.MACRO` of `templates/FILE.txt` on one line, without markup.

    >>> from adaptive_lora.stats.divergence import DivergedPairs
    >>> render("comparisons.diverged", DivergedPairs(arm=4, seeds=12))
    'diverged on 4 of 12 seeds'
    """
    return " ".join(_expanded(name, *values, **named).split())


def render_all(name: str, *values: Any, **named: Any) -> list[str]:
    """The sentences or short paragraphs of a macro, one line each: a ¶ in the template begins one."""
    return [line for part in _expanded(name, *values, **named).split("¶") if (line := " ".join(part.split()))]


def _expanded(name: str, *values: Any, **named: Any) -> str:
    file, _, macro = name.partition(".")
    return str(getattr(_sentences().get_template(f"{file}.txt").module, macro)(*values, **named))


@functools.cache
def _sentences() -> jinja2.Environment:
    made = environment("templates", autoescape=False)
    made.globals.update(MOST_SEEDS=MOST, POWER=POWER, width_with=width_with, look_levels=decided_at)
    made.globals.update(untested_budgets=untested_budgets, baseline_curve=baseline_curve, frozen_score=frozen_score)
    return made
