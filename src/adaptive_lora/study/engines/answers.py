"""A few test records answered by the frozen model, the baseline and the best other arm: for the page, to be read.

They are kept in the ledger as the fact `answers`, each as soon as it is there, and are made once a study: the same call
goes on where it was cut. No number and no verdict rests on them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.adapter_files import check_adapter
from adaptive_lora.study.engines.engine import Engine
from adaptive_lora.study.ledger import Ledger
from adaptive_lora.study.results import ANSWERS, runs_table
from adaptive_lora.study.scoring import metric_of_study
from adaptive_lora.study.study_file import Study
from adaptive_lora.training.generation import attached_from, greedy, question_of, stop_tokens

MOST_TOKENS = 96
"""Of an answer: enough to see what it is like."""
LONGEST = 1200
"""Characters of a text that are kept."""
_PATIENCE = 2.0
"""Seconds without a word of progress."""


@dataclass(frozen=True)
class Speaker:
    """Who answers: the frozen model, or a run's adapter."""

    role: str
    """`frozen`, `baseline` or `best`."""
    arm: str | None = None
    budget: str | None = None
    seed: int | None = None
    run_id: str | None = None

    @property
    def label(self) -> str:
        """In a line: `uniform at rank:8, seed 0`."""
        return "the frozen model" if self.arm is None else f"{self.arm} at {self.budget}, seed {self.seed}"


def answer_records(engine: Engine) -> None:
    """Answers what is not answered yet, and records why where that cannot be; KeyboardInterrupt between two tokens.

    A model that cannot generate spoils no study: the page says so, and the next call tries again.
    """
    study, ledger = engine.prepared.study, engine.ledger
    if not study.spec.report.answers:
        return
    speakers = speakers_of(study, ledger)
    if len(speakers) == 1:
        ledger.set_facts({ANSWERS: {"missing": {"reason": "runs"}}})
        return
    asked = _asked(engine, speakers)
    waiting = [n for n in range(len(speakers)) if any(record["answers"][n] is None for record in asked["records"])]
    lost = [speakers[n].label for n in waiting if not _has_adapter(engine, speakers[n])]
    if lost:
        asked["missing"] = {"reason": "adapters", "runs": lost}
    elif waiting:
        try:
            _answer(engine, asked, [(n, speakers[n]) for n in waiting])
        except Exception as error:
            # Everything else of the study is there and stays; the ledger has the reason.
            reason = f"{type(error).__name__}: {error}"[:LONGEST]
            asked["missing"] = {"reason": "error", "error": reason}
            engine.listener.stage(f"warning: no answers for the page: {reason}")
    if ledger.facts().get(ANSWERS) != asked:
        ledger.set_facts({ANSWERS: asked})


def places_of(study: Study, records: int, count: int) -> list[int]:
    """Which of the test records are answered: the stream `answers` of `data.split_seed`."""
    order = numpy_stream(study.spec.data.split_seed, "answers").permutation(records)
    return sorted(order[:count].tolist())


def speakers_of(study: Study, ledger: Ledger) -> list[Speaker]:
    """The frozen model, the baseline and the best other arm of the study's own, both at the best one's budget and of
    the first evaluation seed that both have finished.

    The best has the best mean of the study's metric over its evaluation seeds. Arms with a run that diverged or failed
    are left out. Without another arm the baseline is alone; without a finished run of it there is the frozen model.
    """
    metric, baseline = metric_of_study(study), study.matrix.baseline.name
    runs = runs_table(ledger)
    runs = runs[(runs["phase"] == Phase.EVALUATION) & (runs["replica"] == 0)]
    named = {(arm.name, budget) for arm in study.spec.arms for budget in study.spec.budgets}
    means: dict[tuple[str, str], float] = {}
    done: dict[tuple[str, str], dict[int, str]] = {}
    for key, own in runs.groupby(["arm", "budget"], sort=False):
        arm, budget = map(str, key)
        whole = own[own["status"] == Status.COMPLETED]
        done[arm, budget] = {int(run["seed"]): str(run["run_id"]) for run in whole.to_dict("records")}
        if (arm, budget) in named and len(whole) and not own["status"].isin([Status.DIVERGED, Status.FAILED]).any():
            means[arm, budget] = metric.sign * float(whole[metric.column].mean())
    ranked = sorted((key for key in means if means[key] == means[key]), key=lambda key: means[key])
    found = [Speaker("frozen")]
    for best in [*(key for key in ranked if key[0] != baseline), *(key for key in ranked if key[0] == baseline)]:
        pair = {"baseline": (baseline, best[1]), **({"best": best} if best[0] != baseline else {})}
        for seed in study.spec.seeds.evaluation:
            if all(seed in done.get(cell, {}) for cell in pair.values()):
                return found + [Speaker(role, *cell, seed, done[cell][seed]) for role, cell in pair.items()]
    return found


def _has_adapter(engine: Engine, speaker: Speaker) -> bool:
    return speaker.run_id is None or engine.paths.adapter(speaker.run_id).is_dir()


def _asked(engine: Engine, speakers: Sequence[Speaker]) -> dict[str, Any]:
    """The fact as far as it is there: records with a place for everyone's answer, None where it is still to come."""
    study, prepared = engine.prepared.study, engine.prepared
    places = places_of(study, len(prepared.splits.test), study.spec.report.answers)
    examples = {place: prepared.splits.test[place] for place in places}
    questions = {place: question_of(example) for place, example in examples.items()}
    tokens = min(MOST_TOKENS, max(len(question.reference) for question in questions.values()))
    kept = _kept(engine.ledger, tokens)
    records = [
        {
            "place": place,
            "row": prepared.splits.records["test"][place].row,
            "prompt": _text(prepared.base, question.prompt),
            "reference": _text(prepared.base, question.reference),
            "cut": examples[place].truncated and not examples[place].unlearnt,
            "answers": [kept.get((place, speaker.run_id)) for speaker in speakers],
        }
        for place, question in questions.items()
    ]
    return {"tokens": tokens, "speakers": [dict(vars(speaker)) for speaker in speakers], "records": records}


def _kept(ledger: Ledger, tokens: int) -> Mapping[tuple[int, str | None], Any]:
    """(place, run_id; None: frozen) -> an answer that is there, where it had the same room."""
    before = ledger.facts().get(ANSWERS) or {}
    if before.get("tokens") != tokens:
        return {}
    return {
        (record["place"], speaker["run_id"]): answer
        for record in before["records"]
        for speaker, answer in zip(before["speakers"], record["answers"], strict=True)
    }


def _answer(engine: Engine, asked: dict[str, Any], waiting: Sequence[tuple[int, Speaker]]) -> None:
    """Fills in the answers of those that are waited for, and keeps each at once."""
    base, examples = engine.prepared.base, engine.prepared.splits.test
    questions = [question_of(examples[record["place"]]) for record in asked["records"]]
    stops, context, told = stop_tokens(base, questions), base.outline.context, 0.0
    for number, speaker in waiting:
        folder = engine.paths.adapter(speaker.run_id) if speaker.run_id else None
        if folder:
            check_adapter(folder)
        with attached_from(base, folder) if folder else contextlib.nullcontext():
            for i, (record, question) in enumerate(zip(asked["records"], questions, strict=True), 1):
                if record["answers"][number] is not None:
                    continue
                if time.monotonic() - told > _PATIENCE:
                    engine.listener.stage(f"answers for the page: {speaker.label} ({i} of {len(questions)})")
                    told = time.monotonic()
                limit = min(asked["tokens"], context - len(question.prompt)) if context else asked["tokens"]
                answer = greedy(base, question.prompt, limit, stops, engine.should_stop)
                text = _text(base, answer.ids)
                record["answers"][number] = {"text": text, "tokens": len(answer.ids), "ended": answer.ended}
                engine.ledger.set_facts({ANSWERS: asked})


def _text(base: Any, ids: Sequence[int]) -> str:
    """Without control tokens; of a long one the beginning and the end, where questions stand."""
    text = base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} […] {text[-half:]}"
