"""Adapters that learn a planted model's answers: a bank whose losses are taken against distributions.

loss = mean over tokens of - Σ_v p(v) log q(v),   p the planted model's, q the student's
divergence = loss - mean entropy of p = KL(p || q), nats per token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.batches import IGNORED, Batch, Loss
from adaptive_lora.training.current_batch import BankBatch
from adaptive_lora.training.evaluate import batches_by_length
from adaptive_lora.training.head import TokenLosses
from adaptive_lora.training.packing import Pack

Answers = Mapping[Example, Tensor]
"""Of every text the distributions over its completion tokens, (C, V)."""

CHUNK = 4096
"""Positions of a pass."""


class StudentBank(Bank):
    """A bank in which every example's targets are distributions."""

    def __init__(self, base: FrozenBase, members: Sequence[Member], answers: Answers) -> None:
        super().__init__(base, members, chunk_tokens=CHUNK)
        self._answers = answers

    def _batch(self, members: Sequence[int], batches: Sequence[Sequence[Example]], training: bool) -> BankBatch:
        batch = super()._batch(members, batches, training)
        answers = [self._answers[example] for examples in batches for example in examples]
        batch.pack.__dict__["answers"] = torch.cat(answers)
        return batch

    def _losses(self, hidden: Tensor, packed: Pack, weights: Tensor | None) -> TokenLosses:
        return self.model.head.losses(hidden, packed.__dict__["answers"], weights)


def answer_loss(answers: Answers) -> Loss:
    """What a `StudentBank` lowers, for what trains or takes gradients without a bank."""

    def loss(logits: Tensor, batch: Batch, examples: Sequence[Example]) -> Tensor:
        counted = batch.labels[:, 1:] != IGNORED  # position t predicts t + 1
        wanted = torch.cat([answers[example] for example in examples])  # (C, V)
        return -(wanted * logits[:, :-1][counted].log_softmax(-1)).sum(-1).mean()

    return loss


def answers_of(bank: Bank, member: int, examples: Sequence[Example]) -> dict[Example, Tensor]:
    """What a member of an open bank answers: its distributions over all completion tokens."""
    found: dict[Example, Tensor] = {}
    for rows in batches_by_length(examples, CHUNK):
        chosen = [examples[i] for i in rows]
        probabilities = bank.logits(member, chosen).softmax(-1)
        counts = [example.completion_tokens for example in chosen]
        found |= dict(zip(chosen, torch.split(probabilities, counts), strict=True))
    return found


def entropy(answers: Answers, examples: Sequence[Example]) -> float:
    """Mean over the examples' tokens of - Σ p log p, nats."""
    rows = torch.cat([answers[example] for example in examples]).double()
    return float(-(rows * rows.clamp_min(1e-300).log()).sum(-1).mean())


def divergences(bank: Bank, examples: Sequence[Example], answers: Answers) -> list[float]:
    """KL(planted || student) of every member on the examples, nats per token."""
    own = entropy(answers, examples)
    return [result.loss - own for result in bank.evaluate(examples)]


def train_students(
    base: FrozenBase, members: Sequence[Member], answers: Answers, test: Sequence[Example]
) -> list[float]:
    """Trains all members on the answers; gives their divergences on `test`."""
    with StudentBank(base, members, answers) as bank:
        while bank.running:
            bank.step()
        return divergences(bank, test, answers)
