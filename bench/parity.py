"""Whether the bank ends where the reference engine ends on a device: the tests of the accelerator's path, run there.
Prints JSON, and fails if a test does.

    python bench/parity.py [--device cuda] [--select EXPRESSION]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lora.training.base import check_device
from throughput import machine_facts

TESTS = "tests/training/test_accelerator.py"


class Outcomes:
    """What pytest reports of each test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after the set-up, the call and the end of each test."""
        name = report.nodeid.split("::", 1)[-1]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = str(getattr(crash, "message", report.longrepr))[:500]
        elif report.passed and report.when == "call":
            self.passed.append(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--select", default="", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    asked = parser.parse_args()
    device, load = check_device(asked.device), os.getloadavg()[0]
    os.environ["ADAPTIVE_LORA_TEST_DEVICE"] = asked.device
    outcomes, began, root = Outcomes(), time.perf_counter(), Path(__file__).resolve().parents[1]
    # Warnings are shown and no errors: a device's libraries may warn of what they do not on the CPU.
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", f"--rootdir={root}", "-k", asked.select]
    stdout, sys.stdout = sys.stdout, sys.stderr
    code = pytest.main([*options, str(root / TESTS)], plugins=[outcomes])
    sys.stdout = stdout
    report = {
        "device": asked.device,
        "tests": TESTS,
        "passed": len(outcomes.passed),
        "failed": outcomes.failed,
        "seconds": time.perf_counter() - began,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "machine": machine_facts(device, load),
    }
    if not outcomes.passed and not outcomes.failed:
        raise SystemExit(f"pytest ran no test (exit status {int(code)}).")
    text = json.dumps(report, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")
    raise SystemExit(1 if outcomes.failed else 0)


if __name__ == "__main__":
    main()
