"""Packs hold what padded batches hold, and chunks hold every member once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.data.encoding import Example
from adaptive_lora.training.batches import IGNORED, collate
from adaptive_lora.training.packing import BLOCK, Pack, chunks_of, pack, size_class


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=9))
    return Example(tuple(ids), draw(st.integers(0, len(ids))), False)


BATCHES = st.lists(st.lists(examples(), min_size=1, max_size=4), min_size=1, max_size=4)
"""One batch for each of some adapters; prompts of every length, none and all of it among them."""


def learnt(batch: Sequence[Example]) -> list[list[tuple[int, int]]]:
    """By sequence, each completion token with the place of the token before it, as the reference's labels say."""
    labels = collate(batch).labels[:, 1:]
    return [[(int(t), int(row[t])) for t in torch.nonzero(row != IGNORED).flatten()] for row in labels]


def check_losses(packed: Pack, batches: Sequence[Sequence[Example]]) -> None:
    """What is learnt from a pack is what is learnt from its batches, each sequence's in its own adapter's segment."""
    found: list[list[tuple[int, int]]] = [[] for _ in packed.counts]
    positions = packed.positions.flatten()
    columns = (packed.keep.tolist(), packed.targets.tolist(), packed.sequence.tolist())
    for place, target, sequence in zip(*columns, strict=True):
        found[sequence].append((int(positions[place]), target))
        begin, end = packed.segments[packed.owners[sequence]]
        assert begin <= place < end
    for k, batch in enumerate(batches):
        own = [row for row, owner in zip(found, packed.owners, strict=True) if owner == k]
        assert own[: len(batch)] == learnt(batch)
        assert not any(own[len(batch) :])  # what fills the segment
    assert packed.counts == tuple(len(row) for row in found)
    assert packed.tokens == tuple(sum(len(example.ids) for example in batch) for batch in batches)


def check_segments(packed: Pack, batches: Sequence[Sequence[Example]]) -> None:
    """Adapters' segments follow one another without a gap, and their tokens are their batches', in order."""
    ends = [0, *(end for _, end in packed.segments)]
    assert [begin for begin, _ in packed.segments] == ends[:-1] and ends[-1] == packed.size
    ids, positions = packed.ids.flatten(), packed.positions.flatten()
    for (begin, end), real, tokens, batch in zip(packed.segments, packed.real, packed.tokens, batches, strict=True):
        own = torch.arange(begin, end)[:tokens] if real is None else begin + real
        assert ids[own].tolist() == [i for example in batch for i in example.ids]
        assert positions[own].tolist() == [t for example in batch for t in range(len(example.ids))]


@given(BATCHES)
def test_a_pack_is_the_batches_without_their_padding(batches: list[list[Example]]) -> None:
    packed = pack(batches, "cpu")
    check_losses(packed, batches)
    check_segments(packed, batches)
    assert packed.mask is None and packed.size == sum(packed.tokens)
    assert packed.lengths == tuple(len(example.ids) for batch in batches for example in batch)
    assert packed.starts.dtype == torch.int64 and packed.starts.device.type == "cpu"


@given(BATCHES)
def test_padded_rows_are_one_batch_of_all(batches: list[list[Example]]) -> None:
    packed, whole = pack(batches, "cpu", padded=True), collate([example for batch in batches for example in batch])
    check_losses(packed, batches)
    check_segments(packed, batches)
    assert packed.mask is not None
    assert torch.equal(packed.ids, whole.input_ids) and torch.equal(packed.mask, whole.attention_mask)
    flat = packed.mask.flatten()
    for (begin, end), real in zip(packed.segments, packed.real, strict=True):
        tokens = torch.nonzero(flat[begin:end]).flatten()
        assert (real is None) == (len(tokens) == end - begin)  # nothing where all are tokens
        assert real is None or torch.equal(real, tokens)


@given(BATCHES, st.sampled_from([2, 5, 8]))
def test_filled_segments_are_multiples_and_the_filling_has_no_loss(batches: list[list[Example]], block: int) -> None:
    packed = pack(batches, "cpu", block=block)
    check_losses(packed, batches)
    check_segments(packed, batches)
    for (begin, end), tokens in zip(packed.segments, packed.tokens, strict=True):
        assert begin % block == end % block == 0 and tokens <= end - begin < tokens + block
    assert packed.starts[-1] == packed.size


@given(BATCHES, st.sampled_from([2, 5, 8]), st.integers(0, 400))
def test_a_pack_is_filled_up_to_its_size_by_short_sequences(
    batches: list[list[Example]], block: int, more: int
) -> None:
    plain = pack(batches, "cpu", block=block)
    packed = pack(batches, "cpu", block=block, size=plain.size + more)
    check_losses(packed, batches)
    check_segments(packed, batches)
    assert packed.size == plain.size + more and packed.segments[:-1] == plain.segments[:-1]
    assert max(packed.lengths[i] for i in packed.fillers or {0}) <= max(BLOCK, 9)
    assert pack(batches, "cpu", block=block, size=1).size == plain.size  # never less than there is


@given(st.integers(1, 1000), st.integers(1, 70_000))
def test_sizes_are_few_and_waste_little(blocks: int, limit: int) -> None:
    positions = blocks * BLOCK
    size = size_class(positions, limit)
    assert size % BLOCK == 0 and positions <= size < positions * (1 + 1 / 16)
    assert size <= max(limit, positions)
    assert size_class(size, limit) == size  # what has been filled up is not filled further
    assert size_class(positions + BLOCK, limit) >= size


def test_between_a_number_and_its_double_lie_sixteen_sizes() -> None:
    for begin in (16, 64, 512):
        sizes = {size_class(BLOCK * n, 10**9) for n in range(begin + 1, 2 * begin + 1)}
        assert len(sizes) == 16
    assert [size_class(BLOCK * n, 10**9) for n in range(1, 32)] == [BLOCK * n for n in range(1, 32)]


SIZES = st.one_of(st.dictionaries(st.integers(0, 99), st.integers(1, most), max_size=12) for most in (4, 200))


@given(SIZES, st.one_of(st.integers(1, 8), st.integers(1, 400)), st.integers(1, 4))
def test_chunks_are_complete_ordered_and_within_the_limit(sizes: dict[int, int], limit: int, workers: int) -> None:
    chunks = chunks_of(sizes, limit, workers)
    assert sorted(member for chunk in chunks for member in chunk) == sorted(sizes)
    assert all(chunks) and all(chunk == sorted(chunk) for chunk in chunks)
    assert all(sum(sizes[member] for member in chunk) <= limit or len(chunk) == 1 for chunk in chunks)
    assert chunks == chunks_of(sizes, limit, workers)


@given(st.lists(st.integers(50, 150), min_size=1, max_size=40), st.integers(1, 4))
def test_chunks_are_as_even_as_their_smallest_member(found: list[int], workers: int) -> None:
    """No chunk has more than another by more than the last member that it was dealt."""
    sizes = dict(enumerate(found))
    chunks = chunks_of(sizes, sum(found), workers)
    filled = [sum(sizes[member] for member in chunk) for chunk in chunks]
    assert len(chunks) == min(workers, len(sizes))
    for chunk, size in zip(chunks, filled, strict=True):
        assert size - min(sizes[member] for member in chunk) <= min(filled)


@given(st.integers(1, 30), st.integers(1, 50), st.integers(1, 4))
def test_members_of_one_size_leave_no_worker_idle(count: int, size: int, workers: int) -> None:
    """Where they all fit into one chunk they are still dealt to all workers, evenly."""
    chunks = chunks_of(dict.fromkeys(range(count), size), count * size, workers)
    assert len(chunks) == min(workers, count)
    assert max(map(len, chunks)) == math.ceil(count / min(workers, count))
