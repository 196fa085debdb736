"""What the profile counts is what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.profile import profile, quantiles, save_histogram
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.errors import DataError
from adaptive_lora.training.base import FrozenBase

ROWS = [
    {"instruction": "Say hi", "output": "hi"},
    {"instruction": "say  HI", "output": "Hi"},
    {"instruction": "Say hi", "output": "hello"},
    {
        "instruction": "Repeat the list.",
        "input": "cat, dog, horse, cow, sheep",
        "output": "cat, dog, horse, cow, sheep",
    },
    {"instruction": "cat " * 40, "output": ""},
]


def test_counts_lengths_and_samples(gpt2: FrozenBase) -> None:
    encoder = Encoder(gpt2.tokenizer, 24)
    source = from_dicts(ROWS, "rows")
    found = profile(source, encoder)
    lengths = [len(Encoder(gpt2.tokenizer, 999).encode(r).ids) for r in source.records]

    assert (found.records, found.duplicates, found.same_prompt, found.empty_completions) == (5, 0, 2, 1)
    assert [p + c for p, c in zip(found.prompt_tokens, found.completion_tokens, strict=True)] == lengths
    assert (found.truncated, found.without_room) == (1, 1)
    assert len(found.samples) == 3
    assert found.samples[0].learnt == "hi<|endoftext|>"
    assert found.samples[0].masked.endswith("### Response:")
    assert found.to_json()["truncated_share"] == 0.2


def test_quantiles_by_hand() -> None:
    assert quantiles([1, 2, 3, 4, 5]) == {"min": 1, "q25": 2, "median": 3, "q75": 4, "q95": 4.8, "max": 5}


def test_histogram_is_written_as_a_picture(gpt2: FrozenBase, tmp_path: Path) -> None:
    found = profile(from_dicts(ROWS, "rows"), Encoder(gpt2.tokenizer, 24))
    save_histogram(found, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"\.png, \.pdf or \.svg"):
        save_histogram(found, tmp_path / "lengths.gif")
