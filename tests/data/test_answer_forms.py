"""What of an answer counts: numbers as people write them, GSM8K's mark, texts."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest

from adaptive_lora.data.answer_forms import AnswerForm, form_of, is_right, last_number, marked_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 x 4 = 12, that is $1,234.50.", Fraction(2469, 2)),
        ("x = -3/4", Fraction(-3, 4)),
        ("10-5", Fraction(5)),  # a difference, and no sign
        ("from 5 to −7", Fraction(-7)),
        ("1,2,3", Fraction(3)),
        ("<<3*4=12>>12 apples", Fraction(12)),
        ("about 1e3", Fraction(1000)),
        (".5", Fraction(1, 2)),
        ("50%", Fraction(50)),
        ("1/0", None),  # is no number
        ("model v1.2.3 of the B2 kind", None),
        ("9" * 500, None),  # longer than anything that is reckoned with
        ("", None),
    ],
)
def test_the_last_number_is_read_as_it_is_written(text: str, number: Fraction | None) -> None:
    assert last_number(text) == number


def test_the_number_behind_the_last_mark_counts_and_nothing_before_it() -> None:
    assert marked_number("#### 3\nno, 4 + 3\n#### 7 apples, 2 of them red") == 7
    assert marked_number("#### $1,200.50") == Fraction(2401, 2) and marked_number("####-3") == -3
    assert marked_number("7") is None and marked_number("7 ####") is None
    assert marked_number("#### Step 3: add") is None  # a heading


@pytest.mark.parametrize(
    ("answer", "reference", "asked", "right"),
    [
        ("so\n#### 1,000", "2 x 500\n#### 1000", "auto", True),
        ("so\n#### 1000.0 dollars", "#### $1000", "auto", True),
        ("It is 1000", "#### 1000", "auto", False),  # where the reference has the mark, so must the answer
        ("It is 1000", "#### 1000", "number", True),
        ("It must be 7.", "7", "auto", True),
        ("7 or 8", "7", "auto", False),
        ("No number", "7", "auto", False),
        (" The  Answer.\n", "the answer", "auto", True),
        ("the answer is", "the answer", "auto", False),
        ("7", "7 apples", "auto", False),  # a text, of which the number is only a part
        ("7", "7 apples", "number", True),
        ("", "", "text", True),
    ],
)
def test_right_is_what_gives_the_same(answer: str, reference: str, asked: AnswerForm, right: bool) -> None:
    assert is_right(answer, reference, asked) is right


def test_a_record_says_itself_what_counts() -> None:
    references = ("a\n#### 5", "-1,200.50", "$5", "five", "5 apples", "#### none", "")
    assert [form_of(r) for r in references] == ["marked", "number", "number", "text", "text", "text", "text"]
    assert form_of("five", "number") == "number"


def test_a_long_answer_takes_no_long_time() -> None:
    began = time.process_time()
    for text in ("1,111" * 20_000, "/".join("1" * 20_000), "-" * 20_000 + "1", "1e" * 20_000, "#" * 20_000):
        last_number(text)
        marked_number(text)
    assert time.process_time() - began < 2


def test_every_answer_of_gsm8k_has_its_number(assets: Path) -> None:
    lines = (assets / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) > 1000 and {form_of(answer) for answer in answers} == {"marked"}
    assert all(is_right(f"So it is\n#### {marked_number(answer)}.", answer) for answer in answers)
    assert all(last_number(answer) == marked_number(answer) for answer in answers)
