"""What a study says of its data: counts, warnings, and where every row went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.data.sources import from_dicts
from adaptive_lora.reporting.templating import render
from adaptive_lora.study.data_facts import SPLIT_COLUMNS, splits_csv
from adaptive_lora.study.prepare import PreparedStudy, prepare
from adaptive_lora.study.study_file import load_study

ROWS = [
    *({"instruction": f"Count to {i}", "input": None, "output": f"{i} {i % 7}", "mood": "calm"} for i in range(70)),
    *({"instruction": f"Count to {i}", "input": "", "output": f"{i} {i % 7}", "mood": ""} for i in range(5)),
    *({"instruction": f"Wait {i}", "input": "here", "output": ""} for i in range(3)),
    *({"instruction": f"List {i}", "output": "cat, dog, horse " * 30} for i in range(20)),
    {"instruction": "Stop.", "output": None},
]


@pytest.fixture
def prepared(study_file: Callable[..., Path], tmp_path: Path) -> PreparedStudy:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return prepare(load_study(study_file(("demo:fine-tuning", "rows.json"))), "cpu")


def test_a_study_counts_what_became_of_its_data(prepared: PreparedStudy) -> None:
    data = prepared.facts()["data"]
    assert (data["rows"], data["records"], data["left_out"]) == (99, 98, {"no answer": 1})
    assert (data["missing"], data["unused_columns"]) == ({"input": 70, "output": 1}, ["mood"])
    assert (data["duplicates"], data["empty"], data["idle"]) == (5, 3, 0)
    assert data["truncated_test"] + data["truncated_validation"] + data["truncated_training"] > 0
    warnings = " / ".join(prepared.warnings())
    for said in ("`mood`", "1 record of 99 left out: no answer", "null or NaN in `input`", "3 records have an empty",
                 "answers are cut at 64 tokens"):  # fmt: skip
        assert said in warnings
    sentence = render("study.use_of_data", data)
    assert (
        "99 rows; 1 left out (no answer)" in sentence
        and " 0 " not in sentence
        and "columns that are not used: mood" in sentence
    )
    assert render("study.use_of_data", {"records": 9, "duplicates": 1}) == ""  # exports of before


def test_every_row_is_found_again(prepared: PreparedStudy, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(splits_csv(prepared.facts()["splits"]))
    table = pd.read_csv(tmp_path / "splits.csv")
    assert tuple(table.columns) == SPLIT_COLUMNS
    by_split = {name: set(own["row"]) for name, own in table.groupby("split")}
    assert {name: len(rows) for name, rows in by_split.items() if name != "training"}.items() >= {
        ("test", 20), ("validation", 10),
    }  # fmt: skip
    assert not by_split["test"] & by_split["validation"] and not by_split["pool"] & by_split["test"]
    assert by_split["training"] <= by_split["pool"]
    encoder = prepared.splits.encoder
    whole = from_dicts(ROWS, "rows").records
    tested = table[table["split"] == "test"].sort_values("record")["row"]
    assert [encoder.encode(whole[row]) for row in tested] == list(prepared.splits.test)
    for seed in (*prepared.study.spec.seeds.evaluation, *prepared.study.spec.seeds.tuning):
        drawn = table[(table["split"] == "training") & (table["seed"] == seed)].sort_values("record")["row"]
        assert [encoder.encode(whole[row]) for row in drawn] == list(prepared.training_examples(seed))
