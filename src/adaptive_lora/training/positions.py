"""Position scaling that depends on length: every text is scaled by its own length, as if it were alone in its pass.

With dynamic NTK or longrope a text's rotary frequencies depend on how long it is. transformers takes the longest text
of a batch for all of them, and with dynamic NTK the longest since the last short batch: the same text has other losses
beside other texts, and after them. Here a text of n tokens has the frequencies of n, whatever is computed with it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_MASK = threading.local()
"""`value`: the (B, T) mask of the batch that this thread's decoder computes; None or missing without padding."""


def scale_each_text(model: Any) -> Callable[[], None]:
    """Makes every rotary embedding of `model` that depends on length see each text alone; returns the way back.

    Texts are told apart by the attention mask, (B, T), or by position ids that begin again, (1, N). Models without such
    an embedding stay as they are.
    """
    rotary = [module for module in model.modules() if depends_on_length(module)]
    if not rotary:
        return lambda: None
    handles = []
    for module in {id(part): part for part in (model, decoder_of(model))}.values():
        before = _BeforeForward()
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(before.after, always_call=True))
    for module in rotary:
        module.forward = _EachTextAlone(module)

    def restore() -> None:
        for handle in handles:
            handle.remove()
        for module in rotary:
            del module.forward

    return restore


def decoder_of(model: Any) -> Any:
    """The part of a causal language model up to the last hidden states; some answer `get_decoder` with themselves."""
    found = model.get_decoder()
    return model.get_submodule("model") if found is model else found


def depends_on_length(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding whose frequencies depend on the length of what it is given."""
    kinds = getattr(module, "rope_type", None)
    every = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in every)


class _BeforeForward:
    """Notes the attention mask of the pass that begins; `after` brings back the one before."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(self, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        before = self._local.__dict__.setdefault("before", [])
        before.append(getattr(_MASK, "value", None))
        mask = keywords.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            _MASK.value = mask

    def after(self, *_: Any) -> None:
        _MASK.value = self._local.before.pop()


class _EachTextAlone:
    """The forward of a rotary embedding, called once for each class of lengths with equal frequencies."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor, position_ids: Tensor, *more: Any, **named: Any) -> Any:
        """As the module's; cosines and sines (B, T, d)."""
        if position_ids.ndim != 2:
            return type(self._module).forward(self._module, x, position_ids, *more, **named)
        positions, lengths = _own_lengths(position_ids, getattr(_MASK, "value", None))
        classes = self._classes(lengths, *more, **named)
        results: Any = None
        for one in classes.unique().tolist():
            chosen = classes == one
            found = type(self._module).forward(self._as_new(), x, positions[chosen][None], *more, **named)
            parts = found if isinstance(found, tuple) else (found,)
            if results is None:
                results = tuple(part.new_empty(*positions.shape, *part.shape[2:]) for part in parts)
            for result, part in zip(results, parts, strict=True):
                result[chosen] = part[0]
        return results if isinstance(found, tuple) else results[0]

    def _classes(self, lengths: Tensor, layer_type: str | None = None, **_: Any) -> Tensor:
        """Equal numbers for lengths with equal frequencies."""
        kinds: Any = self._module.rope_type
        if (kinds[layer_type] if isinstance(kinds, dict) else kinds) == "longrope":
            parameters: Any = self._module.config.rope_parameters  # type: ignore[union-attr]
            own = parameters[layer_type] if isinstance(kinds, dict) else parameters
            return (lengths > own["original_max_position_embeddings"]).long()
        return lengths.clamp(min=int(self._module.original_max_seq_len))  # type: ignore[arg-type]

    def _as_new(self) -> Any:
        """A copy that remembers no text before: the module keeps frequencies of the longest, and threads share it."""
        fresh: Any = copy.copy(self._module)
        fresh.__dict__.pop("forward", None)
        fresh._buffers = {name: None if b is None else b.clone() for name, b in self._module._buffers.items()}
        for name in list(fresh._buffers):
            original = getattr(fresh, name.replace("inv_freq", "original_inv_freq"), None)
            if name.endswith("inv_freq") and "original" not in name and original is not None:
                fresh._buffers[name] = original.clone().to(fresh._buffers[name].device)
        for name in [name for name in fresh.__dict__ if name.endswith("max_seq_len_cached")]:
            fresh.__dict__[name] = fresh.original_max_seq_len
        return fresh


def _own_lengths(positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions (B, T), and for every position the length of its text; padding takes its text's last position."""
    if mask is not None and mask.shape[-1] == positions.shape[-1]:
        positions = positions.expand(mask.shape[0], -1)
        lengths = (positions * mask).amax(1, keepdim=True) + 1
        return torch.minimum(positions, lengths - 1), lengths.expand_as(positions)
    begins = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
    rows = torch.arange(len(positions), device=positions.device)[:, None] * positions.shape[-1]
    text = (begins.cumsum(-1) + rows).reshape(-1)
    longest = torch.zeros(positions.numel() + 1, dtype=positions.dtype, device=positions.device)
    longest = longest.scatter_reduce(0, text, positions.reshape(-1) + 1, "amax")
    return positions, longest[text].view_as(positions)
