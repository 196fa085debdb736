"""Values that are made after training: by a command, by greedy answers, or by a task of lm-evaluation-harness.

They are made once a run, kept as soon as they are there, and go on where they were cut. What makes them is opened and
checked before the first step, and what values rest on is a fact of the study from then on.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lora.errors import AdaptiveLoraError, ScoringError, StudyFolderError
from adaptive_lora.stats.metrics import Origin
from adaptive_lora.study.adapter_files import check_adapter
from adaptive_lora.study.engines.answer_match import AnswerScorer
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.engines.harness import TaskScorer
from adaptive_lora.study.engines.scorer import Scorer, Scoring
from adaptive_lora.study.ledger import BASE, Ledger
from adaptive_lora.study.lock import differences
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.scoring import NOTHING_LOST, check_same, metric_of_study, scores_of, unscored

SCORED_BY = "scored_by"
"""The fact with what values rest on, by metric."""
_PATIENCE = 2.0
"""Seconds without a word of progress."""


class _ByCommand:
    by, frozen = "The command of `analysis.metric`", False
    facts: Mapping[str, Any] = {}

    def __init__(self, prepared: PreparedStudy) -> None:
        base = Path(prepared.base.location)
        self._model = str(base.resolve()) if base.exists() else prepared.base.location
        self._study = prepared.study

    def values(self, scoring: Scoring, told: Callable[[int, int], None]) -> dict[str, float]:
        command = metric_of_study(self._study).command
        whole = (*command, str(scoring.adapter), self._model)
        return scores_of(whole, self._study.path.parent, scoring.label, scoring.engine.should_stop)


def scorer_of(prepared: PreparedStudy) -> Scorer | None:
    """What makes the values of the study's metric, checked on its model and data; None where nothing has to.

    Raises StudyFileError where it cannot work.
    """
    metric = metric_of_study(prepared.study)
    makers: Mapping[Origin, Callable[[PreparedStudy], Scorer]] = {
        Origin.COMMAND: _ByCommand, Origin.ANSWERS: AnswerScorer, Origin.TASK: TaskScorer
    }  # fmt: skip
    return makers[metric.origin](prepared) if metric.is_scored else None


def record_basis(ledger: Ledger, prepared: PreparedStudy, scorer: Scorer | None) -> None:
    """Keeps what values rest on; StudyFolderError where values that are there already rest on something else."""
    if scorer is None or not scorer.facts:
        return
    key = metric_of_study(prepared.study).key
    known, here = ledger.facts().get(SCORED_BY, {}), json.loads(json.dumps(scorer.facts))
    if key in known and known[key] != here:
        differ = "; ".join(differences(known[key], here, ("there", "here")))
        raise StudyFolderError(
            f"Values by {metric_of_study(prepared.study).title} rest on something else than those that are there: "
            f"{differ}. Bring back what was there (an installed version, a task file or its data), or run the study in "
            "a new folder."
        )
    ledger.set_facts({SCORED_BY: {**known, key: here}})


def score_missing(engine: Engine) -> None:
    """Scores what has no score, and keeps each as soon as it is there; ScoringError where that cannot be."""
    ledger, metric = engine.ledger, metric_of_study(engine.prepared.study)
    waiting = unscored(ledger, metric)
    if not waiting:
        return
    if (scorer := engine.scorer) is None:
        scorer = scorer_of(engine.prepared)
        record_basis(ledger, engine.prepared, scorer)
    assert scorer is not None  # something waits for it
    models = [(run["run_id"], f"{run['arm']} at {run['budget']}, seed {run['seed']}") for run in waiting]
    if scorer.frozen and BASE not in ledger.scores.means(metric.key):
        models.insert(0, (BASE, "the frozen model"))
    for done, (run_id, label) in enumerate(models, 1):
        if engine.should_stop():
            raise KeyboardInterrupt
        adapter = None if run_id == BASE else engine.paths.adapter(run_id).resolve()
        if adapter is not None and not adapter.is_dir():
            raise ScoringError(
                f"{label} has no {metric.title}, and its adapter is not in {adapter}: exports have none. Run the study "
                "in a new folder, where it is trained again, or bring the adapter back."
            )
        if adapter is not None:
            check_adapter(adapter)
        head = f"scoring by {metric.title}: {label} ({done} of {len(models)})"
        engine.listener.stage(head)
        with _explained(metric.title, label):
            values = scorer.values(Scoring(engine, run_id, label, adapter), _teller(engine, head))
        records = ledger.scores.records(metric.key) or list(values)
        check_same(records, values, label, scorer.by)
        ledger.scores.store(run_id, metric.key, records, np.array([values[name] for name in records]))


def _teller(engine: Engine, head: str) -> Callable[[int, int], None]:
    """Says how far it is, every few seconds."""
    last = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > _PATIENCE:
            engine.listener.stage(f"{head}: {done:,} of {of:,}")
            last = time.monotonic()

    return tell


@contextlib.contextmanager
def _explained(title: str, label: str) -> Iterator[None]:
    """Turns what a model or a task breaks on into a ScoringError."""
    try:
        yield
    except AdaptiveLoraError:
        raise
    except Exception as error:
        # Tasks run code of the harness and of their authors, models their own; the study stays as it is.
        reason = f"{type(error).__name__}: {str(error).strip()[:600]}"
        raise ScoringError(f"{label} could not be scored by {title}: {reason}\n{NOTHING_LOST}") from error
