"""Planning is a phase like training: what runs need measured is taken once, kept in the ledger, and made into plans.

A measurement is kept under all that it depends on, so that arms, budgets and learning rates that need the same share
it; a plan is kept as soon as it is made. A study that was cut takes up where it stopped and repeats neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.progress import ProgressListener


def plan_runs(
    prepared: PreparedStudy,
    ledger: Ledger,
    runs: Mapping[str, Run],
    listener: ProgressListener,
    should_stop: Callable[[], bool],
) -> dict[str, Exception]:
    """Makes and keeps a plan of every run that has none; run_id -> the reason, for those that cannot be planned."""
    known = ledger.planning.planned()
    missing = {run_id: run for run_id, run in runs.items() if run_id not in known}
    failed: dict[str, Exception] = {}
    if missing:
        listener.stage(f"planning {len(missing)} runs")
    for run_id, run in missing.items():
        if should_stop():
            raise KeyboardInterrupt
        began = time.monotonic()
        try:
            plan = prepared.plan(run, prepared.training_examples(run.seed))
        except Exception as error:
            failed[run_id] = error
            continue
        ledger.planning.store_plan(run_id, plan.to_json(), time.monotonic() - began)
    return failed
