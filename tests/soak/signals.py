"""Signals to real processes: `run` saves a checkpoint, ends with 128 + signal, and goes on to the same results.

    python tests/soak/signals.py [--only CASE] [--out FILE]   prints JSON; exits with 1 where a process does otherwise

Each signal comes while a bank trains: once, twice at once as `timeout` sends it, a second later again, and as the
hang-up of a terminal that is closed. `grace` is what the process took from the first signal to its end; Slurm gives
30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from adaptive_lora.study.results import load_results

STUDY = """\
name: signals
model: {name: demo}
data: {source: "demo:fine-tuning", train: 32, validation: 8, test: 8, max_length: 64}
budgets: ["rank:2"]
arms: [uniform, linear-decay]
seeds: {evaluation: 2}
train: {steps: 80, batch_size: 4, learning_rate: 1e-3}
analysis: {primary: [], margin: 0.01}
controls: none
report: {answers: 0}
"""
GRACE = 30.0
"""Seconds, Slurm's KillWait."""
CASES: dict[str, tuple[tuple[float, int], ...]] = {
    "SIGINT": ((0.0, signal.SIGINT),),
    "SIGTERM": ((0.0, signal.SIGTERM),),
    "SIGHUP": ((0.0, signal.SIGHUP),),
    "SIGTERM twice at once, as timeout sends it": ((0.0, signal.SIGTERM), (0.0, signal.SIGTERM)),
    "SIGTERM, and again after a second": ((0.0, signal.SIGTERM), (1.0, signal.SIGTERM)),
    "SIGINT, and again after a second": ((0.0, signal.SIGINT), (1.0, signal.SIGINT)),
}


def command(study: Path, out: Path) -> list[str]:
    """`run`, saving no checkpoint by the clock."""
    run = ("run", str(study), "--out", str(out), "--checkpoint-seconds", "3600")
    return [sys.executable, "-m", "adaptive_lora.cli.main", *run]


def signalled(study: Path, out: Path, signals: tuple[tuple[float, int], ...]) -> dict[str, Any]:
    """A process that gets signals once it trains."""
    with subprocess.Popen(command(study, out), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "training 4" in line:
                break
        time.sleep(0.3)
        began = time.monotonic()
        for wait, number in signals:
            time.sleep(wait)
            if process.poll() is None:
                process.send_signal(number)
        rest = process.stderr.read()
        code = process.wait()
    return {"exit": code, "grace": round(time.monotonic() - began, 2), "said": rest.strip().splitlines()[-2:]}


def hung_up(study: Path, out: Path) -> dict[str, Any]:
    """A process whose terminal is closed: SIGHUP from the system, and nothing can be written any more."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, command(study, out))
    seen = b""
    while b"training" not in seen or b"4 evaluation" not in seen:
        seen += os.read(terminal, 4096)
    time.sleep(0.3)
    began = time.monotonic()
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return {"exit": os.waitstatus_to_exitcode(status), "grace": round(time.monotonic() - began, 2)}


def resumed(study: Path, out: Path, wanted: list[float]) -> dict[str, Any]:
    """Whether there was a checkpoint, and the same command ends in the results of an undisturbed study."""
    saved = bool(list((out / "checkpoints").glob("bank-*/*.safetensors")))
    code = subprocess.run(command(study, out), stderr=subprocess.DEVNULL, check=False).returncode
    same = code == 0 and load_results(out)["test_loss"].tolist() == wanted
    return {"checkpoint": saved, "identical": same}


def right(name: str, found: dict[str, Any]) -> bool:
    """Whether a case ended as it should; a second signal may come before the checkpoint or after it."""
    number = signal.SIGHUP if name == "hang-up of the terminal" else CASES[name][0][1]
    codes = {128 + number} | ({-number} if "and again" in name else set())
    return found["exit"] in codes and found["identical"] and ("and again" in name or found["checkpoint"])


def main() -> None:
    """Prints how every case ended; exits with 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="cases with this in their name")
    asked = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # `nohup` and `&` let children ignore some of them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        study = Path(work) / "study.yaml"
        study.write_text(STUDY)
        subprocess.run(command(study, Path(work) / "whole"), stderr=subprocess.DEVNULL, check=True)
        wanted = load_results(Path(work) / "whole")["test_loss"].tolist()
        for n, name in enumerate(name for name in [*CASES, "hang-up of the terminal"] if asked.only in name):
            out = Path(work) / f"out-{n}"
            case = signalled(study, out, CASES[name]) if name in CASES else hung_up(study, out)
            found[name] = {**case, **resumed(study, out, wanted)}
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    good = all(right(name, case) and case["grace"] < GRACE for name, case in found.items())
    told = json.dumps({"grace_seconds": GRACE, "cases": found, "right": good}, indent=2) + "\n"
    print(told, end="")
    if asked.out:
        asked.out.write_text(told)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
