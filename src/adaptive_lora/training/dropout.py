"""LoRA's own dropout: which inputs of a module are dropped follows from (seed, module, step) and nothing else.

Both engines take their masks from here, so that they drop the same inputs. A mask covers the real
tokens of one adapter's own batch, sequence after sequence; padding and neighbours do not enter it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_lora.streams import derive_seed


def dropped(seed: int, name: str, step: int, shape: tuple[int, int], p: float, device: torch.device | str) -> Tensor:
    """Which entries of a module's input, (tokens, d_in) flattened, are dropped at a step, each with probability p.

    On the CPU the positions themselves, int64, ascending; elsewhere a mask, bool, which needs no look
    back from the device. The two come from different generators.
    """
    key = derive_seed(seed, "dropout", name, step)
    size = shape[0] * shape[1]
    if torch.device(device).type != "cpu":
        generator = torch.Generator(device).manual_seed(key)
        return torch.rand(size, generator=generator, device=device) < p
    return torch.from_numpy(_positions(np.random.Generator(np.random.SFC64(key)), size, p))


def erase_(x: Tensor, which: Tensor) -> Tensor:
    """Sets the entries that `dropped` names to 0, in place; x (tokens, d_in), contiguous."""
    flat = x.view(-1)
    if which.dtype == torch.bool:
        flat.masked_fill_(which, 0)
    else:
        flat.index_fill_(0, which, 0)
    return x


def _positions(stream: np.random.Generator, size: int, p: float) -> NDArray[np.int64]:
    """The successes among `size` independent trials of probability p, by the gaps between them.

    A gap is geometric, floor(E / -ln(1 - p)) + 1 with E exponential, so that few numbers are drawn where
    little is dropped.
    """
    if not p:
        return np.zeros(0, dtype=np.int64)
    found: list[NDArray[np.int64]] = []
    last = -1
    while last < size:
        expected = (size - last) * p
        gaps = stream.standard_exponential(int(expected + 6 * math.sqrt(expected)) + 8)
        places = (gaps * (-1 / math.log1p(-p))).astype(np.int64)
        places += 1
        np.cumsum(places, out=places)
        places += last
        found.append(places)
        last = int(places[-1])
    places = found[0] if len(found) == 1 else np.concatenate(found)
    return places[: np.searchsorted(places, size)]
