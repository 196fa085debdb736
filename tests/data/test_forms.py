"""Records as people have them: every column is used, harmless or named; nothing that asks is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adaptive_lora.data.records import Record, Turn
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.errors import DataError

NAN = float("nan")


def only(row: dict[str, Any]) -> Record:
    return from_dicts([row], "rows").records[0]


@pytest.mark.parametrize(
    ("row", "form", "prompt", "context", "completion"),
    [
        ({"instruction": "Why?", "context": "Ice floats.", "response": "It is light."}, "alpaca", "Why?", "Ice floats.",
         "It is light."),
        ({"input": "7 times 6", "output": "42"}, "alpaca", "7 times 6", "", "42"),
        ({"instruction": "Turn round.", "input": "abc", "output": "cba", "text": "Turn round. abc -> cba"}, "alpaca",
         "Turn round.", "abc", "cba"),
        ({"instruction": "Name it.", "text": "Round and red.", "output": "Apple"}, "alpaca", "Name it.",
         "Round and red.", "Apple"),
        ({"source": "Guten Tag", "target": "Good day"}, "alpaca", "Guten Tag", "", "Good day"),
        ({"prompt": "Once", "response": " more"}, "prompt-completion", "Once", "", " more"),
        ({"Question": "Whose?", "Context": "Ann's cup.", "Answer": "Ann's"}, "question-answer", "Whose?", "Ann's cup.",
         "Ann's"),
        ({"question": "Sum?", "table": [[1, 2], [3, 4]], "hint": "Add.", "answer": "10"}, "question-answer", "Sum?",
         "[[1, 2], [3, 4]]\nAdd.", "10"),
        ({"question": "Where?", "context": "In Rome.", "answers": {"text": ["Rome", "In Rome"], "start": [3, 0]}},
         "question-answer", "Where?", "In Rome.", "Rome"),
        ({"article": "Long news.", "highlights": "News."}, "summary", "Long news.\n\nTL;DR: ", "", "News."),
        ({"text": "Long tale.", "summary": "Tale."}, "summary", "Long tale.\n\nTL;DR: ", "", "Tale."),
    ],
)  # fmt: skip
def test_questions_with_answers(row: dict[str, Any], form: str, prompt: str, context: str, completion: str) -> None:
    found = from_dicts([row], "rows")
    assert found.records == (Record(form, prompt, context, completion, row=0),)
    assert found.form == form and not found.reading.unused


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["oak", "elm"], "answer": 1},
        {"choices": ["oak", "elm"], "answer": "B"},
        {"options": ["oak", "elm"], "answer": "elm"},
        {"options": {"A": "oak", "B": "elm"}, "answer": "(b)"},
        {"choices": {"text": ["oak", "elm"], "label": ["1", "2"]}, "answerKey": "2"},
        {"choices": [{"label": "P", "text": "oak"}, {"label": "Q", "text": "elm"}], "answerKey": "Q"},
        {"A": "oak", "B": "elm", "answer": "B"},
        {"opa": "oak", "opb": "elm", "cop": 1},
        {"option1": "oak", "option2": "elm", "answer": "2"},
        {"choices": '["oak", "elm"]', "answer": "1"},
    ],
)
def test_choices_are_lettered_and_the_right_line_is_learnt(row: dict[str, Any]) -> None:
    found = only({"question": "Which is taller?", **row})
    assert (found.context, found.completion) == ("A. oak\nB. elm", "B. elm")


def test_a_choice_that_is_none_is_refused_and_one_not_told_is_left_out() -> None:
    row = {"question": "Which?", "choices": ["oak", "elm"], "answer": 1}
    found = from_dicts([row, {**row, "answer": -1}, {**row, "answer": ""}, {**row, "answer": None}], "rows")
    assert (len(found.records), found.reading.left_out) == (1, {"no answer": 3})
    with pytest.raises(
        DataError, match=r"record 2: `answer` is 'ash', which is none of the options \(A: oak, B: elm\)"
    ):
        from_dicts([row, {**row, "answer": "ash"}], "rows")


def test_system_and_history_are_turns() -> None:
    row = {
        "instruction": "Louder.",
        "input": "",
        "output": "RAIN",
        "system": "Shout.",
        "history": [["What falls?", "rain"]],
    }
    found = only(row)
    assert found.before() == (
        Turn("system", "Shout."), Turn("user", "What falls?"), Turn("assistant", "rain"), Turn("user", "Louder."),
    )  # fmt: skip
    assert found.prompt_key() != only({**row, "system": "Whisper."}).prompt_key()
    with pytest.raises(DataError, match=r"record 1: `history` must be a list of \[question, answer\] pairs"):
        only({**row, "history": [["alone"]]})


SHARE = [("system", "Rhyme."), ("human", "moon"), ("gpt", "June"), ("human", "star"), ("gpt", "far")]


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_sharegpt(column: str) -> None:
    found = only({"id": "z1", column: [{"from": who, "value": said} for who, said in SHARE]})
    assert (found.form, found.prompt, found.completion) == ("messages", "star", "far")
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]
    with pytest.raises(DataError, match=r"record 1: a turn's speaker is 'narrator', which is unknown\. .*human.*gpt"):
        only({column: [{"from": "narrator", "value": "Night fell."}]})


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"mask": True}])
def test_turns_of_weight_zero_are_context_only(mark: dict[str, Any]) -> None:
    turns = [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "uno", **mark},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "due", "weight": None},
        {"role": "user", "content": "three"}, {"role": "assistant", "content": "tre", **mark},
    ]  # fmt: skip
    found = only({"messages": turns})
    assert (found.prompt, found.completion) == ("two", "due")
    assert found.turns == (Turn("user", "one"), Turn("assistant", "uno", learnt=False))
    both = from_dicts([{"messages": turns}, {"messages": turns[:2]}], "rows")
    assert (len(both.records), both.reading.left_out) == (1, {"no turn that may be learnt": 1})
    with pytest.raises(DataError, match=r"`weight` of a turn is 0\.5\. Write 1"):
        only({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]})


def test_tool_calls_are_the_answer_and_their_arguments_objects() -> None:
    call = {"id": "k", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Brest"}'}}
    tools = [{"type": "function", "function": {"name": "tide"}}]
    asked = {"role": "user", "content": "Tide?"}
    row = {
        "messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": json.dumps(tools),
    }
    found = only(row)
    assert found.answer().message()["tool_calls"][0]["function"]["arguments"] == {"port": "Brest"}
    assert (found.completion, found.is_empty, json.loads(found.tools)) == ("", False, tools)
    said = [
        *row["messages"],
        {"role": "tool", "content": "high", "tool_call_id": "k"},
        {"role": "assistant", "content": "High."},
    ]
    later = only({**row, "messages": said})
    assert later.turns[-1].message() == {"role": "tool", "content": "high", "tool_call_id": "k"}
    broken = {**call, "function": {"name": "tide", "arguments": "{port"}}
    kept = only({"messages": [asked, {"role": "assistant", "content": "", "tool_calls": [broken]}]})
    assert kept.answer().message()["tool_calls"][0]["function"]["arguments"] == "{port"


def test_a_call_in_sharegpt_is_a_call() -> None:
    value = json.dumps({"name": "tide", "arguments": {"port": "Brest"}})
    found = only({"conversations": [{"from": "human", "value": "Tide?"}, {"from": "function_call", "value": value}]})
    assert found.answer().message()["tool_calls"][0]["function"]["name"] == "tide" and not found.completion


def test_null_and_nan_are_empty_where_they_may_be_and_counted() -> None:
    row = {"instruction": "Sing.", "input": "softly", "output": "la"}
    found = from_dicts([row, {**row, "input": NAN}, {**row, "input": None}, {**row, "output": NAN}], "rows")
    assert [record.context for record in found.records] == ["softly", "", ""]
    assert [record.row for record in found.records] == [0, 1, 2]
    assert (found.reading.missing, found.reading.left_out) == ({"input": 2, "output": 1}, {"no answer": 1})
    with pytest.raises(DataError, match=r"none of its 2 records can be learnt: 2 have no answer in `output`"):
        from_dicts([{**row, "output": None}] * 2, "rows")


def test_pandas_missing_values_are_missing() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"question": ["How?", "Why?"], "context": pd.array(["", None], dtype="string"), "answer": "So."}
    )
    found = from_dicts(frame.to_dict("records"), "frame")
    assert [record.context for record in found.records] == ["", ""]


def test_every_column_is_used_harmless_or_named() -> None:
    turns = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Aha.", "mood": "calm", "id": 3}]
    found = from_dicts(
        [{"messages": turns, "prompt": "Hm?", "prompt_id": "p", "score": 4, "notes": None}], "rows"
    ).reading
    assert found.used == ("messages",)
    assert set(found.harmless) == {"prompt", "prompt_id"}  # the prompt stands in the conversation too
    assert set(found.unused) == {"score", "messages.mood"}


@pytest.mark.parametrize("column", ["context", "passage", "schema", "options", "question"])
def test_a_column_that_asks_is_never_dropped(column: str) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    with pytest.raises(DataError, match=rf"the column `{column}` may hold part of the question"):
        from_dicts([{"messages": turns, column: "A knock at the door."}], "rows")


def test_an_empty_column_counts_as_none() -> None:
    assert only({"text": "Fog.", "summary": "", "context": None}) == Record("text", "", "", "Fog.", row=0)


def test_turns_may_come_as_a_mapping_of_lists() -> None:
    found = only({"conversations": {"from": ["human", "gpt"], "value": ["Tick?", "Tock."]}})
    assert (found.prompt, found.completion) == ("Tick?", "Tock.")


def test_two_system_prompts_that_differ_are_refused() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes."}]
    assert len(only({"messages": turns, "system": "Be brief."}).turns) == 1
    with pytest.raises(DataError, match=r"record 1: its system turn and its own column of one differ \('Be long\.'\)"):
        only({"messages": turns, "system": "Be long."})


def test_questions_with_and_without_options_may_stand_together() -> None:
    rows = [{"question": "Which?", "options": ["oak", "elm"], "answer": "elm"}, {"question": "Why?", "answer": "So."}]
    assert [record.completion for record in from_dicts(rows, "rows").records] == ["B. elm", "So."]
    sums = {"question": "a + b?", "answer": "7", "a": 3, "b": 4}
    assert from_dicts([sums], "rows").reading.unused == ("a", "b")


def painted(n: int) -> list[dict[str, Any]]:
    rows = [{"instruction": f"Paint house {i}.", "input": "" if i % 2 else f"shade {i}", "output": f"It is hue {i}."}
            for i in range(n)]  # fmt: skip
    for row in rows:
        row["text"] = (
            f"Below is a task.\n\n### Task:\n{row['instruction']}\n\n{row['input']}\n### Reply:\n{row['output']}"
        )
    return rows


def test_a_record_written_out_is_no_context_whatever_single_rows_lack() -> None:
    rows = painted(6)
    rows[1]["output"] = ""
    rows[2]["text"] = rows[2]["text"].replace("It is", "It  is\n") + "</s>"
    found = from_dicts(rows, "rows")
    assert [record.context for record in found.records] == ["shade 0", "", "shade 2", "", "shade 4", ""]
    assert found.reading.harmless == ("text",)
    prompts = [{**row, "prompt": row["text"].split("### Reply")[0]} for row in rows]
    assert set(from_dicts(prompts, "rows").reading.harmless) == {"text", "prompt"}
    with pytest.raises(DataError, match=r"`text` holds question and answer together in 5 of 7 .* record 1\)"):
        from_dicts([*rows, *({**rows[0], "text": f"Paint it {mood}."} for mood in ("dim", "wild"))], "rows")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Grade", "input": "Grade as fair or foul: dull play", "output": "fair"},
        {"question": "Port?", "context": "Port? It is Brest, says the map.", "answer": "Brest"},
        {"instruction": "Grade the play.", "prompt": "Grade the play. It was dull.", "output": "foul"},
    ],
)
def test_what_a_question_is_about_stays_though_it_names_the_answer(row: dict[str, Any]) -> None:
    asked, about, _ = row.values()
    assert (only(row).prompt, only(row).context) == (asked, about)


def test_a_text_with_an_answer_is_the_question() -> None:
    found = from_dicts([{"text": "Is tin a metal?", "response": "Yes."}], "rows")
    assert (found.form, found.records[0].prompt, found.records[0].completion) == (
        "question-answer", "Is tin a metal?", "Yes.",
    )  # fmt: skip


TREES = [{"choice1": "oak", "choice2": "elm"}, {"choice1": "ash", "choice2": "fir"}]


@pytest.mark.parametrize(
    ("answers", "lines"),
    [
        ([0, 1], ["A. oak", "B. fir"]),
        (["1", "0"], ["B. elm", "A. ash"]),
        ([2, 1], ["B. elm", "A. ash"]),
        (["1", "2"], ["A. oak", "B. fir"]),
        ([1, 1], ["B. elm", "B. fir"]),
        (["A", "fir"], ["A. oak", "B. fir"]),
    ],
)
def test_numbers_count_from_0_or_1_in_all_rows(answers: list[Any], lines: list[str]) -> None:
    for rows in (TREES, [{"options": list(row.values())} for row in TREES]):
        asked = [{"question": "Which?", **row, "label": a} for row, a in zip(rows, answers, strict=True)]
        assert [record.completion for record in from_dicts(asked, "rows").records] == lines


def test_what_numbers_mean_is_said_and_holds_for_other_columns() -> None:
    social = {"context": "Kai fell.", "question": "Then?", "answerA": "rise", "answerB": "lie", "answerC": "run"}
    rows = [{**social, "label": said} for said in ("1", "3")]
    assert [record.completion for record in from_dicts(rows, "rows").records] == ["A. rise", "C. run"]
    with pytest.raises(DataError, match=r"`label` is 9, .*\(A: rise, B: lie, C: run\); numbers count from 1"):
        from_dicts([*rows, {**social, "label": 9}], "rows")
    with pytest.raises(DataError, match=r"`label` is 2, which is none .* numbers count from 0"):
        from_dicts([{"question": "Which?", **TREES[0], "label": said} for said in (0, 2)], "rows")


@pytest.mark.parametrize("kind", [int, str])
def test_numbers_that_are_options_themselves_are_texts(kind: type) -> None:
    sums = [{"question": "3 + 4?", "choices": ["6", "7", "8"], "answer": kind(7)}]
    assert from_dicts(sums, "rows").records[0].completion == "B. 7"
    mixed = [*sums, {"question": "Most?", "choices": ["9", "2", "1"], "answer": kind(0)}]
    assert [record.completion for record in from_dicts(mixed, "rows").records] == ["B. 7", "A. 9"]


ASKED = [{"role": "user", "content": "How deep?"}]
REPLY = [{"role": "assistant", "content": "Nine metres."}]


@pytest.mark.parametrize("write", [list, json.dumps])
def test_prompts_of_turns_keep_their_context_and_may_be_json(write: Any) -> None:
    found = only({"prompt": write(ASKED), "context": "The lake.", "completion": write(REPLY)})
    assert (found.prompt, found.context, found.completion) == ("How deep?", "The lake.", "Nine metres.")
    assert only({"prompt": "How deep?", "completion": write(REPLY)}).before() == (Turn("user", "How deep?"),)


def test_answers_that_are_not_wanted_are_left_out_and_counted() -> None:
    rows = [{"prompt": "Sum?", "completion": said, "label": said == "4"} for said in ("4", "5")]
    found = from_dicts(rows, "rows")
    assert [record.completion for record in found.records] == ["4"]
    assert found.reading.left_out == {"not wanted (`label` is false)": 1} and not found.reading.unused


def test_turns_of_merged_files_have_the_keys_of_both() -> None:
    turns = [{"from": "human", "value": "Oars?", "role": None, "content": None},
             {"role": "assistant", "content": "Two.", "from": None, "value": None}]  # fmt: skip
    assert (only({"messages": turns}).prompt, only({"messages": turns}).completion) == ("Oars?", "Two.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Sea?", "answer": "wave \ud83c"}, r"record 1: its text holds half a character \(\\ud83c\)"),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": ["sound()"]}]}, "record 1: each of `tool_calls`"),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"function": None}]}]}, "each of `tool_calls`"),
        ({"messages": [*ASKED, *REPLY], "tools": [{"function": None}]}, "record 1: each of `tools` must be"),
    ],
)
def test_what_no_model_can_read_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        only(row)


def test_preferences_are_learnt_from_what_was_chosen_and_say_so() -> None:
    for chosen in ("Nine metres.", REPLY, [*ASKED, *REPLY]):
        found = from_dicts([{"prompt": "How deep?", "chosen": chosen, "rejected": "Dunno."}], "rows")
        assert found.records[0].before() == (Turn("user", "How deep?"),)
        assert (found.records[0].completion, found.reading.unused) == ("Nine metres.", ("rejected",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ctx": "Snow.", "endings": ["Melts.", "Sings."], "label": "0"}, "Rename `ctx` to `question` and `endings`"),
        ({"chosen": "Human: Hm?", "rejected": "Human: Ha?"}, "Rename `chosen` to `messages` if it holds turns"),
        ({"question": "Tin?", "answer": {"said": "Yes."}}, "record 1: `answer` must be text, got a dict"),
    ],
)
def test_an_error_names_the_rename_that_works(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        only(row)
    renamed = {"ctx": "question", "endings": "choices", "chosen": "text", "answer": "mood"}
    if "answer" not in row:
        assert only({renamed.get(column, column): value for column, value in row.items()}).completion
