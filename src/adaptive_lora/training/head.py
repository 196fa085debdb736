"""From hidden states to losses: the output layer on the positions to be learnt, a bounded number at a time."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.training.cross_entropy import distribution_costs, token_costs
from adaptive_lora.training.positions import decoder_of

_CPU_LOGITS, _ACCELERATOR_LOGITS = 1 << 23, 1 << 25


def largest_logits(device: torch.device) -> int:
    """Most logits at once, positions times vocabulary; three times their memory is used during the loss.

    On a CPU 32 MiB in float32, what the C library still takes from memory that it has at hand: larger blocks are new to
    the process each time, and clearing their pages takes longer than the loss.
    """
    return _CPU_LOGITS if device.type == "cpu" else _ACCELERATOR_LOGITS


@dataclass(frozen=True)
class TokenLosses:
    """Losses of a pack's completion tokens; all (C,), and the gradient (C, d)."""

    nll: Tensor
    """Negative log-likelihood, nats."""
    correct: Tensor
    """Whether the likeliest token was the target."""
    gradient: Tensor | None
    """Of the weighted sum of `nll` with respect to the hidden states; None without weights."""


class _PassThrough(nn.Module):
    """Replaces the decoder: returns its input as the last hidden states; its attributes are the decoder's."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.__dict__["_decoder"] = decoder  # no module of this one

    def __getattr__(self, name: str) -> Any:
        # Some models keep factors of their logits in the decoder.
        return getattr(self.__dict__["_decoder"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _hidden_states_only()(last_hidden_state=inputs_embeds)


@functools.cache
def _hidden_states_only() -> Any:
    """A decoder's output in which every other field (router logits, caches) reads as None."""
    from transformers.modeling_outputs import BaseModelOutput

    class HiddenStatesOnly(BaseModelOutput):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return HiddenStatesOnly


class Head:
    """A causal language model in two halves: `decoder` up to the hidden states, `losses` from there.

    The second half is the model's own forward pass without its decoder, so that whatever the model does to
    its logits (scaling, soft-capping) is applied.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = decoder_of(model)
        path = next(name for name, module in model.named_modules() if module is self.decoder)
        self._rest = _without(model, path.split("."))
        self._vocabulary = model.config.get_text_config().vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, d) to (C, V); a row's bits do not depend on the other rows, nor on whether there are any.

        oneDNN uses another kernel for a single row, with other last bits: a single row is computed twice.
        """
        rows = hidden.expand(2, -1) if len(hidden) == 1 else hidden
        # A view and no index: the backward pass of an index writes zeros to all of the logits first.
        logits = self._rest(inputs_embeds=rows[None], use_cache=False).logits.squeeze(0)
        return logits if len(rows) == len(hidden) else logits[: len(hidden)]

    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> TokenLosses:
        """Losses of the tokens `targets` (C,) that follow `hidden` (C, d); or of distributions over them, (C, V).

        With `weights` (C,) also the gradient of Σ weight · nll with respect to `hidden`: computed part by part,
        so that never more than `largest_logits` are held. Parts are even, so that none is left with a few rows, for
        which other kernels might be used.
        """
        nll, correct, gradients = [], [], []
        for part in _even_parts(len(targets), max(1, largest_logits(hidden.device) // self._vocabulary)):
            rows = hidden[part].detach().requires_grad_(weights is not None)
            with torch.set_grad_enabled(weights is not None):
                logits = self.logits(rows)
            costs = token_costs if targets.ndim == 1 else distribution_costs
            cost, right, slope = costs(logits.detach(), targets[part], None if weights is None else weights[part])
            if slope is not None:
                gradients.append(torch.autograd.grad(logits, rows, slope)[0])
            nll.append(cost)
            correct.append(right)
        return TokenLosses(torch.cat(nll), torch.cat(correct), torch.cat(gradients) if gradients else None)


def head_of(model: Any) -> Head | None:
    """None where there is no telling the decoder from the rest."""
    try:
        return Head(model)
    except (AttributeError, StopIteration):
        return None


def _even_parts(count: int, most: int) -> Iterator[slice]:
    """The fewest slices of at most `most` rows, their sizes within one of each other; one if there are no rows."""
    parts = max(1, -(-count // most))
    edges = [count * k // parts for k in range(parts + 1)]
    return itertools.starmap(slice, itertools.pairwise(edges))


def _without(model: nn.Module, path: list[str]) -> nn.Module:
    """A copy of the model that shares everything except the module at `path`."""
    shallow = copy.copy(model)
    modules = dict(model._modules)
    name, *rest = path
    inner = modules[name]
    assert inner is not None  # `path` came from the model's own modules
    modules[name] = _without(inner, rest) if rest else _PassThrough(inner)
    object.__setattr__(shallow, "_modules", modules)
    return shallow
