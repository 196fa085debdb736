"""Each tool that is installed builds the plan of what is pasted into it; `in_tools.py` says how, in its own process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaptive_lora.export.snippets import step_0
from adaptive_lora.export.snippets.fragment import Snippet, snippet
from adaptive_lora.export.snippets.trainers import TRAINERS
from adaptive_lora.training.base import load_base
from tests.export.conftest import pasted_plan
from tests.export.interop import ROOT, absent

MODULES = {"llama-factory": "llamafactory", "ms-swift": "swift", "mlx-lm": "mlx_lm"}
"""Names to import, where they are not those of the tools."""
TOOLS = [name for name in TRAINERS if name not in ("peft", "trl")]  # of which others tests build and train


def built(made: Snippet, folder: Path, tmp_path: Path) -> dict[str, list[float]] | int:
    """What the tool makes of a text; the test is skipped, with the reason, where the tool is not here."""
    name = MODULES.get(made.trainer.name, made.trainer.name)
    if importlib.util.find_spec(name) is None:
        absent(made.trainer.package, f"{made.trainer.title} is not installed")
    (tmp_path / "text").write_text(made.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.export.in_tools", made.trainer.name, tmp_path / "text", folder],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "DISABLE_VERSION_CHECK": "1"},  # LLaMA-Factory's, of transformers
    )  # fmt: skip
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode and last.startswith(("ImportError", "ModuleNotFoundError")):
        absent(made.trainer.package, f"{made.trainer.title} cannot be imported here: {last}")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("built ")]
    found: dict[str, list[float]] | int = json.loads(line.removeprefix("built "))
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_builds_the_plan_of_its_text(tool: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    modules = load_base("llama", model_folders["llama"]).outline.modules
    made = snippet(pasted_plan(modules), tool, available=modules, learning_rate=1e-5)
    found = built(made, model_folders["llama"], tmp_path)
    if isinstance(found, int):  # torchtune and LitGPT have other names for modules
        assert found == made.plan.trainable_parameters
    else:
        assert found == {name: [rank, made.plan.scaling_of(name)] for name, rank in made.plan.ranks.items()}


@pytest.mark.parametrize("tool", [name for name in TOOLS if TRAINERS[name].continues])
def test_a_tool_trains_an_adapter_at_step_0_on(tool: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    plan = pasted_plan(load_base("llama", model_folders["llama"]).outline.modules, "rslora")
    step_0.save(plan, tmp_path / "step 0", str(model_folders["llama"]))
    found = built(snippet(plan, tool, adapter=str(tmp_path / "step 0")), model_folders["llama"], tmp_path)
    assert found == {name: [rank, pytest.approx(plan.scaling_of(name))] for name, rank in plan.ranks.items()}
