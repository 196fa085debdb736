"""What a paper tells beside its own study: other studies, and what became of planted ranks."""

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
    """In the order in which it is told."""

    studies: tuple[Findings, ...] = ()
    recovered: Recovered | None = None


NOTHING = Beside()


@contextlib.contextmanager
def open_beside(paths: Sequence[Path]) -> Iterator[Beside]:
    """Of folders of studies or exports, and of one `.json` of planted ranks; PaperError for two of these."""
    planted = [path for path in paths if path.suffix == ".json"]
    if len(planted) > 1:
        raise PaperError(f"One file of planted ranks can be told, not {len(planted)}: {', '.join(map(str, planted))}.")
    with contextlib.ExitStack() as stack:
        studies = [stack.enter_context(open_findings(path)) for path in paths if path not in planted]
        yield Beside(tuple(studies), read_recovered(planted[0]) if planted else None)


def label_of(found: Findings) -> str:
    """The beginning of the names of a study's exhibits.

    >>> from types import SimpleNamespace
    >>> label_of(SimpleNamespace(facts={"name": "tiny_2.5"}))
    'tiny-2-5'
    """
    return re.sub(r"[^A-Za-z0-9]", "-", str(found.facts["name"]))


def check_labels(main: Findings, studies: Sequence[Findings]) -> None:
    """PaperError where two studies have one name: their tables could not be told apart."""
    twice = [name for name, n in Counter(label_of(found) for found in (main, *studies)).items() if n > 1]
    if twice:
        raise PaperError(
            f"Two studies are called {', '.join(twice)}: each can be told once, and each needs a name of its own."
        )


def is_same_task(one: Findings, other: Findings) -> bool:
    """Whether two studies fine-tune one model on one source of data."""
    first, second = (
        (f.facts["model"].get("revision"), f.facts["model"]["name"], f.facts["data"]["source"]) for f in (one, other)
    )
    return first == second


def seeds_won(differences: Sequence[tuple[int, float]]) -> float:
    """Seeds on which the arm's loss is lower than the baseline's, ties as a half.

    >>> seeds_won([(1, -0.5), (2, 0.0), (3, 0.1)])
    1.5
    """
    return sum(0.5 if d == 0 else float(d < 0) for _, d in differences)


def winners(found: Findings, budget: str, names: Sequence[str]) -> dict[str, int]:
    """Of these arms and the baseline: on how many seeds each has the lowest test loss, the most frequent first.

    Seeds that not all of them have are left out.
    """
    arms = [arm for arm in found.arms if arm.budget == budget and arm.arm in names]
    by_arm = {arm.arm: dict(arm.differences) for arm in arms}
    seeds = set.intersection(*(set(by_seed) for by_seed in by_arm.values())) if by_arm else set()
    lowest: Counter[str] = Counter()
    for seed in sorted(seeds):
        differences = {found.baseline: 0.0, **{name: by_seed[seed] for name, by_seed in by_arm.items()}}
        lowest[min(differences, key=lambda name: differences[name])] += 1
    return dict(lowest.most_common())
