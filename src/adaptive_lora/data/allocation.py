"""Groups of any sizes into splits of exact sizes. Numbers only; which records they are is `splits`' matter."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Allocation:
    """Which groups a test and a validation split take, and what is left."""

    parts: tuple[tuple[tuple[int, int], ...], ...]
    """For each split: (group, how many of its records)."""
    pool: tuple[int, ...]
    """The groups that are left whole, for training."""
    pool_size: int
    idle: int
    """Records in no split, because others of their group are in one."""


def allocate(sizes: Sequence[int], wanted: Sequence[int], train: int) -> Allocation:
    """Fills splits of the sizes `wanted` with whole groups as they come, and where these leave a gap, with part of
    one group more, whose other records stay idle.

    No group is in two splits. Of the ways that are tried, the first whose pool holds `train` records is taken, else the
    one with the largest pool; a split is short only where there are fewer groups than splits.

    >>> found = allocate([3, 3, 3, 3], [4, 2], train=3)
    >>> found.parts, found.pool, found.idle
    ((((0, 3), (1, 1)), ((2, 2),)), (3,), 3)
    """
    found = []
    for way in _ways(sizes, wanted):
        found.append(way)
        if _filled(way, wanted) and (way.pool_size >= train or not way.idle):
            break  # where nothing is idle, no other way leaves more
    return max(found, key=lambda way: (_filled(way, wanted), way.pool_size >= train, way.pool_size))


def is_filled(found: Allocation, wanted: Sequence[int], train: int) -> bool:
    """Whether all splits have their sizes and the pool has enough."""
    return _filled(found, wanted) and found.pool_size >= train


def sizes_that_work(sizes: Sequence[int], wanted: Sequence[int], train: int) -> list[tuple[int, ...]]:
    """Sizes (train, then as in `wanted`) near those asked for that `allocate` fills: first with fewer for training
    alone, then with all made smaller. Empty where there are not groups enough for any.

    >>> sizes_that_work([5, 5, 5], [4, 4], train=9)
    [(5, 4, 4)]
    """
    found: list[tuple[int, ...]] = []
    kept = allocate(sizes, wanted, train)
    if _filled(kept, wanted) and kept.pool_size > 0:
        found.append((kept.pool_size, *wanted))
        if kept.pool_size * 4 >= train:
            return found  # near enough
    share = min(1.0, sum(sizes) / max(train + sum(wanted), 1))
    while True:
        smaller = [max(int(size * share), min(size, 1)) for size in wanted]
        fewer = max(int(train * share), min(train, 1))
        if is_filled(allocate(sizes, smaller, fewer), smaller, fewer):
            return [*found, (fewer, *smaller)]
        if max(fewer, *smaller) <= 1:
            return found
        share *= 0.9


def _filled(found: Allocation, wanted: Sequence[int]) -> bool:
    return all(sum(n for _, n in part) == size for part, size in zip(found.parts, wanted, strict=True))


def _ways(sizes: Sequence[int], wanted: Sequence[int]) -> Iterator[Allocation]:
    """In the order of the groups; then small groups first, which leave the smallest gaps, and large groups first,
    which leave the most groups; then with each split cut out of one group."""
    natural = range(len(sizes))
    ascending = sorted(natural, key=lambda i: sizes[i])
    for order in (natural, ascending, ascending[::-1]):
        yield _first_fit(sizes, wanted, order)
    for order in (natural, ascending):
        yield _close_gaps(sizes, wanted, [[] for _ in wanted], list(order))


def _first_fit(sizes: Sequence[int], wanted: Sequence[int], order: Sequence[int]) -> Allocation:
    parts: list[list[tuple[int, int]]] = [[] for _ in wanted]
    room, rest = list(wanted), []
    for group in order:
        split = next((i for i, left in enumerate(room) if 0 < sizes[group] <= left), None)
        if split is None:
            rest.append(group)
        else:
            parts[split].append((group, sizes[group]))
            room[split] -= sizes[group]
    return _close_gaps(sizes, wanted, parts, rest)


def _close_gaps(
    sizes: Sequence[int], wanted: Sequence[int], parts: list[list[tuple[int, int]]], rest: list[int]
) -> Allocation:
    """Takes part of the smallest group that closes each gap; where none does, the largest ones whole before."""
    places = sorted((sizes[group], place) for place, group in enumerate(rest) if sizes[group])
    taken, idle = set(), 0
    for split in sorted(range(len(wanted)), key=lambda i: -wanted[i]):
        gap = wanted[split] - sum(n for _, n in parts[split])
        while gap and places:
            # Of groups of one size the first in `rest`.
            size, place = places.pop(bisect.bisect_left(places, (min(gap, places[-1][0]), -1)))
            taken.add(place)
            parts[split].append((rest[place], min(gap, size)))
            idle += max(size - gap, 0)
            gap -= min(gap, size)
    rest = [group for place, group in enumerate(rest) if place not in taken]
    return Allocation(
        parts=tuple(tuple((g, n) for g, n in part if n) for part in parts),
        pool=tuple(rest),
        pool_size=sum(sizes[g] for g in rest),
        idle=idle,
    )
