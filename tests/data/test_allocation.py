"""Any groups into any splits: filled exactly, or refused with sizes that work."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_lora.data.allocation import Allocation, allocate, is_filled, sizes_that_work

SIZES = st.lists(st.integers(1, 43), min_size=1, max_size=40)
ASKED = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 200))


def check(found: Allocation, sizes: list[int]) -> None:
    """No group is in two places, and every record is somewhere."""
    placed = [group for part in found.parts for group, _ in part] + list(found.pool)
    assert sorted(placed) == sorted(range(len(sizes)))
    assert found.pool_size == sum(sizes[group] for group in found.pool)
    assert sum(n for part in found.parts for _, n in part) + found.pool_size + found.idle == sum(sizes)


@settings(max_examples=300)
@given(SIZES, ASKED)
def test_splits_are_filled_or_the_advice_works(sizes: list[int], asked: tuple[int, int, int]) -> None:
    validation, test, train = asked
    found = allocate(sizes, [test, validation], train)
    if is_filled(found, [test, validation], train):
        check(found, sizes)
        return
    advised = sizes_that_work(sizes, [test, validation], train)
    assert bool(advised) == (len(sizes) > 2)
    for fewer, *smaller in advised:
        again = allocate(sizes, smaller, fewer)
        assert is_filled(again, smaller, fewer)
        check(again, sizes)


@settings(max_examples=200)
@given(SIZES, ASKED)
def test_what_lies_idle_is_less_than_a_group_a_split(sizes: list[int], asked: tuple[int, int, int]) -> None:
    """Where enough is left when two groups are broken, no pair of sizes is refused."""
    validation, test, _ = asked
    train = sum(sizes) - validation - test - 2 * (max(sizes) - 1)
    if train > 0:
        found = allocate(sizes, [test, validation], train)
        assert is_filled(found, [test, validation], train) and found.idle <= 2 * (max(sizes) - 1)


def test_groups_of_one_are_taken_as_they_come() -> None:
    found = allocate([1] * 9, [3, 2], train=4)
    assert found.parts == (((0, 1), (1, 1), (2, 1)), ((3, 1), (4, 1)))
    assert (found.pool, found.idle) == ((5, 6, 7, 8), 0)


def test_fewer_for_training_is_advised_before_anything_else() -> None:
    assert sizes_that_work([4] * 10, [4, 4], train=33) == [(32, 4, 4)]
    assert sizes_that_work([40, 40], [10, 10], train=10) == []
