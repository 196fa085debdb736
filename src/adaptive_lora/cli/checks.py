"""What verbs check before they import torch, so that a mistyped argument is answered at once."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adaptive_lora import demo
from adaptive_lora.data import sources
from adaptive_lora.demo.tasks import generate
from adaptive_lora.errors import ModelError, UsageError, nearest_hint
from adaptive_lora.files import written_at
from adaptive_lora.planning.budget_text import parse_budget
from adaptive_lora.planning.modules import TARGET_GROUPS
from adaptive_lora.planning.strategies import check_options, find_strategy
from adaptive_lora.planning.strategies.registry import pinned, with_pinned_source


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are checked by the strategy. A dot leads into an option's own options.

    >>> parse_options(["slope=-1", "source_options.power=0.5"])
    {'slope': '-1', 'source_options': {'power': '0.5'}}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"An option is written key=value, got {pair!r}. For example --option slope=-1.")
        outer, dot, inner = key.strip().partition(".")
        if dot:
            found[outer] = {**(within if isinstance(within := found.get(outer), dict) else {}), inner: value.strip()}
        else:
            found[outer] = value.strip()
    return found


def parse_targets(text: str) -> str | list[str]:
    """A group of modules, or names with commas; ModelError for what can be neither.

    Whether the model has modules of these names is seen when its configuration is read.

    >>> parse_targets("attention"), parse_targets("q_proj,v_proj")
    ('attention', ['q_proj', 'v_proj'])
    """
    if text in TARGET_GROUPS:
        return text
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ModelError(
                f"`targets` names {name!r}, which is no name of a module{nearest_hint(name, TARGET_GROUPS)}. Write one "
                f"of {', '.join(TARGET_GROUPS)}, or module names with commas."
            )
    return names


def check_plan(strategy: str, options: Mapping[str, Any], budget: str, data: str | None) -> None:
    """UsageError for what is wrong with a plan whatever its model is."""
    known = find_strategy(pinned(strategy))
    by_data = known.basis(check_options(known, with_pinned_source(strategy, options))) == "data"
    parse_budget(budget)
    if data is not None:
        check_source(data)
    elif by_data:
        raise UsageError(f"{known.name} measures on data: give `--data` a file, a hub data set or `demo:fine-tuning`.")


def check_source(source: str) -> None:
    """DataError where a data source cannot be read: a missing file, an unknown group of demo tasks."""
    if source.startswith(demo.SOURCE_PREFIX):
        generate(source.removeprefix(demo.SOURCE_PREFIX), 0)
    else:
        sources.check_source(source)


def check_place(path: Path | None, kind: Literal["file", "folder"]) -> None:
    """UsageError where a file or folder that was asked for cannot be written; writes nothing."""
    if path is None:
        return
    try:
        reason = _why_not(path, kind)
    except OSError as error:  # a name that is too long, a folder that cannot be looked into, a device
        reason = f"cannot be written: {error.strerror}"
    if reason:
        raise UsageError(f"{path} {reason}{'' if 'name another' in reason else f'; name another {kind}'}.")


def _why_not(path: Path, kind: Literal["file", "folder"]) -> str:
    if path.is_dir() and kind == "file":
        return "is a directory"
    if path.is_file() and kind == "folder":
        return "is a file"
    if path.is_symlink() and not path.exists() and kind == "folder":
        return "is a link that leads nowhere"
    place = written_at(path, named=True) if kind == "file" or not path.is_dir() else path
    nearest = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if nearest != place and not nearest.is_dir():
        return f"cannot be made, as {nearest} is a file"
    if not _takes_files(nearest):
        return f"cannot be written, as {nearest} is read-only" if nearest != place else "is read-only"
    return ""


def _takes_files(place: Path) -> bool:
    """Whether a file can be made in a folder, or a file be written; permissions alone do not say (`/proc`, root)."""
    if not place.is_dir():
        return os.access(place, os.W_OK)
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False
