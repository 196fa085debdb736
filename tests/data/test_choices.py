"""Numbers as answers of multiple choice: counted from 0 or from 1, and said where the data leave it open."""

from __future__ import annotations

import pytest

from adaptive_lora.data.notices import source_notices
from adaptive_lora.data.sources import from_dicts


@pytest.mark.parametrize(
    ("answers", "learnt", "is_open"),
    [
        ((0, 1), ("A. rye", "B. oats"), False),
        ((3, 1), ("C. maize", "A. rye"), False),
        ((1, 2), ("B. oats", "C. maize"), True),
    ],
)
def test_what_numbers_count_from_is_decided_over_all_rows_and_said_where_it_is_open(
    answers: tuple[int, int], learnt: tuple[str, str], is_open: bool
) -> None:
    rows = [
        {"question": f"Field {i}?", "options": ["rye", "oats", "maize"], "answer": n} for i, n in enumerate(answers)
    ]
    found = from_dicts(rows, "rows")
    assert tuple(record.completion for record in found.records) == learnt
    assert any("counted from 0" in notice for notice in source_notices(found.reading)) == is_open
