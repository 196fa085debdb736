"""LoRA dropout: which inputs of a module are dropped is a function of (seed, step, module).

Both engines take their masks from here, so that they drop the same inputs. A mask covers the
tokens of one adapter's own batch, sequence after sequence; it does not depend on padding or other adapters.

On the CPU a mask is the indices of what is dropped, a few per cent. Elsewhere it is flags: one launch a step draws
those of all modules, (tokens, Σ d_in), one row a token, so that a bank has each adapter's drawn into its own rows.
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
class DropoutMasks:
    """The masks of one adapter's run, step by step.

    All modules of a step are drawn at once, from one stream of (seed, step) over all linear modules of the model,
    adapted or not, so that a mask does not depend on the plan. Masks differ between CPU and other devices.
    """

    seed: int
    p: float
    """The probability that an input is dropped."""
    widths: Mapping[str, int]
    """d_in of every linear module of the model, in its order."""
    _drawn_for: tuple[int, int] = (-1, -1)
    _drawn: Mapping[str, Tensor] = field(default_factory=dict)

    def dropped(self, name: str, step: int, tokens: int, device: torch.device) -> Tensor:
        """Which of a module's inputs, (tokens, d_in) flattened, are dropped.

        On the CPU their indices, int64, ascending; elsewhere a bool mask, whose size is known without
        waiting for the device.
        """
        if self._drawn_for != (step, tokens):
            self._drawn_for = (step, tokens)
            if self.as_flags(device):
                flags = torch.empty(tokens, sum(self.widths.values()), dtype=torch.bool, device=device)
                self._drawn = self.by_module(self.draw_(flags, step))
            else:
                self._drawn = self._draw(step, tokens)
        return self._drawn[name].reshape(-1)

    @staticmethod
    def as_flags(device: torch.device) -> bool:
        """Whether masks on a device are flags that are drawn there, and no indices."""
        return device.type != "cpu"

    def bytes_per_token(self, device: torch.device) -> int:
        """What the flags of one token take in a bank, from the beginning of a pass to its end."""
        return sum(self.widths.values()) if self.p and self.as_flags(device) else 0

    def draw_(self, flags: Tensor, step: int) -> Tensor:
        """Draws the masks of all modules into `flags`, (tokens, Σ d_in) bool and contiguous, on its device."""
        generator = torch.Generator(flags.device).manual_seed(derive_seed(self.seed, "dropout", step))
        return flags.bernoulli_(self.p, generator=generator)

    def by_module(self, flags: Tensor) -> dict[str, Tensor]:
        """Each module's columns of flags (N, Σ d_in), as views (N, d_in)."""
        return dict(zip(self.widths, flags.split(list(self.widths.values()), dim=1), strict=True))

    def _draw(self, step: int, tokens: int) -> dict[str, Tensor]:
        ends = np.cumsum(np.fromiter(self.widths.values(), np.int64) * tokens)
        stream = np.random.Generator(np.random.SFC64(derive_seed(self.seed, "dropout", step)))
        indices = _successes(stream, int(ends[-1]), self.p)
        cuts = [0, *np.searchsorted(indices, ends).tolist()]
        begins = [0, *ends[:-1].tolist()]
        return {
            name: torch.from_numpy(indices[cuts[i] : cuts[i + 1]] - begins[i]) for i, name in enumerate(self.widths)
        }


def zero_(x: Tensor, dropped: Tensor) -> Tensor:
    """Sets the entries that `DropoutMasks.dropped` returned to 0, in place; x contiguous."""
    flat = x.view(-1)
    if dropped.dtype == torch.bool:
        flat.masked_fill_(dropped, 0)
    else:
        flat.index_fill_(0, dropped, 0)
    return x


def _successes(stream: np.random.Generator, size: int, p: float) -> NDArray[np.int64]:
    """Indices of the successes among `size` independent trials of probability p, drawn as gaps between them.

    A gap is geometric, floor(E / -ln(1 - p)) + 1 with E exponential: about `size` p draws instead of `size`.
    """
    if not p:
        return np.zeros(0, dtype=np.int64)
    found: list[NDArray[np.int64]] = []
    last = -1
    while last < size:
        expected = (size - last) * p
        gaps = stream.standard_exponential(int(expected + 6 * math.sqrt(expected)) + 8)
        gaps *= -1 / math.log1p(-p)
        indices = gaps.astype(np.int64)
        indices += 1
        np.cumsum(indices, out=indices)
        indices += last
        found.append(indices)
        last = int(indices[-1])
    indices = found[0] if len(found) == 1 else np.concatenate(found)
    return indices[: np.searchsorted(indices, size)]
