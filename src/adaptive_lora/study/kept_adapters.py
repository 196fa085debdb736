"""Which adapters stay in a study folder: `report.keep_adapters`. Results never depend on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.scoring import metric_of_study, unscored
from adaptive_lora.study.study_file import Study


def drop_adapters(study: Study, ledger: Ledger, paths: StudyPaths, at_end: bool = False) -> None:
    """Deletes the adapters of finished runs that the study file does not ask for.

    Those that a command of the study's own has still to score stay until then, and, before `at_end`, those of the first
    evaluation seed, which answer the page's records.
    """
    keep = study.spec.report.keep_adapters
    folder = paths.folder / "adapters"
    if keep == "all" or not folder.is_dir():
        return
    finished = {run["run_id"]: run for run in ledger.runs(status=(Status.COMPLETED,))}
    needed = {run["run_id"] for run in unscored(ledger, metric_of_study(study))}
    if keep == "best":
        needed |= set(_best_of_cells(ledger, finished).values())
    if study.spec.report.answers and not at_end:
        first = study.spec.seeds.evaluation[0]
        needed |= {run_id for run_id, run in finished.items() if _counts(run) and run["seed"] == first}
    for adapter in folder.iterdir():
        if adapter.name in finished and adapter.name not in needed:
            shutil.rmtree(adapter, ignore_errors=True)


def _best_of_cells(ledger: Ledger, finished: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(arm, budget) -> the run that `export` takes: the lowest validation loss, of equal ones the lowest seed."""
    totals = ledger.totals()
    best: dict[tuple[str, str], tuple[float, int, str]] = {}
    for run_id, run in finished.items():
        found = totals.get((run_id, "validation"))
        if not _counts(run) or not found or not found["tokens"]:
            continue
        cell, own = (run["arm"], run["budget"]), (found["nll"] / found["tokens"], run["seed"], run_id)
        best[cell] = min(best.get(cell, own), own)
    return {cell: run_id for cell, (_, _, run_id) in best.items()}


def _counts(run: Mapping[str, Any]) -> bool:
    return run["phase"] == Phase.EVALUATION and not run["replica"]
