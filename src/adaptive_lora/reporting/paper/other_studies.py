"""What a paper reports beside its own study: other studies, and what became of planted ranks."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.recovered import Recovered, read_recovered


@dataclass(frozen=True)
class Beside:
    """In the order in which it is reported."""

    studies: tuple[Findings, ...] = ()
    recovered: Recovered | None = None


ALONE = Beside()


@contextlib.contextmanager
def open_beside(paths: Sequence[Path]) -> Iterator[Beside]:
    """Of folders of studies or exports, and of one `.json` of planted ranks; PaperError for two of these."""
    planted = [path for path in paths if path.suffix == ".json"]
    if len(planted) > 1:
        raise PaperError(
            f"A paper takes one file of planted ranks, not {len(planted)}: {', '.join(map(str, planted))}."
        )
    with contextlib.ExitStack() as stack:
        studies = [stack.enter_context(open_findings(path)) for path in paths if path not in planted]
        yield Beside(tuple(studies), read_recovered(planted[0]) if planted else None)


def label_of(found: Findings) -> str:
    """The beginning of the names of a study's tables and figures.

    >>> from types import SimpleNamespace
    >>> label_of(SimpleNamespace(facts={"name": "tiny_2.5"}))
    'tiny-2-5'
    """
    return re.sub(r"[^A-Za-z0-9]", "-", str(found.facts["name"]))


def check_labels(main: Findings, studies: Sequence[Findings]) -> None:
    """PaperError where two studies have one name, which the names of their tables begin with."""
    counts = Counter(label_of(found) for found in (main, *studies))
    if twice := ", ".join(name for name, count in counts.items() if count > 1):
        raise PaperError(f"Two studies are called {twice}: a paper takes each study once and under a name of its own.")
