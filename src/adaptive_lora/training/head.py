"""From hidden states to losses: the model's output layer on the positions that count, a bounded number at a time."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_LOGITS = 1 << 25
"""Most logits at once, positions times vocabulary: 0.13 GB in float32, a few times that while the loss is taken."""


@dataclass(frozen=True)
class TokenLosses:
    """What the completion tokens of a pack cost; all (C,), and the gradient (C, d)."""

    nll: Tensor
    """Negative log-likelihood, nats."""
    right: Tensor
    """Whether the likeliest token was the right one."""
    gradient: Tensor | None
    """Of the weighted sum of `nll` by the hidden states."""


class _Given(nn.Module):
    """Stands where the decoder was, and hands on what it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _hidden_alone()(last_hidden_state=inputs_embeds)


@functools.cache
def _hidden_alone() -> Any:
    """A decoder's output of which the second half of a model may ask anything (routers' logits, states): the rest
    is None."""
    from transformers.modeling_outputs import BaseModelOutput

    class HiddenAlone(BaseModelOutput):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return HiddenAlone


class Head:
    """A causal language model in two halves: `decoder` up to the hidden states, `losses` from there.

    The second half is the model's own forward pass with its decoder left out, so that whatever it does to
    its logits (scales, caps) is done.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        path = next(name for name, module in model.named_modules() if module is self.decoder)
        self._rest = _without(model, path.split("."))
        self._vocabulary = model.config.get_text_config().vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, d) to (C, V); a row's bits do not depend on its neighbours, nor on whether it has any.

        oneDNN multiplies a lone row by another kernel, whose last bits are others: a lone row is given twice.
        """
        rows = hidden.expand(2, -1) if len(hidden) == 1 else hidden
        return self._rest(inputs_embeds=rows[None], use_cache=False).logits[0, : len(hidden)]

    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> TokenLosses:
        """Losses of the tokens `targets` (C,) that follow `hidden` (C, d); or of distributions over them, (C, V).

        With `weights` (C,) also the gradient of Σ weight · nll by `hidden`, so that the logits of no more
        than a few positions are ever held. The parts are even, so that none is left with a few rows, for which
        a processor's kernels may be others.
        """
        nll, right, gradients = [], [], []
        for part in _even_parts(len(targets), max(1, LARGEST_LOGITS // self._vocabulary)):
            rows = hidden[part].detach().requires_grad_(weights is not None)
            with torch.set_grad_enabled(weights is not None):
                logits = self.logits(rows)
                exact = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
                cost = functional.cross_entropy(exact, targets[part], reduction="none")
                if weights is not None:
                    gradients.append(torch.autograd.grad(cost @ weights[part].to(cost.dtype), rows)[0])
            nll.append(cost.detach())
            wanted = targets[part] if targets.ndim == 1 else targets[part].argmax(-1)
            right.append(logits.detach().argmax(-1) == wanted)
        return TokenLosses(torch.cat(nll), torch.cat(right), torch.cat(gradients) if gradients else None)


def _even_parts(count: int, most: int) -> Iterator[slice]:
    """As few stretches of at most `most` rows as there can be, their sizes within one of each other; one where
    there are no rows."""
    parts = max(1, -(-count // most))
    edges = [count * k // parts for k in range(parts + 1)]
    return itertools.starmap(slice, itertools.pairwise(edges))


def _without(model: nn.Module, path: list[str]) -> nn.Module:
    """A copy of the model that shares everything but the module at `path`."""
    twin = copy.copy(model)
    modules = dict(model._modules)
    name, *rest = path
    inner = modules[name]
    assert inner is not None  # `path` came from the model's own modules
    modules[name] = _without(inner, rest) if rest else _Given()
    object.__setattr__(twin, "_modules", modules)
    return twin
