"""The committed result of `bench/faults.py`: enough kills in every phase, nothing lost, tries that end in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "bench" / "faults.json").read_text(encoding="utf-8"))
    return found


def test_what_was_killed_ends_as_what_was_not(told: dict[str, Any]) -> None:
    assert told["kills"] >= 60 and told["identical"] and told["lost"] == 0
    killed = told["killed"]
    assert killed["identical"] and killed["forked_identical"] and killed["lost"] == 0
    assert sum(killed["by_phase"].values()) == sum(killed["by_kind"].values()) == told["kills"]
    assert min(killed["by_phase"].values()) >= 1


def test_every_fault_was_met(told: dict[str, Any]) -> None:
    files = [ROOT / "bench" / f"fault_{name}.py" for name in ("cases", "places", "inputs")]
    cases = [text.partition("\nCASES")[2] for text in map(Path.read_text, files)]
    names = [name for text in cases for name in re.findall(r'^    "([^"]+)": [a-z_]+', text, flags=re.M)]
    assert [row["fault"] for row in told["faults"]] == names
    for row in told["faults"]:
        assert row["identical"] and row["lost"] == 0 and row["then"] == 0 and row.get("right", True), row["fault"]
        assert "Traceback" not in row["ended"]["said"]
    ended = {row["fault"]: row["ended"]["exit"] for row in told["faults"]}
    assert (ended["SIGTERM"], ended["SIGHUP"], ended["folder removed"], ended["full disk"]) == (143, 129, 1, 1)
    refused = ("read-only folder", "ledger damaged", "damaged ledger read", "lock rewritten", "two drivers")
    assert all(ended[name] for name in (*refused, "YAML that expands", "seed of 2^63", "device as --out"))


def test_tries_ended_in_words_soon_and_in_little_memory(told: dict[str, Any]) -> None:
    several = {row["fault"]: row["tries"] for row in told["faults"] if "tries" in row}
    assert {"full disk, every verb", "read-only folder, every verb", "record of 50 MB"} <= several.keys()
    for fault, tries in several.items():
        for own in tries:
            assert own["right"] and own["said"] and "Traceback" not in own["said"], (fault, own)
            assert own["cpu_seconds"] < 30 and own["mib"] < 1024, (fault, own)
    verbs = {own["given"] for own in several["full disk, every verb"] if own["exit"] == 1}
    assert {"plan --out", "report", "results", "paper", "export", "run"} <= verbs
    assert {own["exit"] for own in several["read-only folder, every verb"]} == {2}


def test_the_page_has_its_tables_and_the_site_fills_them(told: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    made = (ROOT / "scripts" / "docs_pages.py").read_text(encoding="utf-8")
    assert all(text.count(mark) == 1 and f'"{mark}"' in made for mark in ("<!-- fault-kills -->", "<!-- faults -->"))
