"""Data in every form, and every way in which it can be bad."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.data import records
from adaptive_lora.data.records import Record, Turn
from adaptive_lora.data.sources import from_dicts, load_records
from adaptive_lora.errors import DataError

ALPACA = [{"instruction": "Say hi", "input": "", "output": "hi"}, {"instruction": "Add", "input": "1 2", "output": "3"}]
PAIRS = [{"prompt": "a", "completion": "b"}]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yo"},
        ]
    }
]
TEXT = [{"text": "once upon a time"}]


def write(path: Path, rows: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("rows", "form", "prompt", "completion"),
    [
        (ALPACA, "alpaca", "Say hi", "hi"),
        (PAIRS, "prompt-completion", "a", "b"),
        (CHAT, "messages", "hi", "yo"),
        (TEXT, "text", "", "once upon a time"),
        ([{"question": "2+2?", "answer": "4"}], "question-answer", "2+2?", "4"),
    ],
)
def test_forms_are_recognised_in_every_file_kind(
    tmp_path: Path, ending: str, rows: list[dict[str, Any]], form: str, prompt: str, completion: str
) -> None:
    found = load_records(str(write(tmp_path / f"data{ending}", rows)))
    assert (found.form, found.records[0].prompt, found.records[0].completion) == (form, prompt, completion)
    assert len(found.records) == len(rows)


def test_chat_learns_the_last_assistant_turn() -> None:
    turns = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    record = from_dicts([row], "x").records[0]
    assert (record.completion, record.prompt, record.turns) == ("4", "3", (Turn("user", "1"), Turn("assistant", "2")))


def test_text_parts_of_a_turn_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "assistant", "content": parts}]}
    assert from_dicts([row], "x").records[0].completion == "ab"


def test_json_lines_named_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    assert len(load_records(str(path)).records) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.json", '[{"instruction": "a", "output": "b"}, {"instr', r"line 1, column \d+: not valid JSON.*cut short"),
        ("cut.jsonl", '{"text": "a"}\n{"text": ', r"line 2, column 10: not valid JSON.*cut short"),
        ("empty.json", "", "is empty"),
        ("none.json", "[]", "holds no records"),
        ("blank.jsonl", "\n\n", "holds no records"),
        ("keys.json", '[{"ask": "a", "say": "b"}]', "records have `ask`, `say`; expected `messages` or .*question"),
        ("late.json", '[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "record 2: no `output`"),
        ("type.json", '[{"instruction": "a", "output": [[3]]}]', "record 1: `output` must be text, got a list"),
        ("scalar.json", "3", "expected a list of records"),
        ("list.json", '["a"]', "record 1: expected an object, got a str"),
        ("data.txt", "hello", "files ending in .txt are not read"),
        ("binary.json", b"\xff\xfe\x00", "not UTF-8"),
        ("bad.parquet", "PAR1", "not a readable Parquet file"),
        ("chat.json", '[{"messages": [{"role": "user", "content": "x"}]}]', "no assistant turn"),
        ("turns.json", '[{"messages": ["x"]}]', "list of {role, content}"),
        (
            "null.json",
            '[{"messages": [{"role": "assistant", "content": null}]}]',
            "none of its 1 records can be .*no answer",
        ),
        ("image.json", '[{"messages": [{"role": "assistant", "content": [{"type": "x"}]}]}]', "content is text"),
    ],
)
def test_bad_files_get_one_clear_message(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_records(str(path))
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_records(str(tmp_path / "none.json"))


def test_a_hub_name_without_the_hub_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"tatsu-lab/alpaca could not be loaded from the hub.*doctor.*local"):
        load_records("tatsu-lab/alpaca")


def test_a_configuration_of_a_data_set_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the library takes owner/name for a folder where there is one
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = {"main": "two", "socratic": "How much is 1 + 1? two"}
    for name, answer in texts.items():
        folder = tmp_path / "owner" / "sums" / name
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": answer}))
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in texts]
    (tmp_path / "owner" / "sums" / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    for name, answer in texts.items():
        assert [r.completion for r in load_records(f"owner/sums:{name}").records] == [answer]
    with pytest.raises(DataError, match=r"owner/sums:other could.*'main', 'socratic'.*owner/name:configuration"):
        load_records("owner/sums:other")


def test_prompts_are_compared_by_their_letters_and_contents_as_they_are() -> None:
    a = Record("alpaca", "Say  Hi", "", "yes")
    b = Record("alpaca", "say hi!", "", "yes")
    c = Record("alpaca", "say hi", "", "Yes")
    assert len({a.content_key(), b.content_key(), c.content_key(), replace(c, row=4).content_key()}) == 3
    assert a.prompt_key() == b.prompt_key() == c.prompt_key()
    assert a.place_key() == c.place_key() != b.place_key()
    marks = [Record("alpaca", "", mark, "") for mark in ("...", ".-.", "+", "-")]
    assert len({record.prompt_key() for record in marks}) == 4  # where marks are all there is, they count
    assert Record("alpaca", "a b", "", "").prompt_key() != Record("alpaca", "a", "b", "").prompt_key()


def test_letters_count_alike_in_plain_and_other_text() -> None:
    for place in range(128):
        text = f"A{chr(place)}b"
        assert records._letters(f"{text}ü") == f"{records._letters(text)}ü", repr(text)


def test_fingerprint_is_of_the_content() -> None:
    assert from_dicts(ALPACA, "one").fingerprint() == from_dicts(ALPACA, "two").fingerprint()
    assert from_dicts(ALPACA, "one").fingerprint() != from_dicts(ALPACA[::-1], "one").fingerprint()
