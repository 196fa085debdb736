"""Splits: disjoint by content, stable, and refused where the data are too few."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.grouping import group_records, without_duplicates
from adaptive_lora.data.records import Record, RecordSet, Turn
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


def table_to_text(records: int) -> list[Record]:
    """2 to 43 references a table."""
    sizes = random.Random(3)
    found: list[Record] = []
    while len(found) < records:
        table = f"table {len(found)}"
        found += [Record("alpaca", table, "", f"{len(found)} text {i}") for i in range(sizes.randint(2, 43))]
    return found


@pytest.mark.parametrize(("validation", "test"), [(1, 1), (1, 400), (7, 500), (97, 13), (200, 1001), (333, 2)])
def test_splits_are_filled_whatever_the_sizes_of_groups(encoder: Encoder, validation: int, test: int) -> None:
    records = table_to_text(2500)
    splits = make_splits(source(records), encoder, 900, validation, test)
    assert (len(splits.validation), len(splits.test)) == (validation, test)
    assert len(splits.pool) + splits.idle + validation + test == len(records)
    assert splits.idle <= 2 * 42
    prompts = [{record.prompt for record in split} for split in (*splits.records.values(), splits.pool)]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    shuffled = random.Random(2).sample(records, len(records))
    again = make_splits(source(shuffled), encoder, 900, validation, test)
    assert ids(again.test) == ids(splits.test) and ids(again.validation) == ids(splits.validation)


def dialogue(number: int, turns: int, opening: str = "") -> list[Record]:
    """A conversation as one record a turn, as trainers for single turns have it."""
    said = [(opening or f"question {number} 0", "Hello!" if opening else f"answer {number} 0")]
    said += [(f"question {number} {i}", f"answer {number} {i}") for i in range(1, turns)]
    flat = [Turn(role, text) for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [Record("messages", q, "", a, tuple(flat[: 2 * i]), row=10 * number + i) for i, (q, a) in enumerate(said)]


def test_conversations_that_were_unrolled_stay_in_one_split(encoder: Encoder) -> None:
    records = [record for number in range(40) for record in dialogue(number, 4)]
    records = [replace(record, fields='{"reasoning": "Hm."}') for record in records]
    splits = make_splits(source(records), replace(encoder, template="plain"), 60, 21, 33)
    rows = [{record.row // 10 for record in split if record.row is not None} for split in splits.records.values()]
    pool = {record.row // 10 for record in splits.pool if record.row is not None}
    assert not rows[0] & rows[1] and not (rows[0] | rows[1]) & pool


def test_a_shared_greeting_or_system_prompt_makes_no_conversation() -> None:
    greeted = [record for number in range(30) for record in dialogue(number, 3, opening="Hi")]
    groups = group_records(without_duplicates(greeted))
    assert sorted(map(len, groups)) == [1, *[2] * 30]
    system = [
        replace(record, turns=(Turn("system", "Be kind."), *record.turns)) for record in dialogue(0, 2) + dialogue(1, 2)
    ]
    assert [len(group) for group in group_records(system)] == [2, 2]


def test_prompts_that_differ_by_marks_stay_together_and_are_no_duplicates() -> None:
    records = [Record("alpaca", prompt, "", "9") for prompt in ("What is 3 x 3?", "what is 3 x 3", "What is 3 x 4?")]
    assert [len(group) for group in group_records(without_duplicates(records))] == [2, 1]


def test_one_question_with_a_thousand_answers_fills_one_split(encoder: Encoder) -> None:
    greetings = [Record("alpaca", "Hi", "", f"hello {i}") for i in range(300)]
    splits = make_splits(source([*numbered(20), *greetings]), encoder, 10, 5, 40)
    assert (len(splits.test), len(splits.validation), len(splits.pool), splits.idle) == (40, 5, 15, 260)


def test_an_empty_answer_is_neither_learnt_nor_measured(encoder: Encoder) -> None:
    silent = [Record("alpaca", f"say nothing {i}", "", " ") for i in range(30)]
    call = Record("alpaca", "call", "", "", fields='{"tool_calls": [{"name": "bell"}]}')
    calls = "{% for c in m.tool_calls or [] %}{{ c.name }}{% endfor %}"
    encoder.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + calls + "\n{% endfor %}"
    splits = make_splits(source(numbered(30) + silent + [call]), encoder, 10, 5, 10)
    drawn = [record for record, _ in splits.training_draw(16, seed=1)]
    assert splits.empty == 30 and call not in silent
    assert not {*silent} & {*drawn, *splits.records["test"], *splits.records["validation"]}
    assert call in {*drawn, *splits.records["test"], *splits.records["validation"]}


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
    changes: dict[str, Any] = {changed: (other, *rest)}
    found = replace(splits, **changes).encoding_hash
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


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [([50, 50], (70, 10, 10)), ([30, 40, 50], (10, 45, 20)), ([200, 5, 5], (150, 30, 20)), ([9] * 9, (60, 10, 11))],
)
def test_advice_of_a_refusal_works(encoder: Encoder, sizes: list[int], asked: tuple[int, int, int]) -> None:
    records = [Record("alpaca", f"ask {g}", "", f"say {i}") for g, size in enumerate(sizes) for i in range(size)]
    try:
        make_splits(source(records), encoder, *asked)
    except DataError as error:
        advised = re.findall(r"train: (\d+), validation: (\d+), test: (\d+)", str(error))
        assert bool(advised) == (len(sizes) > 2)
        for train, validation, test in advised:
            splits = make_splits(source(records), encoder, int(train), int(validation), int(test))
            assert len(splits.training_subset(int(train), 1)) == int(train) > 0


def test_where_every_answer_is_learnt_no_question_of_the_test_is_trained_on() -> None:
    def conversation(number: int, branch: int) -> Record:
        opening = (Turn("user", f"Which town has {number} towers?"), Turn("assistant", f"Town {number}."))
        return Record("messages", f"And branch {branch}?", "", f"{number} {branch}", opening)

    branches = [conversation(number, branch) for number in range(12) for branch in range(2)]
    alone = [Record("messages", f"Which town has {number} towers!", "", "Several.") for number in range(12)]
    groups = group_records([*branches, *alone], every_answer=True)
    assert sorted(map(len, groups)) == [3] * 12
    assert sorted(map(len, group_records([*branches, *alone]))) == [1] * 36  # their last questions are others


def test_a_greeting_ties_no_conversations_where_every_answer_is_learnt() -> None:
    greeting = (Turn("user", "Good day"), Turn("assistant", "Good day. What is it?"))
    records = [Record("messages", f"Question {number}?", "", "An answer.", greeting) for number in range(30)]
    assert len(group_records(records, every_answer=True)) == 30
