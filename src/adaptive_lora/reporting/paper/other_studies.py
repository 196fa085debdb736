"""What a paper reports beside its own study: other studies, and what became of planted ranks."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.recovered import Recovered, read_recovered


@dataclass(frozen=True)
class Beside:
    """In the order in which it is reported."""

    studies: tuple[Findings, ...] = ()
    planted: Mapping[str, Recovered] = field(default_factory=dict)
    """By the name of the file, without `.json`."""

    @property
    def recovered(self) -> Recovered | None:
        """The first of them."""
        return next(iter(self.planted.values()), None)


ALONE = Beside()


@contextlib.contextmanager
def open_beside(paths: Sequence[Path]) -> Iterator[Beside]:
    """Of folders of studies or exports, and of `.json` files of planted ranks; PaperError for two of one name."""
    planted = [path for path in paths if path.suffix == ".json"]
    if len({path.stem for path in planted}) < len(planted):
        raise PaperError(f"Two files of planted ranks have one name: {', '.join(map(str, planted))}.")
    with contextlib.ExitStack() as stack:
        studies = [stack.enter_context(open_findings(path)) for path in paths if path not in planted]
        yield Beside(tuple(studies), {path.stem: read_recovered(path) for path in planted})


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
