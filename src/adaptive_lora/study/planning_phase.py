"""The planning phase: measures what the runs need, once, stores it in the ledger and derives plans.

A measurement is stored under all that it depends on, so that arms, budgets and learning rates that need the same share
it; a plan is stored as soon as it is made. An interrupted study resumes without repeating either.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from adaptive_lora.measures.groups import MeasurementResult
from adaptive_lora.measures.measuring import MeasuringProgress, Taken, take
from adaptive_lora.measures.request import Measurement, MeasurementKey
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.plan_task import PlanTask, collected, needed
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.progress import ProgressListener

MeasurementResults = dict[MeasurementKey, MeasurementResult | Exception]


def plan_runs(
    prepared: PreparedStudy,
    ledger: Ledger,
    runs: Mapping[str, Run],
    listener: ProgressListener,
    should_stop: Callable[[], bool],
) -> dict[str, Exception]:
    """Makes and stores a plan of every run that has none; run_id -> the reason, for those that cannot be planned.

    Raises KeyboardInterrupt at most one batch or update after `should_stop` says so; what was measured by then is kept.
    """
    known = ledger.planning.planned()
    missing = {run_id: run for run_id, run in runs.items() if run_id not in known}
    if not missing:
        return {}
    listener.stage(f"planning {len(missing)} runs")
    failed: dict[str, Exception] = {}
    tasks: dict[str, PlanTask | RankPlan] = {}
    for run_id, run in missing.items():
        try:
            tasks[run_id] = prepared.plan_task(run)
        except Exception as error:
            failed[run_id] = error
    results = _measure(ledger, tasks.values(), listener, should_stop)
    for run_id, task in tasks.items():
        if should_stop():
            raise KeyboardInterrupt
        try:
            plan, seconds = _plan(task, results)
            prepared.check_plan(plan)
        except Exception as error:
            # One plan that cannot be made must not take the others with it.
            failed[run_id] = error
            continue
        ledger.planning.store_plan(run_id, plan.to_json(), seconds)
    return failed


def _plan(task: PlanTask | RankPlan, results: MeasurementResults) -> tuple[RankPlan, float]:
    """A plan, and its cost in seconds as if nothing were shared."""
    if isinstance(task, RankPlan):
        return task, 0.0
    scores, facts = collected(task, results)
    began = time.monotonic()
    plan = task.plan(scores, facts)
    return plan, time.monotonic() - began + sum(facts.get("seconds", {}).values())


def _measure(
    ledger: Ledger,
    tasks: Iterable[PlanTask | RankPlan],
    listener: ProgressListener,
    should_stop: Callable[[], bool],
) -> MeasurementResults:
    """Everything that the tasks need: loaded from the ledger, or measured and stored at once."""
    wanted: dict[MeasurementKey, Measurement] = {}
    for task in tasks:
        wanted |= {measurement.key: measurement for measurement in needed(task)}
    results: MeasurementResults = {}
    for key in wanted:
        if (content := ledger.planning.measurement(key.digest)) is not None:
            results[key] = MeasurementResult(content["values"], content["facts"])
    missing = [measurement for key, measurement in wanted.items() if key not in results]

    for taken in take(missing, measuring_progress(listener), should_stop):
        _store(ledger, taken)
        results |= taken.results
    if missing:
        listener.close()
    return results


def measuring_progress(listener: ProgressListener) -> Callable[[MeasuringProgress], None]:
    """Tells a listener what is being measured."""

    def tell(now: MeasuringProgress) -> None:
        step = f", step {now.step} of {now.steps}" if now.steps else ""
        seeds = f"seed{'s' if len(now.seeds) > 1 else ''} {', '.join(map(str, now.seeds))}"
        listener.planning(f"{', '.join(now.measures)}, {seeds}{step}", now.done, now.total)

    return tell


def _store(ledger: Ledger, taken: Taken) -> None:
    """Stores what was measured in one go, and adds up what it took."""
    for key, result in taken.results.items():
        if isinstance(result, MeasurementResult):
            description = {"measure": key.measure, **json.loads(key.inputs)}
            ledger.planning.store_measurement(key.digest, description, result.to_json())
    counts = Counter(ledger.facts().get("planning", {}))
    counts.update({**taken.counts, "seconds": taken.seconds})
    ledger.set_facts({"planning": dict(counts)})
