"""The committed table of what tools make of each form, `results/bench/compat.json`: whole, of the pinned versions, and
what `export --list` says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.export.forms import MERGED
from adaptive_lora.export.tools import TOOLS, find_tool
from tests.export.interop import ROOT, pinned
from tests.export.shapes import FAMILIES

RUN = [tool.name for tool in TOOLS if tool.evidence == "run"]
UNMADE = {("onnxruntime", "gpt2"), ("olive", "gpt2"), ("mlx", "gpt2")}
"""Files that are right for a model that the tool does not make, or reads under OpenAI's names alone."""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "bench" / "compat.json").read_text(encoding="utf-8"))
    return found


def test_every_tool_was_run_or_says_that_it_was_read(report: dict[str, Any]) -> None:
    rows = {(row["tool"], row["family"]) for row in report["rows"]}
    assert rows == {(tool, family) for tool in RUN for family in FAMILIES}
    assert report["versions"].keys() == set(RUN) and not any(row["result"] == "not here" for row in report["rows"])
    assert report["not_run"].keys() == {tool.name for tool in TOOLS} - set(RUN)
    for name, told in report["not_run"].items():
        tool = find_tool(name)
        assert (told["version"], told["reads"], told["does not"]) == (tool.version, list(tool.accepts), tool.wrong)


def test_what_ran_is_what_make_interop_installs(report: dict[str, Any]) -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    own = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", constraints, flags=re.M))
    fetched = re.search(r'"(llama-cpp-python)==([\d.]+)"', (ROOT / "scripts" / "interop.py").read_text())
    assert fetched is not None
    known = {**own, **pinned(), f"converter of {fetched[1]}": fetched[2]}
    for tool, versions in report["versions"].items():
        for name, version in versions.items():
            assert version.split("+")[0] == known[name], f"{tool}: {name}"
        told = find_tool(tool).version  # llama.cpp's is a month
        assert tool == "llama.cpp" or any(told in version for version in versions.values()), tool


def test_no_form_that_the_list_offers_was_misread(report: dict[str, Any]) -> None:
    read = set()
    for row in report["rows"]:
        tool, form = find_tool(row["tool"]), row["form"]
        offered = form in tool.accepts and (form in MERGED or row["family"] != "gpt2" or tool.conv1d)
        assert row["result"] != "wrong" or not offered, row
        if row["result"] == "right":
            assert offered or (tool.name, row["family"]) in UNMADE, row
            assert row["largest"] < 5e-3 and row["effect"] > 0.1
            read.add((tool.name, form))
    offered_forms = {(name, form) for name in RUN for form in find_tool(name).accepts}
    assert read == offered_forms - {("llama.cpp", "merged")}  # which is `gguf-merged`, converted by its user


def test_where_the_tools_cannot_be_installed_nothing_is_left_behind(tmp_path: Path) -> None:
    """CI goes on without them then, and the next run tries again."""
    unreachable = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "interop.py"], capture_output=True, text=True, check=False,
        env={**os.environ, **unreachable, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == "" and "could not be installed: pip ended with 1" in done.stderr
    assert list((tmp_path / "adaptive-lora").iterdir()) == []
