"""What a study takes of memory at its peak beyond what its first steps were seen to take, by the passes of its banks.

The activations that a position saves are measured; how many positions are in passes at a time follows from the study's
own batches, as a bank will cut them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptive_lora.data.encoding import Example
from adaptive_lora.study.engines.bank import LARGEST_BANK
from adaptive_lora.study.matrix import Run
from adaptive_lora.study.prepare import PreparedStudy
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.evaluate import LARGEST_LOGITS, PASS_TOKENS
from adaptive_lora.training.head import largest_logits
from adaptive_lora.training.memory import members_at_once, state_bytes
from adaptive_lora.training.options import DataOrder
from adaptive_lora.training.packing import chunks_of

_MOST_STEPS = 200
"""Updates whose batches are looked at."""
_HOLES = 0.25
"""Share of its largest pass that a bank takes on top after some updates: passes of unequal length leave holes in what
the allocator holds. Measured on three models; one update does not show it."""
_LOGITS = 3 * 4
"""Bytes of a logit: itself, its gradient, and room for its loss."""


@dataclass(frozen=True)
class Pass:
    """The largest pass of a bank."""

    positions: int
    learnt: int
    """Positions whose next token is learnt; each has logits."""
    at_once: int
    """Passes at a time."""


def block_bytes(prepared: PreparedStudy, member: Member) -> int:
    """About what one block of the model saves of a position for the backward pass, where it is computed again."""
    blocks = int(prepared.base.model.config.get_text_config().num_hidden_layers)
    with Bank(prepared.base, [member]) as bank:
        return -(-bank.bytes_per_position() // blocks)


def frozen_bytes(prepared: PreparedStudy) -> int:
    """Of evaluating the frozen model: the logits of a batch of every position, and of those learnt once more."""
    vocabulary: int = prepared.base.model.config.get_text_config().vocab_size
    splits = prepared.splits.validation, prepared.splits.test
    tokens = max(sum(len(example.ids) for example in examples) for examples in splits)
    return 2 * 4 * min(LARGEST_LOGITS, vocabulary * min(tokens, PASS_TOKENS))


def bank_bytes(prepared: PreparedStudy, bank: Bank, members: Sequence[Member], block: int | None) -> int:
    """That the largest bank of the study takes beyond an open one that has just done an update.

    `members` are one of each cell; `block` is what `block_bytes` says where activations are computed again, else None.
    What no formula knows (what allocators keep, compiled products, dropout masks) is in what the open one was seen
    to take.
    """
    base, runs = prepared.base, first_bank(prepared)
    by_cell = {cell.key: member.plan for cell, member in zip(prepared.study.matrix.cells, members, strict=True)}
    plans = [by_cell[run.cell.key] for run in runs]
    plans = plans[: members_at_once(base, plans)]
    own = [slot.member.plan for slot in bank.slots]
    vocabulary: int = base.model.config.get_text_config().vocab_size
    state = sum(state_bytes(base, plan) for plan in plans) - sum(state_bytes(base, plan) for plan in own)
    saved = bank.bytes_per_position()
    if block is None:
        block = saved // int(base.model.config.get_text_config().num_hidden_layers)
    else:
        saved += block  # one at a time is computed again

    def taken(some: Pass, each: int) -> int:
        # Each thread's allocator keeps the largest pass that the thread ever had, and threads take what is next.
        return some.at_once * (
            some.positions * each + _LOGITS * min(largest_logits(base.device), some.learnt * vocabulary)
        )

    largest = largest_training_pass(prepared, runs[: len(plans)], bank.chunk_tokens, bank.workers)
    training = taken(largest, saved) - taken(_pass_of(bank), saved)
    evaluation = taken(_largest_evaluation_pass(prepared, bank, len(plans)), block) - taken(_pass_of(bank), saved)
    more = max(0, training, evaluation) + _HOLES * taken(largest, saved)
    return max(0, state) + round(more / (1 - bank.padding_share))


def _pass_of(bank: Bank) -> Pass:
    """The largest of the last update."""
    chunks = chunks_of(bank.tokens, bank.chunk_tokens, bank.workers)
    members = bank.slots[0].member.examples
    tokens, learnt = _Sizes(members).of(np.arange(len(members)))
    positions = max(sum(bank.tokens[i] for i in chunk) for chunk in chunks)
    return Pass(positions, round(learnt * positions / tokens), min(bank.workers, len(chunks)))


def first_bank(prepared: PreparedStudy) -> list[Run]:
    """The runs of the phase that has more of them, as many as a bank may have."""
    matrix, rate = prepared.study.matrix, prepared.study.spec.train.learning_rate[0]
    evaluation = matrix.evaluation_runs({cell.key: rate for cell in matrix.cells}, matrix.first_seeds)
    return max(list(matrix.tuning_runs()), list(evaluation), key=len)[:LARGEST_BANK]


def largest_training_pass(prepared: PreparedStudy, runs: Sequence[Run], limit: int, workers: int) -> Pass:
    """Of a bank of `runs` whose passes have at most `limit` positions, over all of its updates or an even spread."""
    seeds = {run.seed: _Sizes(prepared.training_examples(run.seed)) for run in runs}
    options = prepared.training_options(runs[0])
    orders = {seed: DataOrder(seed, sizes.count, options.batch_size) for seed, sizes in seeds.items()}
    longest = max(run.cell.steps for run in runs)
    largest = Pass(0, 0, 1)
    for step in dict.fromkeys(np.linspace(0, longest - 1, min(longest, _MOST_STEPS)).round().astype(int).tolist()):
        batches = {seed: seeds[seed].of(orders[seed].batch(step)) for seed in seeds}
        members = {i: batches[run.seed] for i, run in enumerate(runs) if run.cell.steps > step}
        chunks = chunks_of({i: tokens for i, (tokens, _) in members.items()}, limit, workers)
        for chunk in chunks:
            positions = sum(members[i][0] for i in chunk)
            learnt = sum(members[i][1] for i in chunk)
            largest = max(largest, Pass(positions, learnt, min(workers, len(chunks))), key=_work)
    return largest


class _Sizes:
    """Tokens of the training examples of a seed."""

    def __init__(self, examples: Iterable[Example]) -> None:
        sizes = np.array([(len(example.ids), example.completion_tokens) for example in examples])
        self.count = len(sizes)
        self._sizes = sizes

    def of(self, rows: np.ndarray) -> tuple[int, int]:
        """Positions of these examples, and those learnt."""
        positions, learnt = self._sizes[rows].sum(0).tolist()
        return positions, learnt


def _work(some: Pass) -> int:
    return some.positions * some.at_once


def _largest_evaluation_pass(prepared: PreparedStudy, bank: Bank, count: int) -> Pass:
    splits: Mapping[str, Sequence[Example]] = {
        "validation": prepared.splits.validation, "test": prepared.splits.test,
    }  # fmt: skip
    found = Pass(0, 0, 1)
    for examples in splits.values():
        sizes = _Sizes(examples)
        tokens, learnt = sizes.of(np.arange(sizes.count))
        positions = min(tokens, bank.chunk_tokens, PASS_TOKENS)
        passes = min(bank.workers, count * -(-tokens // positions))
        found = max(found, Pass(positions, round(learnt * positions / tokens), passes), key=_work)
    return found
