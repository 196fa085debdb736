"""Synthetic ledgers for the tests of reports, by the measurement's own maker."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from adaptive_lora.record.ledger import create_or_open, open_to_read
from adaptive_lora.record.runs import Status
from adaptive_lora.telling.report.build import write_report


def bench() -> ModuleType:
    """`bench/ledger.py`."""
    if "bench_ledger" not in sys.modules:
        path = Path(__file__).parents[2] / "bench" / "ledger.py"
        spec = importlib.util.spec_from_file_location("bench_ledger", path)
        assert spec is not None and spec.loader is not None
        sys.modules["bench_ledger"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench_ledger"])
    return sys.modules["bench_ledger"]


def make_ledger(folder: Path, arms: int = 3, seeds: int = 7) -> Path:
    """A study of `uniform`, `decay-01`, ...; of the last arm one run diverged."""
    folder.mkdir(parents=True, exist_ok=True)
    maker = bench()
    with contextlib.closing(create_or_open(folder)) as ledger:
        maker.fill(ledger, maker.study_of(maker.Size(arms, 1, seeds)))
        last = [run for run in ledger.runs() if run["arm"] == f"decay-{arms - 1:02d}"][-1]
        ledger.fail(last["run_id"], Status.DIVERGED, "loss is not finite at step 3", 3)
    return folder


def make_report(folder: Path) -> str:
    """Writes the report of a folder and returns the page."""
    with contextlib.closing(open_to_read(folder)) as ledger:
        return write_report(ledger, folder).read_text(encoding="utf-8")
