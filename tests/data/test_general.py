"""A general text in windows: each token once, the same for every run, and clear words where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive_lora.data.encoding import Example
from adaptive_lora.data.general import WINDOWS, general_text, windows_of
from adaptive_lora.data.records import RecordSet
from adaptive_lora.data.sources import from_dicts, load_records
from adaptive_lora.errors import DataError
from adaptive_lora.training.base import FrozenBase


def windows(base: FrozenBase, text: str, max_length: int = 16, seed: int = 0) -> tuple[Example, ...]:
    return windows_of(text, base.tokenizer, max_length, seed, "text")


def no_records(source: str) -> RecordSet:
    raise AssertionError(source)


def test_windows_are_the_text_cut_and_every_token_counts(gpt2: FrozenBase) -> None:
    text = " ".join(f"the {word} is red." for word in ("cat", "sky", "old house", "pen", "apple") * 4)
    found, ids = windows(gpt2, text), gpt2.tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = found[0].prompt_length
    whole = [token for example in found for token in example.ids[begin:]]
    assert len(found) > 3 and whole == ids[: len(whole)] and len(ids) - len(whole) < 16
    assert {len(example.ids) for example in found} == {16}
    assert {example.completion_tokens for example in found} == {16 - max(begin, 1)}


def test_a_long_text_gives_a_draw_of_its_windows_that_is_the_same_again(gpt2: FrozenBase) -> None:
    text = " ".join(str(number) for number in range(3000))
    found = windows(gpt2, text)
    assert len(found) == WINDOWS and found == windows(gpt2, text) != windows(gpt2, text, seed=1)


def test_a_short_text_is_one_window(gpt2: FrozenBase) -> None:
    (found,) = windows(gpt2, "the cat is red", 64)
    assert found.completion_tokens >= 3
    with pytest.raises(DataError, match=r"text has no text to measure.*`data.general`"):
        windows(gpt2, "")


def test_texts_and_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo", encoding="utf-8")
    assert general_text(str(tmp_path / "a.txt"), no_records) == "one\n\ntwo"
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert general_text(str(tmp_path / "a.jsonl"), load_records) == "one\n\ntwo"
    asked = from_dicts([{"question": "What?", "answer": "That."}], "asked")
    assert general_text("asked", lambda _: asked) == "What?\n\nThat."
    with pytest.raises(DataError, match=r"none.txt does not exist; `data.general` takes a .txt file"):
        general_text(str(tmp_path / "none.txt"), no_records)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text: UnicodeDecodeError"):
        general_text(str(tmp_path / "b.txt"), no_records)
