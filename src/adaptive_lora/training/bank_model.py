"""The base model as a bank runs it: which layers are replaced, and how it takes its tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import ModelError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.training.activation_checkpointing import recomputed_blocks
from adaptive_lora.training.attention import NAME, NotCausalOnly, register
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.fused_layers import fused_layers
from adaptive_lora.training.head import Head
from adaptive_lora.training.packing import Pack, pack

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation of the bank's logits from the model's own, relative to the largest logit."""


@dataclass(frozen=True)
class BankModel:
    """How the model is run."""

    head: Head
    padded: bool
    """Whether sequences are padded to rows of equal length, for the model's own attention."""
    kernels: set[str]
    """What computed attention and LoRA so far."""

    def hidden(self, packed: Pack) -> Tensor:
        """Hidden states of all positions, (N, d)."""
        if self.padded:
            out = self.head.decoder(input_ids=packed.ids, attention_mask=packed.mask, use_cache=False)[0]
        else:
            out = self.head.decoder(input_ids=packed.ids, position_ids=packed.positions, use_cache=False)[0]
        return out.reshape(-1, out.shape[-1])


@contextlib.contextmanager
def bank_model(
    base: FrozenBase, layers: Mapping[str, Callable[[nn.Module], nn.Module]], checkpointing: bool = False
) -> Iterator[BankModel]:
    """The base with `layers` in place of its target modules; restored at the end.

    Sequences are packed end to end where the model allows it, otherwise padded to rows. Which, and whether
    frozen layers can be fused, is decided by comparing logits with the model's own. ModelError where no way of
    running it reproduces them.
    """
    expected = _own_logits(base)
    failures = []
    for fused, padded in ((True, False), (True, True), (False, True)):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_replaced(base.model, layers))
                if fused:
                    stack.enter_context(fused_layers(base.model))
                if not padded:
                    stack.enter_context(_packed_attention(base.model))
                model = BankModel(Head(base.model), padded, {"the model's attention"} if padded else set())
                error = _deviation(model, base, expected)
            except (TypeError, ValueError, AttributeError, NotCausalOnly, RuntimeError) as problem:
                failures.append(f"{type(problem).__name__}: {problem}")
                continue
            if not error <= _TOLERANCE.get(base.model.dtype, 5e-2):
                failures.append(f"logits differ by {error:.2g}")
                continue
            if checkpointing:
                stack.enter_context(recomputed_blocks(base.model))
            yield model
            return
    raise ModelError(
        f"{base.name} cannot be run by the bank ({'; '.join(dict.fromkeys(failures))}). Set `engine: reference` in the "
        "study file: it trains one adapter at a time through the model as it is."
    )


def probe_examples(base: FrozenBase) -> list[Example]:
    """Three short sequences of unequal length, over the whole vocabulary."""
    vocabulary = base.model.config.get_text_config().vocab_size
    lengths = [base.outline.within(n) for n in (9, 5, 12)]
    return [
        Example(tuple((7 * i + 31 * k + 1) % vocabulary for i in range(n)), 1, False) for k, n in enumerate(lengths)
    ]


@torch.no_grad()
def _own_logits(base: FrozenBase) -> Tensor:
    """The model's own logits of the probe examples, computed one by one; (C, V)."""
    parts = []
    for example in probe_examples(base):
        ids = torch.tensor([example.ids], device=base.device)
        parts.append(base.model(input_ids=ids, use_cache=False).logits[0, :-1])
    return torch.cat(parts)


@torch.no_grad()
def _deviation(model: BankModel, base: FrozenBase, expected: Tensor) -> float:
    packed = pack([probe_examples(base)], base.device, model.padded)
    with current_batch(BankBatch(packed, kernels=model.kernels)):
        found = model.head.logits(model.hidden(packed)[packed.keep])
    return float((found - expected).abs().max() / expected.abs().max())


@contextlib.contextmanager
def _replaced(model: nn.Module, layers: Mapping[str, Callable[[nn.Module], nn.Module]]) -> Iterator[None]:
    before: dict[str, nn.Module] = {}
    try:
        for name, make in layers.items():
            before[name] = model.get_submodule(name)
            model.set_submodule(name, make(before[name]))
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


@contextlib.contextmanager
def _packed_attention(model: Any) -> Iterator[None]:
    """Our attention instead of the model's."""
    register()
    before = model.config._attn_implementation
    try:
        with quiet_libraries():
            model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ValueError("the model's attention cannot be replaced")
        yield
    finally:
        with quiet_libraries():
            model.set_attn_implementation(before)
