"""Templates, masks and truncation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.records import Record
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.data.templates import ALPACA_WITHOUT_INPUT, choose_template, render
from adaptive_lora.errors import DataError
from adaptive_lora.training.base import FrozenBase

RECORD = Record("alpaca", "Add the two numbers.", "1 and 2", "3")


def test_alpaca_prompts_are_the_published_ones() -> None:
    with_input, _ = render(RECORD, "alpaca")
    without, completion = render(Record("alpaca", "Hi", "", "yo"), "alpaca")
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd the two numbers.\n\n### Input:\n"
        "1 and 2\n\n### Response:"
    )
    assert without.startswith("Below is an instruction that describes a task. Write a response")
    assert without.endswith("### Instruction:\nHi\n\n### Response:")
    assert completion == "yo"


def test_a_question_is_called_one() -> None:
    record = from_dicts([{"question": "2+2?", "answer": "<<2+2=4>>4"}], "x").records[0]
    assert render(record, "question") == ("Question: 2+2?\n\nAnswer: ", "<<2+2=4>>4")
    assert render(Record("alpaca", "Add.", "2 and 2", "4"), "question")[0] == "Question: Add.\n2 and 2\n\nAnswer: "


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_placeholders_inside_records_stay_text(instruction: str, context: str) -> None:
    text, _ = render(Record("alpaca", instruction + "{input}", context + "{instruction}", ""), "alpaca-short")
    assert (
        text == f"### Instruction:\n{instruction}{{input}}\n\n### Input:\n{context}{{instruction}}\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("form", "chosen"),
    [("alpaca", "alpaca"), ("prompt-completion", "plain"), ("text", "plain"), ("question-answer", "question")],
)
def test_auto_goes_by_form_where_there_is_no_chat_template(embedded: FrozenBase, form: str, chosen: str) -> None:
    assert choose_template("auto", form, embedded.tokenizer) == chosen


def test_chat_without_a_chat_template_is_refused(embedded: FrozenBase) -> None:
    with pytest.raises(DataError, match=r"tokenizer has no chat template.*template: alpaca"):
        choose_template("auto", "messages", embedded.tokenizer)


def chat(*turns: tuple[str, str]) -> Record:
    return from_dicts(
        [{"messages": [{"role": r, "content": c} for r, c in (*turns, ("assistant", "yo"))]}], "x"
    ).records[0]


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("plain", "", "\n"),
        ("alpaca-short", "### Instruction:\n", "\n\n### Response:\n"),
        ("question", "Question: ", "\n\nAnswer: "),
        ("alpaca", ALPACA_WITHOUT_INPUT.partition("{")[0], "\n\n### Response:"),
    ],
)
def test_templates_without_roles_show_every_turn(template: str, before: str, after: str) -> None:
    several = chat(("system", "Be kind."), ("user", "Topic {input}"), ("assistant", ""), ("user", "Go on."))
    assert render(several, template) == (f"{before}Be kind.\nTopic {{input}}\nGo on.{after}", "yo")
    for turns in ([("user", "hi\n")], [("system", "hi\n")], []):  # as one question, or none at all
        asked = turns[0][1] if turns else ""
        end = after if template != "plain" else ""  # the line is broken, or nothing stands there
        assert render(chat(*turns), template) == (f"{before}{asked}{end}", "yo")


@pytest.mark.parametrize("form", ["alpaca", "question-answer", "messages", "prompt-completion", "summary", "text"])
def test_plain_breaks_the_line_before_an_answer_that_does_not_go_on(form: str) -> None:
    goes_on = form in ("prompt-completion", "summary", "text")
    asked = "Which fish?" + "\n" * (not goes_on)
    assert render(Record(form, "Which fish?", "", "eel"), "plain") == (asked, "eel")
    assert render(Record(form, "", "", "eel"), "plain") == ("", "eel")


def test_other_histories_are_other_prompts_to_the_model(gpt2: FrozenBase) -> None:
    records = [chat(("user", f"Topic {i}"), ("assistant", "ok"), ("user", "Go on.")) for i in range(20)]
    for template in ("plain", "alpaca-short"):
        prompts = [e.ids[: e.prompt_length] for e in Encoder(gpt2.tokenizer, 64, template).encode_all(records)]
        assert len(set(prompts)) == len({record.prompt_key() for record in records}) == 20


def test_prompt_is_masked_and_completion_ends_the_text(embedded: FrozenBase) -> None:
    tokenizer = embedded.tokenizer
    example = Encoder(tokenizer, 128).encode(RECORD)
    prompt, completion = Encoder(tokenizer, 128).render(RECORD)
    assert tokenizer.decode(example.ids[: example.prompt_length]) == prompt
    assert tokenizer.decode(example.ids[example.prompt_length :]) == completion + "<|endoftext|>"
    assert example.completion_tokens == 2
    assert not example.truncated


def test_truncation_takes_the_end_and_is_reported(gpt2: FrozenBase) -> None:
    record = Record("text", "", "", "cat, dog, horse, cow, sheep, goat")
    whole = Encoder(gpt2.tokenizer, 64).encode(record)
    cut = Encoder(gpt2.tokenizer, 5).encode(record)
    assert cut.ids == whole.ids[:5]
    assert cut.truncated and not whole.truncated


def test_a_prompt_that_fills_the_length_leaves_nothing_to_learn(gpt2: FrozenBase) -> None:
    example = Encoder(gpt2.tokenizer, 4).encode(RECORD)
    assert example.completion_tokens == 0


def test_plain_text_learns_all_but_the_first_token(gpt2: FrozenBase) -> None:
    example = Encoder(gpt2.tokenizer, 64).encode(Record("text", "", "", "cat, dog"))
    assert example.prompt_length == 0
    assert example.completion_tokens == len(example.ids) - 1


def test_encoding_many_is_encoding_each(gpt2: FrozenBase) -> None:
    encoder = Encoder(gpt2.tokenizer, 64)
    records = [Record("alpaca", f"say {i}", "", str(i)) for i in range(600)]
    assert list(encoder.encode_all(records)) == [encoder.encode(r) for r in records]
