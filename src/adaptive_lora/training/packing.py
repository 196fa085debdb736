"""Batches of several adapters end to end. N positions, S sequences, C completion tokens; no adapter shares a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from adaptive_lora.data.encoding import Example


@dataclass(frozen=True)
class Pack:
    """Sequences of one or more adapters, flattened to N positions.

    `packed` holds the tokens alone. `padded` holds rows of equal length, for models whose attention
    cannot be told where a sequence ends; an adapter's rows stand together, so that in both forms each
    adapter owns one stretch of positions.
    """

    ids: Tensor
    """(1, N) packed, or (S, T) padded on the right."""
    positions: Tensor
    """As `ids`: each token's place in its own sequence."""
    mask: Tensor | None
    """(S, T) 1 for tokens, 0 for padding; nothing where packed."""
    starts: Tensor
    """(S + 1,) int64 on the CPU: where each sequence begins (packed)."""
    segments: tuple[tuple[int, int], ...]
    """Per adapter the stretch of positions that is its own."""
    real: tuple[Tensor | None, ...]
    """Per adapter which of its positions hold tokens; nothing where all do."""
    tokens: tuple[int, ...]
    """Per adapter how many tokens it has."""
    keep: Tensor
    """(C,) positions whose next token belongs to a completion."""
    targets: Tensor
    """(C,) those next tokens."""
    sequence: Tensor
    """(C,) the sequence each belongs to."""
    counts: tuple[int, ...]
    """(S,) completion tokens of each sequence."""
    owners: tuple[int, ...]
    """(S,) the adapter, counted within the pack, that each sequence belongs to."""

    @property
    def size(self) -> int:
        """N: positions computed."""
        return self.ids.numel()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """(S,) tokens of each sequence."""
        return tuple(np.diff(self.starts.numpy()).tolist())


def pack(
    batches: Sequence[Sequence[Example]], device: torch.device | str, padded: bool = False, block: int = 1
) -> Pack:
    """Lays the batches of several adapters, one batch an adapter, end to end.

    With `block`, a sequence that teaches nothing fills each adapter's stretch up to a multiple of it.
    """
    tokens = [sum(len(example.ids) for example in batch) for batch in batches]
    fillers = [Example((0,) * (-n % block), -n % block, False) for n in tokens]
    batches = [[*batch, f] if f.ids else batch for batch, f in zip(batches, fillers, strict=True)]
    filling = {id(f) for f in fillers}
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
        # A filler may be longer than the model's context: all of it stands at place 0.
        flat_positions[at : at + length] = 0 if id(example) in filling else np.arange(length)
        first = max(example.prompt_length, 1)  # nothing predicts a sequence's first token
        keep.append(at + np.arange(first - 1, length - 1))
        targets.append(flat_ids[at + first : at + length])
        counts.append(max(length - first, 0))
    owners = [k for k, batch in enumerate(batches) for _ in batch]
    segments, real = _stretches(batches, lengths, width, starts)
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
    )


def chunks_of(sizes: Mapping[int, int], limit: int, workers: int) -> list[list[int]]:
    """Members with `sizes` tokens cut into consecutive chunks of at most `limit`, so even and so many that all
    workers are busy to the end; a member larger than the limit has a chunk of its own.

    >>> chunks_of({0: 30, 1: 30, 4: 30, 5: 30}, limit=100, workers=2)
    [[0, 1], [4, 5]]
    """
    total = sum(sizes.values())
    passes = math.ceil(total / limit / workers) * workers
    share = total / max(1, min(passes, len(sizes)))
    chunks: list[list[int]] = []
    filled = within = 0
    for member, size in sizes.items():
        if not chunks or within + size > limit or filled >= share * len(chunks):
            chunks.append([])
            within = 0
        chunks[-1].append(member)
        filled, within = filled + size, within + size
    return chunks


def _stretches(
    batches: Sequence[Sequence[Example]], lengths: np.ndarray, width: int, starts: np.ndarray
) -> tuple[tuple[tuple[int, int], ...], list[np.ndarray | None]]:
    """Each adapter's stretch of positions, and which of them are tokens (relative to its beginning)."""
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
