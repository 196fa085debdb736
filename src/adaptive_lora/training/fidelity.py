"""Whether losses are the model's own, before anything is trained: the model is causal, a text has the loss that it has
alone, and the bank's pass without adapters has it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import ModelError
from adaptive_lora.planning.modules import ModuleShape, total_cost
from adaptive_lora.planning.plan import RankPlan, Scaling
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.bank_model import probe_examples
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.evaluate import Evaluation, evaluate
from adaptive_lora.training.options import TrainingOptions

MOST_TOKENS = 50_000
"""Of longer splits the bank is compared on an even spread over lengths, both ends included, of about so many tokens."""

_EXACT, _HALF = (1e-4, 1e-4), (0.2, 2e-3)
"""Largest deviation of a record's loss and of the split's, relative to the model's own or to `_LEAST` if that is more.

Measured on real models: 4e-6 and 3e-8 in float32. In bfloat16 a record of one token was off by 0.04, the split by 5e-5.
"""

_LEAST = 0.1
"""Nats per token: losses below it are rounding in half precision, and nothing that a verdict could rest on."""


@dataclass(frozen=True)
class Agreement:
    """How near the bank's pass without adapters came to the model itself."""

    records: int
    tokens: int
    """Tokens of those records, prompts included."""
    largest: float
    """Largest deviation of a record, relative."""
    split: float
    """Deviation of the loss over all of them, relative."""


@torch.no_grad()
def check_causal(base: FrozenBase) -> None:
    """ModelError where what the model says at a position depends on tokens after it: it would see the answers."""
    (text, *_), size = probe_examples(base), base.model.config.get_text_config().vocab_size
    if len(text.ids) < 3:
        return
    changed = (*text.ids[:-1], (text.ids[-1] + 1) % size)
    one, other = (
        base.model(input_ids=torch.tensor([ids], device=base.device), use_cache=False).logits[0, :-1].float()
        for ids in (text.ids, changed)
    )
    apart = float((one - other).abs().max() / one.abs().max())
    if not apart <= (1e-2 if base.coarse else 1e-4):
        raise ModelError(
            f"{base.name} is not a causal language model: with another last token its logits before that differ by "
            f"{apart:.2g} of the largest, so that it would see the answers that it is to predict. Name a decoder."
        )


def check_alone(base: FrozenBase, examples: Sequence[Example], found: Evaluation) -> None:
    """ModelError where the shortest, the middle or the longest example has another loss alone than in `found`."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    for i in dict.fromkeys(order[k] for k in (0, len(order) // 2, -1)):
        alone = evaluate(base.model, [examples[i]], base.device)
        if not _apart(found.nll[i], alone.nll[0], alone.tokens[0]) <= _tolerances(base)[0]:
            raise ModelError(
                f"{base.name}: record {i + 1} of the split ({len(examples[i].ids)} tokens) has the loss "
                f"{alone.loss:.6g} alone and {found.nll[i] / found.tokens[i]:.6g} in a batch with others. Its loss "
                "would depend on its neighbours, in every engine; name another model."
            )


def check_bank(
    base: FrozenBase,
    modules: Sequence[ModuleShape],
    examples: Sequence[Example],
    own: Evaluation,
    should_stop: Callable[[], bool] = lambda: False,
) -> Agreement:
    """Compares a bank's losses, its adapters at 0, with the model's `own` of the same examples, record by record.

    ModelError names the record that is furthest off, both losses and the remedy.
    """
    rows = spread(examples, MOST_TOKENS)
    texts = [examples[i] for i in rows]
    with Bank(base, [_at_zero(modules)], texts=texts) as bank:
        (found,) = bank.evaluate(texts, should_stop)
    wanted = Evaluation(own.nll[rows], own.tokens[rows], own.exact[rows])
    apart = _apart(found.nll, wanted.nll, wanted.tokens)
    split = float(_apart(found.nll.sum(), wanted.nll.sum(), wanted.tokens.sum()))
    # argmax finds the first that is not a number, if there is one.
    worst = int(apart.argmax())
    if not (apart[worst] <= _tolerances(base)[0] and split <= _tolerances(base)[1]):
        raise ModelError(
            f"The bank does not compute {base.name}: without adapters test record {rows[worst] + 1} "
            f"({len(texts[worst].ids)} tokens) has the loss {found.nll[worst] / found.tokens[worst]:.6g}, by the model "
            f"itself {wanted.nll[worst] / wanted.tokens[worst]:.6g}; all {len(rows):,} records {found.loss:.6g} and "
            f"{wanted.loss:.6g}. Set `engine: reference` in the study file: it trains through the model as it is."
        )
    return Agreement(len(rows), sum(len(text.ids) for text in texts), float(apart[worst]), split)


def spread(examples: Sequence[Example], most: int) -> list[int]:
    """Indices of all examples; where they have more than `most` tokens, of an even spread over lengths of about so many
    that holds the shortest and the longest.

    >>> spread([Example((0,) * n, 1, False) for n in (5, 30, 10, 20)], most=40)
    [0, 1]
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    total = sum(len(example.ids) for example in examples)
    if total <= most:
        return list(range(len(examples)))
    count = max(2, round(len(order) * most / total))
    return list(dict.fromkeys(order[round(k * (len(order) - 1) / (count - 1))] for k in range(count)))


def _at_zero(modules: Sequence[ModuleShape]) -> Member:
    """An adapter of rank 1 everywhere that changes nothing: B starts at 0."""
    ranks = {m.name: 1 for m in modules}
    plan = RankPlan("uniform", total_cost(modules, ranks), tuple(modules), ranks, Scaling("constant", 1.0, 1.0))
    return Member(plan=plan, options=TrainingOptions(learning_rate=1.0, steps=1), seed=0, examples=())


def _apart(found: NDArray[np.float64], wanted: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Differences of summed losses, relative to those wanted or to `_LEAST` a token if that is more."""
    return np.asarray(np.abs(found - wanted) / np.maximum(wanted, _LEAST * tokens))


def _tolerances(base: FrozenBase) -> tuple[float, float]:
    return _HALF if base.coarse else _EXACT
