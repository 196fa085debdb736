"""What training and evaluating take of a study's engine: seconds by its first steps, memory at the peak."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.engines.answer_match import AnswerScorer
from adaptive_lora.study.engines.answers import MOST_TOKENS as MOST_ANSWER_TOKENS
from adaptive_lora.study.engines.answers import places_of
from adaptive_lora.study.engines.scorer import Scorer
from adaptive_lora.study.estimated_memory import bank_bytes, block_bytes, frozen_bytes
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.study.pricing import PATIENCE, seconds_per_record, seconds_per_token, timed_update, typical
from adaptive_lora.training.adapter import attached, set_training, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.evaluate import evaluate
from adaptive_lora.training.fidelity import MOST_TOKENS
from adaptive_lora.training.generation import greedy, greedy_together, question_of
from adaptive_lora.training.memory import peak_bytes, resident_bytes
from adaptive_lora.training.reference import update

_UPDATES = 8
"""How many an opened bank has records for."""
_TRIED_TOKENS = 4
"""Tokens of an answer that are timed, after its first."""
_ADAPTERS = 2
"""That answer on the page, beside the frozen model."""


@dataclass(frozen=True)
class Cost:
    """Of one run, and of all of them at a time."""

    update: float
    """Seconds of one adapter's update."""
    record: float
    """Seconds to evaluate one adapter on one record."""
    check: float
    """Seconds to compare the engine with the frozen model, once a study."""
    memory_bytes: int
    """The most in use, all told."""


def frozen_seconds(prepared: PreparedStudy) -> float:
    """Of the model by itself on validation and test."""
    base, splits = prepared.base, prepared.splits
    each = seconds_per_record(all_records(prepared), lambda some: evaluate(base.model, some, base.device))
    return each * (len(splits.validation) + len(splits.test))


def answer_seconds(prepared: PreparedStudy) -> float:
    """Of the answers on the page, by a few tokens of one.

    The frozen model, the baseline and the best other arm answer the same records: an adapter about as long as the
    references that it learnt are, the frozen model as long as it may. 0 where the model does not generate: the page
    then says why.
    """
    study, base = prepared.study, prepared.base
    places = places_of(study, len(prepared.splits.test), study.spec.report.answers)
    if not places:
        return 0.0
    questions = [question_of(prepared.splits.test[place]) for place in places]
    lengths = [min(MOST_ANSWER_TOKENS, len(question.reference)) for question in questions]
    try:
        first, more = (
            _seconds(lambda some=some: greedy(base, questions[0].prompt, some, (), lambda: False))  # type: ignore[misc]
            for some in (1, 1 + _TRIED_TOKENS)
        )
    except Exception:  # of a model that cannot generate, as `answers` takes it
        return 0.0
    answers, tokens = (1 + _ADAPTERS) * len(places), len(places) * max(lengths) + _ADAPTERS * sum(lengths)
    return answers * first + max(0.0, more - first) / _TRIED_TOKENS * (tokens - answers)


def answering_seconds(prepared: PreparedStudy, scorer: Scorer | None, plan: RankPlan) -> float:
    """Of answering all test records by one adapter, where the study is judged by right answers; else 0.

    By a few tokens of a batch of middle length, with an adapter of `plan`.
    """
    if not isinstance(scorer, AnswerScorer):
        return 0.0
    _, places = scorer.batches[len(scorer.batches) // 2]
    prompts, base = scorer.prompts(places), prepared.base
    with attached(base, plan, seed=0):
        first, more = (
            _seconds(lambda some=some: greedy_together(base, prompts, some, (), lambda: False))  # type: ignore[misc]
            for some in (1, 1 + _TRIED_TOKENS)
        )
    token = max(0.0, more - first) / _TRIED_TOKENS
    return sum(first + token * (tokens - 1) for tokens in scorer.expected_tokens())


def all_records(prepared: PreparedStudy) -> list[Example]:
    """That are evaluated."""
    return [*prepared.splits.validation, *prepared.splits.test]


def cost_by_bank(prepared: PreparedStudy, members: Sequence[Member], runs: int) -> Cost:
    """By a bank of a few adapters on texts of middle length; `members` are one of each cell."""
    base, checkpointing = prepared.base, prepared.study.spec.train.activation_checkpointing
    held = resident_bytes(base.device)
    few = [_on_typical(member) for member in members]
    block = block_bytes(prepared, few[0]) if checkpointing else None
    with contextlib.ExitStack() as stack:
        for count in (1, _UPDATES):  # many side by side cost less each where a pass is short; else too long to try
            count = min(runs, max(count, torch.get_num_threads() if base.device.type == "cpu" else 1))
            together = list(itertools.islice(itertools.cycle(few), count))
            bank = stack.enter_context(Bank(base, together, checkpointing=checkpointing))
            # Before any update, as the first pass of all pays for warming up and this one costs the least.
            record = seconds_per_record(all_records(prepared), bank.evaluate) / count
            first = timed_update(bank)
            if count >= min(runs, _UPDATES) or first[0] > PATIENCE / 3:
                break
            stack.close()
        per_token = seconds_per_token(bank, first)
        reckoned = peak_bytes(base.device) + bank_bytes(prepared, bank, members, block)
    test = prepared.splits.test
    compared = min(len(test), MOST_TOKENS * len(test) // max(1, _tokens(test)))
    memory = max(reckoned, held + frozen_bytes(prepared))
    return Cost(per_token * _mean_batch(members[0]), record, record * compared, memory)


def _on_typical(member: Member) -> Member:
    """With records of middle length alone, so that opening a bank of it compares no longer ones."""
    options, examples = member.options, member.examples
    some = typical(examples, round(_UPDATES * _mean_batch(member)))
    return Member(plan=member.plan, options=options, seed=member.seed, examples=some)


def _mean_batch(member: Member) -> float:
    """Tokens of an update."""
    return member.options.batch_size * _tokens(member.examples) / len(member.examples)


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.ids) for example in examples)


def cost_by_reference(prepared: PreparedStudy, member: Member) -> Cost:
    """By some updates of one run, the last of which is on the largest batch of its first epoch."""
    options, base = member.options, prepared.base
    checkpointing = prepared.study.spec.train.activation_checkpointing
    held = resident_bytes(base.device)
    steps = range(min(options.steps, member.order.steps_per_epoch))
    largest = max(steps, key=lambda step: _padded(member.batch(step)))
    with attached(base, member.plan, member.seed, options.dropout, checkpointing) as model:
        optimizer = torch.optim.AdamW(trainable(model).values())
        set_training(model, True)
        times = [
            _seconds(lambda step=step: update(model, optimizer, member.batch(step), options, step))  # type: ignore[misc]
            for step in (0, 1, 2, largest)
        ]
        set_training(model, False)
        record = seconds_per_record(all_records(prepared), lambda some: evaluate(model, some, base.device))
    return Cost(sorted(times[1:])[1], record, 0.0, max(peak_bytes(base.device), held + frozen_bytes(prepared)))


def _padded(batch: Sequence[Example]) -> int:
    return len(batch) * max(len(example.ids) for example in batch)


def _seconds(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began
