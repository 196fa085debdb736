"""Numbers of the documentation and of the log's newer entries stand in the committed files that they name.

A paragraph, list item or table row that names files under `results/` may show, with a decimal point, only numbers of
these files: a value, its share in percent, a thousandth or a millionth of it, to the digits that are shown. Older
entries of the log tell of files as they were then.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.committed import RESULTS
from tests.reporting.snapshot import SNAPSHOT

ROOT = RESULTS.parent
STUDIES: dict[str, Any] = json.loads(SNAPSHOT.read_text())
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
OLDER = "## 2026-11-29 · What could any allocation gain"
NAMED = re.compile(r"results/[\w./-]*[\w-]")
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*\.\d+(?![\w.])")
NO_RESULT = re.compile(
    r"[Rr]ates? (of )?0\.\d+|SmolLM2 \d\.\d+|`[^`]*`|\]\([^)]*\)|goals? \d\.\d+"
    r"|\([^()]*trial[^()]*\)|[Tt]rial.*?(?:\. |;|$)",
    re.S,
)
"""What a sentence may say besides: rates that were set, code, links, and what it calls a trial, which has no file."""


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from numbers(value)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield abs(float(found))


@functools.cache
def values(name: str) -> frozenset[float]:
    """Of a JSON file, or of a study's export and what it says."""
    path = ROOT / name
    if path.suffix == ".json" and path.exists():
        return frozenset(numbers(json.loads(path.read_text(encoding="utf-8"))))
    return frozenset(numbers(STUDIES.get(path.name, {})))


def parts(page: Path) -> Iterator[str]:
    """Paragraphs, list items and rows; of the log, those that are not older."""
    text = page.read_text(encoding="utf-8").split(OLDER)[0]
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.split(r"\n\s*\n|\n(?=\s*- |\|)", text)


def stands_in(number: str, known: frozenset[float]) -> bool:
    shown, digits = float(number.replace(",", "")), len(number.partition(".")[2])
    room = 0.5000001 * 10**-digits
    return any(abs(value * scale - shown) <= room for value in known for scale in (1, 100, 1e-3, 1e-6, 1e3))


def strangers(part: str) -> list[str]:
    """Numbers of a part that no file has which it names."""
    names = NAMED.findall(part)
    known = frozenset[float]().union(*map(values, names))
    return [n for n in NUMBER.findall(NO_RESULT.sub("", part)) if not stands_in(n, known)] if known else []


@pytest.mark.parametrize("page", PAGES)
def test_numbers_stand_in_the_files_that_are_named(page: str) -> None:
    found = {part.strip()[:60]: own for part in parts(ROOT / "docs" / page) if (own := strangers(part))}
    assert not found


def test_another_number_is_seen() -> None:
    bench = "3.8 times as fast (`results/bench/builds-babyllama-avx2.json`)"
    assert not strangers(bench) and strangers(bench.replace("3.8", "3.7")) == ["3.7"]
    study = "Half the budget costs 0.0376 nats (`results/ceiling-smollm2-reasoning`)"
    assert not strangers(study) and strangers(study.replace("0.0376", "0.0367")) == ["0.0367"]
    assert not strangers("without a file 0.0367")
