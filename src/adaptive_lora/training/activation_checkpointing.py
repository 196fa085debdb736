"""Activation checkpointing: blocks save their inputs and recompute everything else in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from adaptive_lora.errors import ModelError


@contextlib.contextmanager
def recomputed_blocks(model: Any) -> Iterator[None]:
    """The model with its blocks recomputed in the backward pass: the same bits for less memory.

    ModelError where the architecture has no blocks that support it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ModelError("This model's blocks do not support activation checkpointing; leave it off.")
    own = [block.__dict__.get("forward") for block in blocks]  # hooks of other libraries
    try:
        for block in blocks:
            # Not the library's own switch: it requires training mode, which turns the base's dropout on.
            block.forward = _recomputing(block.forward)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.forward = before


def blocks_of(model: Any) -> dict[str, Any]:
    """By name the blocks that transformers marks for checkpointing; none inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputing(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # No random state to restore: dropout masks are functions of (seed, module, step).
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return recomputing
