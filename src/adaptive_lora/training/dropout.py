"""LoRA dropout: which inputs of a module are dropped is a function of (seed, step, module).

Both engines take their masks from here, so that they drop the same inputs. A mask covers the
tokens of one adapter's own batch, sequence after sequence; it does not depend on padding or other adapters.

On the CPU a mask is the indices of what is dropped, a few per cent. Elsewhere it is flags: one launch a step draws
those of all modules, (tokens, Σ d_in), one row a token, so that a bank has each adapter's drawn into its own rows.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_lora.streams import derive_seed
from adaptive_lora.training.kernels import DropoutArgs, dropout_kernel

_BLOCK = 8192
"""Exponentials that are drawn at a time."""
_LONGEST = 9e15
"""Of a gap, as in dropout.c."""


@dataclass
class Positions:
    """Ascending indices of what is dropped, by module."""

    indices: NDArray[np.int64]
    """Of all modules, each counting from its own beginning."""
    cuts: Mapping[str, tuple[int, int]]
    """Where a module's are among them."""

    def __post_init__(self) -> None:
        self._begin = self.indices.ctypes.data

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        return self.indices[slice(*self.cuts[name])]

    def place(self, name: str) -> tuple[int, int]:
        """Address and number of a module's indices; they stay there as long as this object lives."""
        begin, end = self.cuts[name]
        return self._begin + self.indices.itemsize * begin, end - begin


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
    _flags: Mapping[str, Tensor] = field(default_factory=dict)
    _positions: Positions | None = None

    def dropped(self, name: str, step: int, tokens: int, device: torch.device) -> Tensor:
        """Which of a module's inputs, (tokens, d_in) flattened, are dropped.

        On the CPU their indices, int64, ascending; elsewhere a bool mask, whose size is known without
        waiting for the device.
        """
        if not self.as_flags(device):
            return torch.from_numpy(self.positions(step, tokens)[name])
        if self._drawn_for != (step, tokens):
            self._drawn_for = (step, tokens)
            flags = torch.empty(tokens, sum(self.widths.values()), dtype=torch.bool, device=device)
            self._flags = self.by_module(self.draw_(flags, step))
        return self._flags[name].reshape(-1)

    def positions(self, step: int, tokens: int) -> Positions:
        """What `dropped` returns on the CPU, of all modules; drawn once a step."""
        if self._positions is None or self._drawn_for != (step, tokens):
            self._drawn_for, self._positions = (step, tokens), self._draw(step, tokens)
        return self._positions

    def forget(self) -> None:
        """Frees what was drawn, for a batch of 400 tokens of a 135M model 26 MB; drawn again it is the same."""
        self._drawn_for, self._flags, self._positions = (-1, -1), {}, None

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

    def _draw(self, step: int, tokens: int) -> Positions:
        ends = np.cumsum(np.fromiter(self.widths.values(), np.int64) * tokens)
        stream = np.random.Generator(np.random.SFC64(derive_seed(self.seed, "dropout", step)))
        positions, cuts = successes(stream, ends, self.p)
        return Positions(positions, dict(zip(self.widths, itertools.pairwise(cuts), strict=True)))


def zero_(x: Tensor, dropped: Tensor) -> Tensor:
    """Sets the entries that `DropoutMasks.dropped` returned to 0, in place; x contiguous."""
    flat = x.view(-1)
    if dropped.dtype == torch.bool:
        flat.masked_fill_(dropped, 0)
    else:
        flat.index_fill_(0, dropped, 0)
    return x


def successes(stream: np.random.Generator, ends: NDArray[np.int64], p: float) -> tuple[NDArray[np.int64], list[int]]:
    """Which of independent trials of probability p succeed, drawn as gaps between them: p draws a trial and no more.

    Trials are those of several modules, up to each of `ends`. Returns ascending indices within their own module, and
    where among them each module begins, and the last one ends. A gap is geometric, floor(E / -ln(1 - p)) + 1 with E
    exponential.
    """
    if not p or not len(ends):
        return np.zeros(0, np.int64), [0] * (len(ends) + 1)
    expected = int(ends[-1]) * p
    most = int(expected + 6 * math.sqrt(expected)) + 8  # seldom more
    kernel = dropout_kernel()
    draw = _successes if kernel is None else functools.partial(_compiled_successes, kernel)
    return draw(stream, ends, -1 / math.log1p(-p), most)


def _successes(
    stream: np.random.Generator, ends: NDArray[np.int64], scale: float, most: int
) -> tuple[NDArray[np.int64], list[int]]:
    found, last = [np.zeros(0, np.int64)], -1
    while last < ends[-1]:
        gaps = stream.standard_exponential(most) * scale
        indices = np.minimum(gaps, _LONGEST).astype(np.int64) + 1
        found.append(np.cumsum(indices) + last)
        last = int(found[-1][-1])
    indices = np.concatenate(found)
    cuts = [0, *np.searchsorted(indices, ends).tolist()]
    begins = np.repeat(ends - np.diff(ends, prepend=0), np.diff(cuts))
    return indices[: cuts[-1]] - begins, cuts


def _compiled_successes(
    kernel: ctypes.CDLL, stream: np.random.Generator, ends: NDArray[np.int64], scale: float, most: int
) -> tuple[NDArray[np.int64], list[int]]:
    """`dropout.c`, the same bits: exponentials are drawn in blocks that stay in cache, in the same order."""
    exponentials = np.empty(min(most, _BLOCK))
    positions, cuts = np.empty(most + len(exponentials), np.int64), np.zeros(len(ends) + 1, np.int64)
    it = DropoutArgs(
        exponentials.ctypes.data, len(exponentials), scale, ends.ctypes.data, len(ends),
        positions.ctypes.data, cuts.ctypes.data, 0, -1, 0,
    )  # fmt: skip
    while it.module < it.modules:
        if it.found + len(exponentials) > len(positions):
            positions = np.concatenate([positions[: it.found], np.empty(most, np.int64)])
            it.positions = positions.ctypes.data
        stream.standard_exponential(out=exponentials)
        kernel.dropout_positions(ctypes.byref(it))
    return positions, cuts.tolist()
