"""What the table of tools says was run is run: each by itself, in the versions of `bench/interop.txt`.

In `make interop`, which has the tools. One family of tiny models each; `make compat` runs all four.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.export import writing
from adaptive_lora.export.base_facts import facts_of
from adaptive_lora.export.tools import TOOLS
from tests.export.interop import IN_INTEROP, ROOT
from tests.export.shapes import mixed_adapter, open_family

pytestmark = pytest.mark.skipif(not IN_INTEROP, reason="needs the tools that `make interop` installs")

RUN = [tool.name for tool in TOOLS if tool.evidence == "run"]
FAMILY = {"ctranslate2": "qwen3"}
"""Where it is not Llama: CTranslate2 refuses one whose heads are not hidden size / number of heads wide."""


def run(*command: str | Path) -> str:
    """Standard output of Python with these arguments; the test fails with all that it said where it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows_of(report: dict[str, Any], tool: str) -> dict[str, str]:
    """Form -> result, of the family."""
    family = FAMILY.get(tool, "llama")
    return {r["form"]: r["result"] for r in report["rows"] if (r["tool"], r["family"]) == (tool, family)}


@pytest.mark.parametrize("tool", RUN)
def test_a_tool_makes_of_each_form_what_the_committed_table_says(tool: str, tmp_path: Path) -> None:
    """`compat.py` itself ends with an error where a row is not as `export --list` has it."""
    out = tmp_path / "compat.json"
    told = run("bench/compat.py", "--only", tool, "--family", FAMILY.get(tool, "llama"), "--out", out)
    found = json.loads(out.read_text(encoding="utf-8"))
    committed = json.loads((ROOT / "results" / "bench" / "compat.json").read_text(encoding="utf-8"))
    results = rows_of(found, tool)
    assert "right" in results.values() and "not here" not in results.values(), told
    assert results == rows_of(committed, tool), told
    assert found["versions"][tool] == committed["versions"][tool]


def test_a_harness_scores_a_task_with_an_adapter_as_with_merged_weights(tmp_path: Path) -> None:
    """lm-evaluation-harness, from a task of two questions to their log-likelihoods, all by its own hand."""
    base = open_family("llama", tmp_path / "base")
    adapter, facts = mixed_adapter(base.outline.modules), facts_of(base)
    for form in ("peft", "padded", "merged"):
        writing.write_form(form, writing.Job(adapter, base, facts, tmp_path / form))  # type: ignore[arg-type]
    told = run("-m", "tests.export.in_lm_eval", tmp_path)
    (line,) = [line for line in told.splitlines() if line.startswith("scored ")]
    scored = json.loads(line.removeprefix("scored "))
    assert len(scored["base"]) == 2
    for form in ("peft", "padded"):
        assert scored[form] == pytest.approx(scored["merged"], abs=1e-4)
    assert max(abs(a - b) for a, b in zip(scored["base"], scored["merged"], strict=True)) > 0.01


def test_nothing_that_a_tool_needs_is_missing() -> None:
    """Dependencies are pinned by hand: the list is whole, and agrees with what the project itself has installed."""
    assert "No broken requirements" in run("-m", "pip", "check")


def test_the_tools_are_the_pinned_ones() -> None:
    """And not some that lie in the environment besides."""
    folder = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    for name in ("ctranslate2", "lm_eval", "mlx_lm", "olive", "onnxruntime", "openvino_genai", "xllamacpp"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None and folder in Path(spec.origin).parents, name
