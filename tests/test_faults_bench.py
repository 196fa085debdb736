"""The committed result of `bench/faults.py`: enough kills, in every phase, nothing lost, and the page says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "bench" / "faults.json").read_text(encoding="utf-8"))
    return found


def rows(told: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    phases = told["killed"]["by_phase"]
    found = [f"| {' | '.join(phases)} | all |", f"|{'---|' * (len(phases) + 1)}"]
    found += [f"| {' | '.join(map(str, phases.values()))} | {told['kills']} |", ""]
    found += ["| fault | what was done | exit | then, by the same command |", "|---|---|---|---|"]
    for row in told["faults"]:
        code = "killed" if row["ended"]["exit"] == -9 else row["ended"]["exit"]
        then = "identical" if row["identical"] else "different"
        found.append(f"| {row['fault']} | {row['done']} | {code} | {then}, {row['lost']} lost |")
    return found


def test_what_was_killed_ends_as_what_was_not(told: dict[str, Any]) -> None:
    assert told["kills"] >= 60 and told["identical"] and told["lost"] == 0
    killed = told["killed"]
    assert killed["identical"] and killed["forked_identical"] and killed["lost"] == 0
    assert sum(killed["by_phase"].values()) == sum(killed["by_kind"].values()) == told["kills"]
    assert min(killed["by_phase"].values()) >= 1


def test_every_fault_was_met(told: dict[str, Any]) -> None:
    names = re.findall(r'^    "([^"]+)": [a-z_]+', (ROOT / "bench" / "fault_cases.py").read_text(), flags=re.M)
    assert [row["fault"] for row in told["faults"]] == names
    for row in told["faults"]:
        assert row["identical"] and row["lost"] == 0 and row["then"] == 0, row["fault"]
        assert "Traceback" not in row["ended"]["said"]
    ended = {row["fault"]: row["ended"]["exit"] for row in told["faults"]}
    assert (ended["SIGTERM"], ended["SIGHUP"], ended["folder removed"], ended["full disk"]) == (143, 129, 1, 1)
    refused = ("read-only folder", "ledger damaged", "damaged ledger read", "lock rewritten", "two drivers")
    assert all(ended[name] for name in (*refused, "YAML that expands", "seed of 2^63", "device as --out"))


def test_the_page_says_what_was_found(told: dict[str, Any]) -> None:
    begin, end = "<!-- from results/bench/faults.json -->\n\n", "\n\n<!-- end -->"
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(begin)[2].partition(end)[0] == "\n".join(rows(told))
