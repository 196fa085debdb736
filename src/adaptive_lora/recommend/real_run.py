"""What the real run takes, once the advice is followed: seconds by a measured speed, memory by shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from adaptive_lora.errors import UsageError
from adaptive_lora.recommend.material import Material

BYTES: Mapping[str, float] = {"float32": 4, "bfloat16": 2, "4-bit": 0.55}
"""A weight; of 4 bits with their scales."""
STATE = 16
"""Bytes a trainable parameter: itself, its gradient and AdamW's two moments in float32."""
MANY = 1000
"""Records from which on one pass is advised; of fewer, three."""
BATCHES = (16, 8, 4, 2, 1)
WORKSPACE = 0.1
"""Of all else, what libraries and fragmentation add."""
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Memory:
    """What training one adapter takes, in bytes; by shape, so about."""

    weights: float
    adapter: float
    activations: float
    """Inputs and outputs of the linear layers, kept for the backward pass, and logits with their gradient."""

    @property
    def total(self) -> float:
        """With a workspace."""
        return (1 + WORKSPACE) * (self.weights + self.adapter + self.activations)


@dataclass(frozen=True)
class Fit:
    """How a run goes into a memory."""

    limit: float
    dtype: str
    batch_size: int
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether it does; where not, these are the smallest needs there are."""
        return self.memory.total <= self.limit


@dataclass(frozen=True)
class RealRun:
    """All records that there are."""

    records: int
    epochs: int
    batch_size: int
    seconds: float | None
    """On the machine that was measured; None where none was."""
    memory: Memory
    """On that machine, in the study's dtype."""
    fit: Fit | None
    """Into the memory that was named."""

    @property
    def steps(self) -> int:
        """Updates."""
        return math.ceil(self.records / self.batch_size) * self.epochs


def memory_of(material: Material, rank: int, dtype: str, batch_size: int) -> Memory:
    """By shape, of texts as long as the longest seen, without activation checkpointing.

    weights = parameters x bytes; adapter = 16 x rank x Σ (d_in + d_out); activations = positions x (Σ (d_in + d_out) of
    all linear layers x bytes + 8 x vocabulary).
    """
    outline, width = material.outline, 4 if dtype == "float32" else 2
    positions = batch_size * material.longest
    per_position = sum(m.params_per_rank for m in outline.modules) * width + 8 * (outline.embedding_rows or 0)
    adapter = STATE * rank * sum(m.params_per_rank for m in material.modules)
    return Memory(outline.total_parameters * BYTES[dtype], adapter, positions * per_position)


def fit(material: Material, rank: int, limit: float, batch_size: int) -> Fit:
    """The first way that fits: bfloat16 weights, then 4-bit ones, each with as many records a pass as may be."""
    ways = [(dtype, b) for dtype in ("bfloat16", "4-bit") for b in BATCHES if b <= batch_size]
    found = [Fit(limit, dtype, b, memory_of(material, rank, dtype, b)) for dtype, b in ways]
    return next((own for own in found if own.fits), found[-1])


def real_run(material: Material, rank: int, record: float | None, dtype: str, limit: float | None) -> RealRun:
    """`record`: seconds that a record takes in an update, where that was measured; `limit`: bytes of the named card."""
    records, batch = material.records, material.batch_size
    epochs = 1 if records >= MANY else 3
    seconds = None if record is None else record * records * epochs
    wanted = None if limit is None else fit(material, rank, limit, batch)
    return RealRun(records, epochs, batch, seconds, memory_of(material, rank, dtype, batch), wanted)


def parse_memory(text: str) -> float:
    """Bytes of `24GB`, `80 GiB` or `16g`; UsageError for what is neither.

    >>> parse_memory("24GB"), parse_memory("1 GiB")
    (24000000000.0, 1073741824.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if not found or float(found[1]) <= 0 or not found[2]:
        raise UsageError(f"`--memory` is a size such as 24GB or 80GiB, got {text!r}.")
    factor = _UNITS[found[2]]
    if found[3]:
        factor = 1024 ** list(_UNITS).index(found[2])
    return float(found[1]) * factor
