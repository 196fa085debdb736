"""Weights that are on this device only while they are used: what a bank minds where its base is sharded (FSDP2).

FSDP2 keeps one tensor for every parameter of a block, fills it before the block's forward and backward part, and frees
its memory after them. Fused layers hold that tensor, as autograd does, and so compute with the gathered weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def is_shared(parameter: Tensor) -> bool:
    """Whether only a share of it is here."""
    return hasattr(parameter, "to_local")


def local_of(parameter: Any) -> Tensor:
    """What of a parameter is here: all of it, or this rank's share."""
    found: Tensor = parameter.to_local() if is_shared(parameter) else parameter
    return found


def whole_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules`, duplicates too; where the base is sharded, a module's weights are whole while it is looked at.

    Every rank then has to go through all of them. Without shards no more than the list.
    """
    gathered: list[tuple[str, Any]] = []
    try:
        for name, module in list(model.named_modules(remove_duplicate=False)):
            while gathered and not name.startswith(gathered[-1][0]):
                gathered.pop()[1].reshard()
            if hasattr(module, "unshard"):
                module.unshard()
                gathered.append((f"{name}.", module))
            yield name, module
    finally:
        while gathered:
            gathered.pop()[1].reshard()


def sharded_part(model: nn.Module) -> Any:
    """The part of a model that FSDP2 shards, as a whole; None where it is not sharded."""
    return next((module for module in model.modules() if hasattr(module, "reset_iter_state")), None)


def begin_pass(model: nn.Module) -> None:
    """Forgets passes of a sharded base that had no backward part, or failed; nothing to do for others."""
    if (root := sharded_part(model)) is not None:
        root.reset_iter_state()
