"""How a frozen model is made to carry a bank: which layers change place, and in what form it takes its tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import ModelError
from adaptive_lora.training.attention import NAME, NotCausalOnly, at_work, register
from adaptive_lora.training.base import FrozenBase, quiet_libraries
from adaptive_lora.training.head import Head
from adaptive_lora.training.lean import lean_layers
from adaptive_lora.training.mixes import Work
from adaptive_lora.training.packing import Pack, pack

_ROOM = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far, relative to the largest logit, the bank's pass through the base may lie from the model's own."""


@dataclass(frozen=True)
class Form:
    """How the model is run."""

    head: Head
    padded: bool
    """Whether sequences stand in rows of equal length, the model's own attention being used."""

    def hidden(self, packed: Pack) -> Tensor:
        """Hidden states of all positions, (N, d)."""
        if self.padded:
            out = self.head.decoder(input_ids=packed.ids, attention_mask=packed.mask, use_cache=False)[0]
        else:
            out = self.head.decoder(input_ids=packed.ids, position_ids=packed.positions, use_cache=False)[0]
        return out.reshape(-1, out.shape[-1])


@contextlib.contextmanager
def attachment(
    base: FrozenBase, layers: Mapping[str, Callable[[nn.Module], nn.Module]], checkpointing: bool = False
) -> Iterator[Form]:
    """The base with `layers` in place of its target modules; as it was again at the end.

    Sequences are packed end to end where the model allows it, otherwise padded to rows. Which, and whether
    cheaper equals may stand for its norms and products, is found by comparing with the model itself.
    ModelError where none of the forms gives what the model gives.
    """
    expected = _own_logits(base)
    failures = []
    for lean, padded in ((True, False), (True, True), (False, True)):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_exchanged(base.model, layers))
                if lean:
                    stack.enter_context(lean_layers(base.model))
                if not padded:
                    stack.enter_context(_packed_attention(base.model))
                form = Form(Head(base.model), padded)
                error = _distance(form, base, expected)
            except (TypeError, ValueError, AttributeError, NotCausalOnly, RuntimeError) as problem:
                failures.append(f"{type(problem).__name__}: {problem}")
                continue
            if not error <= _ROOM.get(base.model.dtype, 5e-2):
                failures.append(f"logits differ by {error:.2g}")
                continue
            if checkpointing:
                stack.enter_context(_recomputed(base.model))
            yield form
            return
    raise ModelError(
        f"{base.name} cannot be run by the bank ({'; '.join(dict.fromkeys(failures))}). Set `engine: reference` in the "
        "study file: it trains one adapter at a time through the model as it is."
    )


def probe_examples(base: FrozenBase) -> list[Example]:
    """Three short sequences of unequal length, over the whole vocabulary."""
    vocabulary = base.model.config.get_text_config().vocab_size
    lengths = [min(n, base.outline.context) for n in (9, 5, 12)]
    return [
        Example(tuple((7 * i + 31 * k + 1) % vocabulary for i in range(n)), 1, False) for k, n in enumerate(lengths)
    ]


@torch.no_grad()
def _own_logits(base: FrozenBase) -> Tensor:
    """What the model itself says of the examples, one by one; (C, V)."""
    parts = []
    for example in probe_examples(base):
        ids = torch.tensor([example.ids], device=base.device)
        parts.append(base.model(input_ids=ids, use_cache=False).logits[0, :-1])
    return torch.cat(parts)


@torch.no_grad()
def _distance(form: Form, base: FrozenBase, expected: Tensor) -> float:
    packed = pack([probe_examples(base)], base.device, form.padded)
    with at_work(Work(packed, (), False, {})):
        found = form.head.logits(form.hidden(packed)[packed.keep])
    return float((found - expected).abs().max() / expected.abs().max())


@contextlib.contextmanager
def _exchanged(model: nn.Module, layers: Mapping[str, Callable[[nn.Module], nn.Module]]) -> Iterator[None]:
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
            raise ValueError("the model's attention cannot be exchanged")
        yield
    finally:
        with quiet_libraries():
            model.set_attn_implementation(before)


@contextlib.contextmanager
def _recomputed(model: Any) -> Iterator[None]:
    """Activation checkpointing: blocks keep their inputs and compute the rest again on the way back."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ModelError("This model's blocks do not support activation checkpointing; leave it off.")
    own = [block.__dict__.get("forward") for block in blocks]  # what others have hooked in
    try:
        for block in blocks:
            # Not the library's own switch: it wants blocks in training mode, which turns the base's dropout on.
            block.forward = _recomputing(block.forward)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.forward = before


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputing(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return recomputing
