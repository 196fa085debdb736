"""LoRA's own dropout: which inputs of a module are dropped follows from (seed, step) and the module alone.

Both engines take their masks from here, so that they drop the same inputs. A mask covers the real
tokens of one adapter's own batch, sequence after sequence; padding and neighbours do not enter it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_lora.streams import derive_seed


@dataclass
class Masks:
    """The masks of one adapter's run, one after another step.

    On a processor all modules of a step are drawn at once, from one stream of (seed, step) over all
    linear modules of the model, adapted or not, so that a mask does not depend on the plan. On other
    devices each module has a stream of its own there; the two differ.
    """

    seed: int
    p: float
    """The probability that an input is dropped."""
    widths: Mapping[str, int]
    """d_in of every linear module of the model, in its order."""
    _of: tuple[int, int] = (-1, -1)
    _found: dict[str, Tensor] = field(default_factory=dict)

    def dropped(self, name: str, step: int, tokens: int, device: torch.device) -> Tensor:
        """Which of a module's inputs, (tokens, d_in) flattened, are dropped.

        On the CPU the positions themselves, int64, ascending; elsewhere a mask, bool, which needs no
        look back from the device.
        """
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(derive_seed(self.seed, "dropout", name, step))
            return torch.rand(tokens * self.widths[name], generator=generator, device=device) < self.p
        if self._of != (step, tokens):
            self._of, self._found = (step, tokens), self._drawn(step, tokens)
        return self._found[name]

    def _drawn(self, step: int, tokens: int) -> dict[str, Tensor]:
        ends = np.cumsum(np.fromiter(self.widths.values(), np.int64) * tokens)
        stream = np.random.Generator(np.random.SFC64(derive_seed(self.seed, "dropout", step)))
        places = _successes(stream, int(ends[-1]), self.p)
        cuts = [0, *np.searchsorted(places, ends).tolist()]
        begins = [0, *ends[:-1].tolist()]
        return {name: torch.from_numpy(places[cuts[i] : cuts[i + 1]] - begins[i]) for i, name in enumerate(self.widths)}


def erase_(x: Tensor, which: Tensor) -> Tensor:
    """Sets the entries that `Masks.dropped` names to 0, in place; x contiguous."""
    flat = x.view(-1)
    if which.dtype == torch.bool:
        flat.masked_fill_(which, 0)
    else:
        flat.index_fill_(0, which, 0)
    return x


def _successes(stream: np.random.Generator, size: int, p: float) -> NDArray[np.int64]:
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
        gaps *= -1 / math.log1p(-p)
        places = gaps.astype(np.int64)
        places += 1
        np.cumsum(places, out=places)
        places += last
        found.append(places)
        last = int(places[-1])
    places = found[0] if len(found) == 1 else np.concatenate(found)
    return places[: np.searchsorted(places, size)]
