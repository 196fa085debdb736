"""Inputs with random damage: some of what `bench/fuzz_inputs.py` does ten thousand times."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory and time as Linux does")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module("fuzz_inputs")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def test_random_damage_is_read_or_refused_in_clear_words(bench: Any, tmp_path: Path) -> None:
    kinds = ["data", "plan", "checkpoint", "results"]
    quick, studies = bench.fuzz(range(90), 1, kinds, tmp_path), bench.fuzz(range(10), 1, ["study"], tmp_path)
    assert quick.failures == [] == studies.failures
    assert quick.read + quick.refused == 90 and min(quick.read, quick.refused) > 5
    assert set(quick.kinds) == set(kinds) and studies.read + studies.refused == 10


def test_an_error_that_is_not_ours_and_a_case_without_end_are_failures(bench: Any, tmp_path: Path) -> None:
    def failing(place: Path) -> None:
        raise KeyError("value")

    def endless(place: Path) -> None:
        while True:
            pass

    found = bench.Outcomes()
    (tmp_path / "plan.json").write_text("{}")
    sources, bench.SECONDS = dict(bench.SOURCES), 0.05
    try:
        for read in (failing, endless):
            bench.SOURCES["plan"] = bench.SOURCES["plan"].__class__(lambda root: [root], read)
            bench._judge("plan", tmp_path, 0, found)
    finally:
        bench.SOURCES.update(sources)
        bench.SECONDS = 10.0
    assert [failure.split(": ")[1] for failure in found.failures] == ["KeyError", "TooLong"]


def test_the_committed_outcome_is_of_all_kinds_and_without_failures(bench: Any) -> None:
    told = json.loads((ROOT / "results" / "bench" / "fuzz-inputs.json").read_text())
    assert told["cases"] >= 10_000 == told["read"] + told["refused"] and told["failures"] == []
    assert set(told["kinds"]) == set(bench.WEIGHTS) and told["slowest_s"] < bench.SECONDS
