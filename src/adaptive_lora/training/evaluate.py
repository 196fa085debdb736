"""Losses of a model on examples: summed loss and token count per example, so that any average can be computed later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.batches import collate, sequence_losses
from adaptive_lora.training.memory import give_back, is_out_of_memory

PASS_TOKENS = 4096
"""Positions of a pass that evaluates."""
LARGEST_LOGITS = 1 << 26
"""Most logits at once, positions times vocabulary: 0.27 GB in float32, a few times that during the loss."""


@dataclass(frozen=True)
class Evaluation:
    """Per-example results in the order of the examples."""

    nll: NDArray[np.float64]
    """(N,) summed negative log-likelihood of the completion, nats."""
    tokens: NDArray[np.int64]
    """(N,) completion tokens."""
    exact: NDArray[np.bool_]
    """(N,) whether greedy decoding gives the completion exactly."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per completion token over all examples, nats: Σ nll / Σ tokens."""
        return float(self.nll.sum() / self.tokens.sum())


@torch.no_grad()
def evaluate(
    model: Any, examples: Sequence[Example], device: torch.device, should_stop: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Evaluates in batches of similar length, with at most LARGEST_LOGITS logits each; uses no randomness.

    `should_stop` is called between batches; True raises KeyboardInterrupt.
    """
    tokens = min(PASS_TOKENS, LARGEST_LOGITS // model.config.get_text_config().vocab_size)
    found = empty_evaluation(len(examples))
    for rows in batches_by_length(examples, tokens):
        if should_stop():
            raise KeyboardInterrupt
        batch = collate([examples[i] for i in rows]).to(device)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        losses = sequence_losses(logits, batch.labels)
        found.nll[rows] = losses.nll.double().cpu().numpy()
        found.tokens[rows] = losses.tokens.cpu().numpy()
        found.exact[rows] = losses.exact.cpu().numpy()
    return found


def empty_evaluation(count: int) -> Evaluation:
    """Zeros for `count` examples, to be filled in."""
    return Evaluation(np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.bool_))


def batches_by_length(examples: Sequence[Example], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `tokens` positions, shortest first, so that there is little padding."""
    rows: list[int] = []
    for i in sorted(range(len(examples)), key=lambda i: len(examples[i].ids)):
        if rows and (len(rows) + 1) * len(examples[i].ids) > tokens:
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


LossArrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Summed losses, tokens, and whether all were correct; (members, examples) each."""


def in_halves(
    evaluate_some: Callable[[list[int], list[int]], LossArrays], members: list[int], examples: list[int]
) -> Iterator[tuple[list[int], list[int], LossArrays]]:
    """`evaluate_some` of the members on the examples; if out of memory, of halves, down to one member and example."""
    try:
        found = evaluate_some(members, examples)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(members) == len(examples) == 1:
            raise
    else:
        yield members, examples, found
        return
    give_back()
    k, n = (len(members) + 1) // 2, len(examples)
    if len(members) == 1:
        n = (n + 1) // 2
    yield from in_halves(evaluate_some, members[:k], examples[:n])
    yield from in_halves(evaluate_some, members[k:] or members, examples[n:] or examples)
