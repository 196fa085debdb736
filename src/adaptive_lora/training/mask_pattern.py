"""Which earlier tokens of its text a query may see, as the model means it: read from the mask that it asks for.

Models of transformers build their masks by the name of the attention (`AttentionMaskInterface`). Some keep a window or
chunks in the mask alone and give the attention no word of it. For packed sequences `packed_mask` answers with the
pattern of one text, the longest, of which those of shorter ones are the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaptive_lora.training.current_batch import get_current_batch
from adaptive_lora.training.packing import Pack

_MARK = "_adaptive_lora_pattern"

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key, by batch, head, query and key index."""


def packed_mask(*, mask_function: MaskFunction, device: Any = "cpu", use_vmap: bool = False, **_: Any) -> Tensor | None:
    """For `AttentionMaskInterface`: the pattern of the pack's longest text, (T, T) bool; None where it is causal.

    What the model makes of it other than handing it on loses the mark, and attention refuses it (`is_pattern`).
    """
    batch = get_current_batch()
    assert batch is not None, "packed attention runs inside `current_batch`"
    lengths = batch.pack.text_lengths
    longest = max(lengths)
    told_apart = _knows_texts(mask_function, batch.pack, device, use_vmap)
    begin = int(batch.pack.starts[lengths.index(longest)]) if told_apart else 0
    places = torch.arange(begin, begin + longest, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    if use_vmap:
        seen = torch.vmap(torch.vmap(mask_function, (None, None, None, 0)), (None, None, 0, None))
        pattern = seen(zero, zero, places, places)
    else:
        pattern = mask_function(zero, zero, places[:, None], places[None, :])
    pattern = pattern.expand(longest, longest)
    causal = torch.ones_like(pattern).tril()
    if torch.equal(pattern, causal):
        return None
    pattern = pattern.clone()
    # Who sees later tokens would see the padding after its own text.
    setattr(pattern, _MARK, not bool((pattern & ~causal).any()))
    return pattern


def is_pattern(mask: Tensor) -> bool:
    """Whether a mask is one of `packed_mask`, as it was made."""
    return getattr(mask, _MARK, False) is True


def _knows_texts(mask_function: MaskFunction, pack: Pack, device: Any, use_vmap: bool) -> bool:
    """Whether the function tells the texts of a pack apart by their positions: nothing is seen across their borders."""
    borders = pack.starts[1:-1].to(device)
    if not len(borders):
        return False  # there is one text, which begins at 0
    zero = torch.zeros((), dtype=torch.long, device=device)
    seen = torch.vmap(mask_function, (None, None, 0, 0)) if use_vmap else mask_function
    return not bool(seen(zero, zero, borders, borders - 1).any())
