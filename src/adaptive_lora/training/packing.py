"""Batches of several adapters, packed end to end: N positions, S sequences, C completion tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example

BLOCK = 64
"""Positions that are multiplied with one adapter at once, where all adapters share one batched product."""


@dataclass(frozen=True)
class Pack:
    """Sequences of one or more adapters, flattened to N positions.

    `packed` holds tokens only. `padded` holds rows of equal length, for models whose own attention must be used.
    Either way the positions of an adapter are contiguous (its segment), so that its inputs are a view and
    not a gathered copy.
    """

    ids: Tensor
    """(1, N) packed, or (S, T) padded on the right."""
    positions: Tensor
    """As `ids`: each token's index in its own sequence."""
    mask: Tensor | None
    """(S, T) 1 for tokens, 0 for padding; None if packed."""
    starts: Tensor
    """(S + 1,) int64 on the CPU: cumulative lengths, where each sequence begins if packed."""
    segments: tuple[tuple[int, int], ...]
    """Per adapter its positions, as (begin, end)."""
    real: tuple[Tensor | None, ...]
    """Per adapter which of its positions hold tokens; None if all do."""
    tokens: tuple[int, ...]
    """Per adapter its number of tokens."""
    keep: Tensor
    """(C,) positions whose next token belongs to a completion."""
    targets: Tensor
    """(C,) those next tokens."""
    sequence: Tensor
    """(C,) the sequence each belongs to."""
    counts: tuple[int, ...]
    """(S,) completion tokens of each sequence."""
    owners: tuple[int, ...]
    """(S,) the adapter each sequence belongs to, as an index into `segments`."""
    fillers: frozenset[int] = frozenset()
    """The sequences that are no text and only fill a segment up."""

    @property
    def size(self) -> int:
        """N: positions computed."""
        return self.ids.numel()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """(S,) tokens of each sequence."""
        return tuple(np.diff(self.starts.numpy()).tolist())

    @cached_property
    def text_lengths(self) -> tuple[int, ...]:
        """(S,) likewise, 0 for what only fills a segment up."""
        return tuple(0 if i in self.fillers else n for i, n in enumerate(self.lengths))


def pack(
    batches: Sequence[Sequence[Example]],
    device: torch.device | str,
    padded: bool = False,
    block: int = 1,
    size: int | None = None,
) -> Pack:
    """Concatenates the batches of several adapters, one batch per adapter.

    With `block`, each adapter's segment is filled up to a multiple of it by a sequence without completion tokens;
    with `size` (`size_class`), the last one's further, until the pack has so many positions.
    """
    tokens = [sum(len(example.ids) for example in batch) for batch in batches]
    rooms = [-n % block for n in tokens]
    rooms[-1] += max(0, (size or 0) - sum(tokens) - sum(rooms))
    # Behind an adapter's own sequences, so that its tokens are the first of its segment, as dropout masks expect.
    fillers = [_fillers(room) for room in rooms]
    batches = [[*batch, *own] for batch, own in zip(batches, fillers, strict=True)]
    filling = {id(filler) for own in fillers for filler in own}
    examples = [example for batch in batches for example in batch]
    lengths = np.array([len(example.ids) for example in examples])
    width = int(lengths.max()) if padded else 0
    starts = np.concatenate([[0], np.cumsum(lengths)])
    offsets = np.arange(len(examples)) * width if padded else starts[:-1]
    ids = np.zeros((len(examples), width) if padded else (1, starts[-1]), dtype=np.int64)
    positions = np.zeros_like(ids)
    flat_ids, flat_positions = ids.reshape(-1), positions.reshape(-1)
    keep, targets, counts = [], [], []
    for example, at, length in zip(examples, offsets, lengths, strict=True):
        flat_ids[at : at + length] = example.ids
        # A filler may be longer than the model's context, so all its positions are 0.
        flat_positions[at : at + length] = 0 if id(example) in filling else np.arange(length)
        # In order of position: sums over a sequence's tokens must not depend on the other sequences.
        learnt = at + example.learnt
        keep.append(learnt - 1)
        targets.append(flat_ids[learnt])
        counts.append(len(learnt))
    owners = [k for k, batch in enumerate(batches) for _ in batch]
    segments, real = _segments(batches, lengths, width, starts)
    sequence = np.repeat(np.arange(len(examples)), counts)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Pack(
        ids=tensor(ids),
        positions=tensor(positions),
        mask=tensor((np.arange(width) < lengths[:, None]).astype(np.int64)) if padded else None,
        starts=torch.from_numpy(starts.astype(np.int64)),
        segments=segments,
        real=tuple(None if index is None else tensor(index) for index in real),
        tokens=tuple(tokens),
        keep=tensor(np.concatenate(keep)),
        targets=tensor(np.concatenate(targets)),
        sequence=tensor(sequence),
        counts=tuple(int(count) for count in counts),
        owners=tuple(owners),
        fillers=frozenset(i for i, example in enumerate(examples) if id(example) in filling),
    )


def size_class(positions: int, limit: int, block: int = BLOCK) -> int:
    """The size that a pack of so many positions, a multiple of `block`, is filled up to.

    Sixteen sizes between a number and its double, so that a bank's passes have few sizes, whose memory and kernels are
    used again; less than a sixteenth is wasted. Never more than `limit`, unless the positions are more themselves.

    >>> [size_class(64 * blocks, limit=64 * 100) // 64 for blocks in (7, 31, 33, 65, 97, 98, 120)]
    [7, 31, 34, 68, 100, 100, 120]
    """
    step = block << max(0, (positions // block).bit_length() - 5)
    return max(positions, min(positions + -positions % step, limit // block * block))


def positions_of(batches: Mapping[int, Sequence[Example]], padded: bool = False, block: int = 1) -> dict[int, int]:
    """Positions of each member's batch in a pass: filled up to `block`, or as rows of the longest sequence of all."""
    if padded:
        longest = max((len(example.ids) for batch in batches.values() for example in batch), default=0)
        return {member: longest * len(batch) for member, batch in batches.items()}
    tokens = {member: sum(len(example.ids) for example in batch) for member, batch in batches.items()}
    return {member: n + -n % block for member, n in tokens.items()}


def chunks_of(sizes: Mapping[int, int], limit: int, workers: int) -> list[list[int]]:
    """Members with `sizes` positions, dealt to chunks of at most `limit`, as even as can be, their number a multiple of
    `workers` where possible; a member larger than the limit gets a chunk of its own.

    >>> chunks_of({0: 30, 1: 50, 4: 30, 5: 10}, limit=100, workers=2)
    [[0, 4], [1, 5]]
    """
    # By order and sizes only: a resumed bank deals the same chunks, and so ends in the same bits.
    passes = max(1, math.ceil(sum(sizes.values()) / limit / workers)) * workers
    while True:
        chunks = _dealt(sizes, min(passes, len(sizes)))
        if passes >= len(sizes) or all(len(c) == 1 or sum(sizes[m] for m in c) <= limit for c in chunks):
            return sorted(sorted(chunk) for chunk in chunks)
        passes += workers


def _dealt(sizes: Mapping[int, int], count: int) -> list[list[int]]:
    """The largest first, each to the chunk that has the least so far."""
    chunks, filled = [list[int]() for _ in range(count)], [0] * count
    for member in sorted(sizes, key=lambda member: -sizes[member]):
        least = filled.index(min(filled))
        chunks[least].append(member)
        filled[least] += sizes[member]
    return chunks


def _fillers(positions: int) -> list[Example]:
    """Sequences without completion tokens, short ones: attention grows with the square."""
    sizes = [BLOCK] * (positions // BLOCK) + [positions % BLOCK] * (positions % BLOCK > 0)
    return [Example((0,) * n, n, False) for n in sizes]


def _segments(
    batches: Sequence[Sequence[Example]], lengths: np.ndarray, width: int, starts: np.ndarray
) -> tuple[tuple[tuple[int, int], ...], list[np.ndarray | None]]:
    """Each adapter's (begin, end), and which of its positions are tokens, counted from its begin."""
    segments, real = [], []
    row = 0
    for batch in batches:
        rows = lengths[row : row + len(batch)]
        if width:
            segments.append((row * width, (row + len(batch)) * width))
            real.append(
                np.flatnonzero((np.arange(width) < rows[:, None]).reshape(-1)) if (rows < width).any() else None
            )
        else:
            segments.append((int(starts[row]), int(starts[row + len(batch)])))
            real.append(None)
        row += len(batch)
    return tuple(segments), real


def sum_by(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums of the values of each group, (groups,), on the CPU: in order, where an accelerator adds in any."""
    return torch.zeros(groups, dtype=values.dtype).index_add_(0, group.cpu(), values.cpu())
