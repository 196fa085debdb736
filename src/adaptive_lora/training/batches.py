"""Examples to padded tensors, and logits to losses. B sequences, T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.cross_entropy import token_costs

IGNORED = -100
"""The label of positions without a loss (torch's own default)."""


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right to the longest of them."""

    input_ids: Tensor
    """(B, T) token ids; 0 where padded, which the mask hides."""
    attention_mask: Tensor
    """(B, T) 1 for tokens, 0 for padding. Built from lengths, never from a pad id."""
    labels: Tensor
    """(B, T) the token ids of the completion, `IGNORED` for prompt and padding."""

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(examples: Sequence[Example]) -> Batch:
    """One batch; mask and labels come from lengths, so that a pad token equal to the end
    token (GPT-2) masks no end token."""
    longest = max(len(example.ids) for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.ids)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        learnt = torch.from_numpy(example.learnt)
        labels[row, learnt] = ids[learnt]
    return Batch(input_ids, attention_mask, labels)


@dataclass(frozen=True)
class SequenceLosses:
    """Losses of the sequences of a batch; all (B,)."""

    nll: Tensor
    """Summed negative log-likelihood of the completion tokens, nats."""
    tokens: Tensor
    """Number of completion tokens."""
    exact: Tensor
    """Whether the likeliest token was the target at every completion position. Greedy decoding makes the same
    choices from the same prefix, so this is exact match without generating."""


def sequence_losses(logits: Tensor, labels: Tensor) -> SequenceLosses:
    """Per-sequence losses of next-token predictions; logits (B, T, V), labels (B, T)."""
    logits, targets = logits[:, :-1], labels[:, 1:]  # (B, T-1, V), (B, T-1): position t predicts t+1
    counted = targets != IGNORED
    if not logits.requires_grad:
        costs, right, _ = token_costs(logits[counted], targets[counted], None)
        nll = torch.zeros_like(counted, dtype=costs.dtype).masked_scatter(counted, costs)
        wrong = torch.zeros_like(counted).masked_scatter(counted, ~right)
        return SequenceLosses(nll=nll.sum(1), tokens=counted.sum(1), exact=~wrong.any(1))
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float() if logits.dtype in (torch.float16, torch.bfloat16) else logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(targets)
    wrong = (logits.argmax(-1) != targets) & counted
    return SequenceLosses(nll=nll.sum(1), tokens=counted.sum(1), exact=~wrong.any(1))


Loss = Callable[[Tensor, Batch, Sequence[Example]], Tensor]
"""Logits (B, T, V), the batch and its examples -> the loss to minimise, nats per completion token."""


def label_loss(logits: Tensor, batch: Batch, examples: Sequence[Example]) -> Tensor:
    """The mean negative log-likelihood of the completion tokens."""
    losses = sequence_losses(logits, batch.labels)
    return losses.nll.sum() / losses.tokens.sum()
