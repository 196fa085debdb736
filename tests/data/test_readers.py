"""Files as they come: what is wrong with one is said where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive_lora.data.sources import load_records
from adaptive_lora.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "a"},\n {"text": "b"},\n]', "line 2, column 15: .*a comma stands before the closing `]`"),
        ("a.json", '[{"text": "a",\n}]', "line 1, column 14: .*a comma stands before the closing `}`"),
        ("a.json", "[{'text': 'a'}]", "line 1, column 3: .*double quotes"),
        ("a.json", '[{"text": None}]', "line 1, column 11: .*`None` is no JSON; write null"),
        ("a.json", '[{"text": "a\x07"}]', r"line 1, column 13: .*the control character \\u0007 stands inside a text"),
        ("a.json", '[{"text": "a"}\n {"text": "b"}]', "line 2, column 2: .*a comma is missing"),
        ("a.json", '[{"text": "a\nb"}]', r"line 1, column 13: .*write it as \\n"),
        ("a.json", '[{"text": "a"}] # all', "line 1, column 17: .*follows behind a value that is complete"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"},\n', "line 2, column 14: .*a comma stands behind the record"),
        ("a.json", '{"text": "a"},\n{"text": "b"},\n', "line 1, column 14: .*a comma stands behind the record"),
        ("a.jsonl", '{"text": "a"}\n{"text": "C:\\data"}\n', r"line 2, column 13: .*written twice"),
    ],
)
def test_slips_in_json_are_named_where_they_are(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_records(str(path))
    assert "etch it again" not in str(caught.value)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_has_a_header_and_any_usual_delimiter(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.csv"
    lines = [mark.join(cells) for cells in (["question", "answer"], ["Two lines?", '"yes,\nboth; ""so"""'], ["", "x"])]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    found = load_records(str(path)).records
    assert [(r.prompt, r.completion) for r in found] == [("Two lines?", 'yes,\nboth; "so"'), ("", "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\na,b\nc\n", "line 3: 1 cells, but the header names 2 columns"),
        ("text,text\na,b\n", "names the column `text` twice"),
        ('text\n"open\n', "not readable CSV"),
        ("text\n", "holds no records"),
    ],
)
def test_csv_that_does_not_add_up_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_records(str(tmp_path / "a.csv"))


def test_conversations_may_stand_in_cells_of_csv(tmp_path: Path) -> None:
    turns = '[{""from"": ""human"", ""value"": ""Ping""}, {""from"": ""gpt"", ""value"": ""Pong""}]'
    (tmp_path / "a.csv").write_text(f'id,conversations\n1,"{turns}"\n')
    assert load_records(str(tmp_path / "a.csv")).records[0].completion == "Pong"


def test_parquet_fills_turns_with_nulls_that_are_none(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    turns = [
        {"role": "user", "content": "Light?", "weight": None},
        {
            "role": "assistant",
            "content": "On.",
            "tool_calls": [{"name": "lamp", "arguments": {"on": True}}],
            "weight": 1,
        },
    ]
    other = [{"role": "assistant", "content": "", "tool_calls": [{"name": "door", "arguments": {"shut": True}}]}]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": turns}, {"messages": other}]), tmp_path / "a.parquet"
    )
    found = load_records(str(tmp_path / "a.parquet")).records
    assert found[0].answer().message()["tool_calls"] == [{"name": "lamp", "arguments": {"on": True}}]


def test_one_conversation_alone_in_a_file_is_a_record(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "Ping"}, {"role": "assistant", "content": "Pong"}]'
    (tmp_path / "a.json").write_text(f'{{"messages": {turns}}}')
    assert load_records(str(tmp_path / "a.json")).records[0].prompt == "Ping"
    (tmp_path / "b.json").write_text('{"version": "2", "data": [{"text": "Rain."}, {"text": "Sun."}]}')
    assert len(load_records(str(tmp_path / "b.json")).records) == 2


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.json", '{"question": "Which?", "answers": [{"text": "Tin"}, {"text": "Zinc"}]}', 1),
        ("a.json", '{"instruction": "Hum.", "output": "Mm.", "history": []}', 1),
        ("a.json", '{"text": "All tides", "data": [{"text": "Ebb."}, {"text": "Flood."}]}', 2),
        ("a.json", '{"text": "Kiel lies low.", "spans": [{"start": 0}]}', 1),
        ("A.JSONL", '[{"text": "Ebb."},\n {"text": "Flood."}]', 2),
        ("a.jsonl", '{"question": "7 + 3?", "answer": 10}\n{"question": "Even?", "answer": true}', 2),
    ],
)
def test_records_are_found_where_they_stand(tmp_path: Path, name: str, content: str, count: int) -> None:
    (tmp_path / name).write_text(content)
    found = load_records(str(tmp_path / name)).records
    assert len(found) == count
    assert [r.completion for r in found if "+" in r.prompt or "Even" in r.prompt] in ([], ["10", "true"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"question": {"0": "Tin?"}, "answer": {"0": "Yes."}}', 'orient="records"'),
        ("a.json", b'{"question": ["Tin?"], "answer": ["Yes."]}', 'orient="records"'),
        ("a.csv", "text\nSmørrebrød".encode("cp1252"), "not UTF-8 text .*Save it as UTF-8"),
        ("a.csv", "text\nfog".encode("utf-16"), "looks like UTF-16. Save it as UTF-8"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}", "line 2: a number has thousands of digits"),
    ],
)
def test_files_of_other_kinds_are_told_apart(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_records(str(tmp_path / name))
