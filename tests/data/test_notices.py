"""What must be known of data is counted and said."""

from __future__ import annotations

from typing import Any

import pytest

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.notices import TextCounts, count_texts, source_notices, text_notices
from adaptive_lora.data.profile import profile
from adaptive_lora.data.records import Reading, Record, Turn
from adaptive_lora.data.sources import from_dicts


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer that knows five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(("[unk]", "[end]", "the", "sea", "is", "blue", "cold"))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[unk]", eos_token="[end]")


def test_unknown_tokens_and_control_tokens_are_counted_in_every_text_of_a_record(words: Any) -> None:
    records = [
        Record("text", "", "", "the sea is blue"),
        Record("alpaca", "the ocean", "is grey", "cold"),
        Record("messages", "the sea", "", "blue [end]", (Turn("user", "hello"), Turn("assistant", "[unk] cold"))),
    ]
    assert count_texts(records, words) == TextCounts(unknown_records=2, unknown_tokens=3, control_records=1)


def test_a_tokenizer_that_knows_all_bytes_meets_nothing_unknown(embedded: Any) -> None:
    assert count_texts([Record("text", "", "", "\u2615 \U0001f30a")], embedded.tokenizer) == TextCounts()


def test_a_profile_says_what_became_of_rows_columns_and_texts(words: Any) -> None:
    rows = [
        {"instruction": "the sea", "input": None, "output": "is blue", "depth": 3},
        {"instruction": "the lake", "input": "is cold", "output": "is"},
        {"instruction": "the sea", "output": ""},
        {"instruction": "the sea", "output": None},
    ]
    found = profile(from_dicts(rows, "rows"), Encoder(words, 40)).to_json()
    assert (found["rows"], found["records"], found["left_out"]) == (4, 3, {"no answer": 1})
    assert (found["missing"], found["empty_completions"]) == ({"input": 1, "output": 1}, 1)
    assert found["columns"] == {"used": ["instruction", "input", "output"], "harmless": [], "unused": ["depth"]}
    assert (found["unknown_tokens"], found["unknown_records"], found["control_records"]) == (1, 1, 0)
    said = " / ".join(found["warnings"])
    for part in (
        "the column `depth`",
        "1 record of 4 left out",
        "in `input`",
        "1 record has an empty",
        "1 token unknown",
    ):
        assert part in said
    assert not text_notices(TextCounts(), 0)
    foreign = Reading(rows=9, unused=("\x1b[31mred", *(f"c{i}" for i in range(20))))
    (named,) = source_notices(foreign)
    assert "`?[31mred`, `c0`" in named and "`c10` and 9 more;" in named
