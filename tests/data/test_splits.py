"""Splits: disjoint by content, stable, and refused where the data are too few."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.records import Record, RecordSet
from adaptive_lora.data.splits import calibration_subset, make_splits
from adaptive_lora.errors import DataError
from adaptive_lora.training.base import FrozenBase


def source(records: list[Record]) -> RecordSet:
    return RecordSet("data.json", "alpaca", tuple(records), None)


def numbered(count: int) -> list[Record]:
    return [Record("alpaca", f"say {i}", "", f"{i} {i % 7}") for i in range(count)]


def ids(examples: tuple[Example, ...]) -> set[tuple[int, ...]]:
    return {e.ids for e in examples}


@pytest.fixture
def encoder(gpt2: FrozenBase) -> Encoder:
    return Encoder(gpt2.tokenizer, 64)


def test_splits_have_their_sizes_and_share_nothing(encoder: Encoder) -> None:
    splits = make_splits(source(numbered(100)), encoder, 30, 20, 40)
    train = splits.training_subset(30, seed=0)
    assert (len(splits.test), len(splits.validation), len(splits.pool), len(train)) == (40, 20, 40, 30)
    assert not ids(splits.test) & ids(splits.validation)
    assert not (ids(splits.test) | ids(splits.validation)) & ids(tuple(encoder.encode_all(splits.pool)))


def test_order_of_records_changes_nothing_but_the_pools_order(encoder: Encoder) -> None:
    records = numbered(80)
    shuffled = records.copy()
    random.Random(1).shuffle(shuffled)
    one, two = (make_splits(source(r), encoder, 10, 10, 20) for r in (records, shuffled))
    assert (one.test, one.validation) == (two.test, two.validation)


def test_new_records_do_not_reshuffle_old_ones(encoder: Encoder) -> None:
    few = make_splits(source(numbered(80)), encoder, 10, 10, 20)
    more = make_splits(source(numbered(90)), encoder, 10, 10, 20)
    assert len(ids(few.test) & ids(more.test)) >= 14  # each newcomer displaces one at the most


def test_records_that_ask_the_same_stay_together(encoder: Encoder) -> None:
    records = [Record("alpaca", f"question {i // 3}", "", f"answer {i}") for i in range(90)]
    splits = make_splits(source(records), encoder, 10, 15, 30)
    prompts = [{e.ids[: e.prompt_length] for e in split} for split in (splits.test, splits.validation)]
    pool = {e.ids[: e.prompt_length] for e in encoder.encode_all(splits.pool)}
    assert not prompts[0] & prompts[1] and not (prompts[0] | prompts[1]) & pool


def test_exact_duplicates_count_once(encoder: Encoder) -> None:
    records = numbered(50)
    splits = make_splits(source(records + records[:20]), encoder, 10, 10, 10)
    assert splits.duplicates == 20
    assert len(splits.pool) == 30


def test_training_subsets_are_the_seeds_own(encoder: Encoder) -> None:
    splits = make_splits(source(numbered(100)), encoder, 30, 10, 10)
    assert splits.training_subset(30, 1) == splits.training_subset(30, 1)
    assert splits.training_subset(30, 1) != splits.training_subset(30, 2)
    assert splits.training_subset(10, 1) == splits.training_subset(30, 1)[:10]


@pytest.mark.parametrize("changed", ["validation", "test", "pool"])
def test_the_hash_tells_how_every_split_is_encoded(encoder: Encoder, changed: str) -> None:
    splits = make_splits(source(numbered(100)), encoder, 30, 10, 10)
    first, *rest = getattr(splits, changed)
    if changed == "pool":
        other: Any = replace(first, completion=first.completion + "!")
    else:
        other = replace(first, prompt_length=first.prompt_length - 1)
    found = replace(splits, **{changed: (other, *rest)}).encoding_hash
    assert splits.encoding_hash == replace(splits, pool=tuple(splits.pool)).encoding_hash != found


def test_the_hash_is_the_same_everywhere(encoder: Encoder) -> None:
    """It is part of every run's identity: neither machine nor version may change it."""
    splits = make_splits(source(numbered(12)), encoder, 5, 2, 3)
    assert splits.encoding_hash == "51f3f462a54d7503ec0020b5e069c2bd902e931030194d853c86114a7afd0454"


def test_calibration_is_a_part_of_training(encoder: Encoder) -> None:
    train = make_splits(source(numbered(100)), encoder, 30, 10, 10).training_subset(30, 1)
    some = calibration_subset(train, 8, seed=1)
    assert set(some) <= set(train) and len(some) == 8
    assert some != calibration_subset(train, 8, seed=2)
    assert len(calibration_subset(train, 99, seed=1)) == 30


def test_too_few_records_are_refused_with_the_numbers(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"has 50 different records, but the splits ask for 60 \(train 30"):
        make_splits(source(numbered(50)), encoder, 30, 10, 20)


def test_records_without_room_are_left_out_and_counted(encoder: Encoder) -> None:
    long = [Record("alpaca", f"{i} " + "cat " * 80, "", "x") for i in range(30)]
    splits = make_splits(source(numbered(30) + long), encoder, 5, 5, 10)
    assert all(e.completion_tokens > 0 for e in (*splits.test, *splits.validation))
    assert splits.unusable > 0
    with pytest.raises(DataError, match=r"`data.train` asks for 45 records, but only \d+ of the \d+ left"):
        splits.training_subset(45, 0)
