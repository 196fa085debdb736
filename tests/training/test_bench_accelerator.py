"""`bench/accelerator.sh` at its tiniest on the CPU, so that it works where an accelerator is lent for minutes."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "accelerator.sh"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout"))), reason="needs bash and coreutils' timeout"
)


def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script, called with this interpreter."""
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True)


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """An interpreter that notes what it is asked to run, and leaves some figures."""
    place = tmp_path / "python"
    place.write_text(f"""#!/bin/sh
printf '%s\\n' "$@" >> {tmp_path}/asked
while [ "$1" != --out ]; do shift; done
echo '{{}}' > "$2"
""")
    place.chmod(0o755)
    return place


def test_parts_leave_their_figures_are_not_repeated_and_may_be_taken_up_again(tmp_path: Path, noted: Path) -> None:
    out = tmp_path / "out"
    asked = (str(out), "--tiny", "--parts", "llama-1b")
    done = call(*asked, PYTHON=str(noted))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"llama-1b.json", "log.txt"}

    again = call(*asked, PYTHON=str(noted))
    assert again.returncode == 0 and again.stderr.split("\n")[0] == "llama-1b: done before"
    late = call(*asked[:-1], "parity,llama-1b", LIMIT="5", PYTHON=str(noted))
    assert late.returncode == 1 and "no time left for: parity; run it again" in late.stderr
    assert "llama-1b: done before" in late.stderr and not (out / "parity.json").exists()
    assert (tmp_path / "asked").read_text().split().count("--out") == 1


@pytest.mark.filterwarnings("ignore")
def test_what_a_part_runs_measures_all_sides(tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as importing Trainer and the rest once more takes most of a fresh one's time."""
    assert call(str(tmp_path), "--tiny", "--parts", "llama-1b", PYTHON=str(noted)).returncode == 0
    command = (tmp_path / "asked").read_text().splitlines()
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", command)
    before = logging.get_verbosity()
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:  # it silences the libraries of its process
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    speeds: dict[str, Any] = json.loads((tmp_path / ".llama-1b.part").read_text())
    assert speeds["model"]["name"] == "llama-1b-shape" and speeds["model"]["dtype"] == "bfloat16"
    for side in ("trainer", "loop", "bank"):
        assert speeds["seconds_per_adapter_step"][side]["median"] > 0
    assert speeds["max_loss_difference"] < 0.02  # bank and loop, in bf16


def test_a_part_that_fails_is_named_and_leaves_no_figures(tmp_path: Path) -> None:
    done = call(str(tmp_path), "--device", "nowhere", "--parts", "parity")
    assert done.returncode == 1 and "failed: parity (exit status" in done.stderr
    assert "There is no device 'nowhere' here" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("words", [(), ("out", "--parts", "parities"), ("--tiny",), ("out", "--tinier")], ids=str)
def test_what_it_does_not_know_it_does_not_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = call(*(str(tmp_path / word) if word == "out" else word for word in words))
    assert done.returncode == 2 and "PART" in done.stderr.upper()
    assert not list(tmp_path.rglob("*.json"))
