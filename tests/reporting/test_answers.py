"""What models answered, on the page: beside each other, escaped, and the same of an export."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.answers import answers_of
from adaptive_lora.reporting.exported import export_study, open_findings
from adaptive_lora.reporting.html.page import render_page
from adaptive_lora.study.archive import read_archive
from adaptive_lora.study.open_ledger import create_or_open
from tests.reporting.ledgers import make_ledger

FROZEN = {"role": "frozen", "arm": None, "budget": None, "seed": None, "run_id": None}
BASELINE = {"role": "baseline", "arm": "uniform", "budget": "rank:8", "seed": 0, "run_id": "a"}
BEST = {"role": "best", "arm": "decay-01", "budget": "rank:8", "seed": 0, "run_id": "b"}


def said(text: str, ended: bool = True) -> dict[str, Any]:
    return {"text": text, "tokens": 9, "ended": ended}


KEPT = {
    "tokens": 96,
    "speakers": [FROZEN, BASELINE, BEST],
    "records": [
        {"place": 4, "row": 17, "prompt": "Name a colour.\n\nBriefly.", "reference": "green", "cut": False,
         "answers": [said("Name a", False), said("red"), said("blue and\nyellow")]},
        {"place": 8, "row": None, "prompt": "Say no more.", "reference": "so be", "cut": True,
         "answers": [said(""), None, None]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ledger(tmp_path_factory.mktemp("study"), seeds=4)


def keep(folder: Path, kept: Any) -> None:
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.set_facts({"answers": kept})


def page_of(folder: Path) -> str:
    """The page without tables and figures, which have nothing to do with it."""
    with open_findings(folder) as found:
        return render_page(found, {}, [])


def section(page: str) -> str:
    return page[page.index('<section id="answers"') :].partition("</section>")[0]


def test_prompt_reference_and_three_answers_stand_together(folder: Path) -> None:
    keep(folder, KEPT)
    page = page_of(folder)
    own = section(page)
    assert '<a href="#answers">Answers</a>' in page and page.index('id="answers"') < page.index('<section id="card"')
    order = ["Test record 4", "row 17", "Name a colour.\n\nBriefly.", "green", "the frozen model", "Name a",
             "stopped after 9 tokens", "baseline: uniform at rank:8", "red", "best other arm: decay-01 at rank:8",
             "blue and\nyellow", "Test record 8", "Say no more.", "cut with its text", "nothing", "not answered yet",
             "not answered yet"]  # fmt: skip
    at = own.index("<h3>")
    for text in order:
        at = own.index(text, at)
    assert own.count('data-arm="uniform"') == own.count('data-arm="decay-01"') == 2  # which hide with their arm
    assert (
        "2 records of the test split, drawn at random before any was answered, and what the frozen model, uniform at "
        "rank:8 and decay-01 at rank:8 answer: greedily, by at most 96 tokens. Of the arms beside the baseline, "
        "decay-01 at rank:8 has the best mean test loss; its run here has the baseline&#39;s seed, 0. They show what a "
        "model is like and decide nothing: verdicts rest on every test record and every seed."
    ) in own


def test_a_study_without_answers_has_no_such_section(folder: Path) -> None:
    keep(folder, None)
    page = page_of(folder)
    assert 'id="answers"' not in page and "#answers" not in page


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({"reason": "runs"}, "There are none: the baseline has no finished run yet."),
        ({"reason": "adapters", "runs": ["a, seed 1", "b"]}, "no adapter of a, seed 1 and b, as where a study was"),
        ({"reason": "error", "error": "<b>no"}, "could not be made to answer (&lt;b&gt;no). Running the study again"),
    ],
)
def test_why_there_are_none_is_said(folder: Path, missing: dict[str, Any], expected: str) -> None:
    keep(folder, {"missing": missing})
    own = section(page_of(folder))
    assert expected in own and "<dl" not in own and "None" not in own
    keep(folder, {**KEPT, "missing": missing})
    own = section(page_of(folder))
    assert own.count("<dl") == 2 and (missing["reason"] == "runs" or "The rest is missing" in own)


def test_a_baseline_alone_is_said_to_be(folder: Path) -> None:
    alone = copy.deepcopy(KEPT)
    alone["speakers"] = alone["speakers"][:2]
    for record in alone["records"]:
        record["answers"] = record["answers"][:2]
    keep(folder, alone)
    assert "There is no other arm to show beside the baseline, whose run has seed 0. They show" in page_of(folder)


def test_markup_and_what_acts_unseen_in_records_and_answers_stay_text(folder: Path) -> None:
    foul = "</dd></section><script>hacked()</script>\x1b[31m\u202egnp\u2066\u200b\x00\ud800\u2028end{{7*7}}\r\nnext"
    kept = copy.deepcopy(KEPT)
    kept["records"][0] |= {"prompt": foul, "reference": foul, "answers": [said(foul), said(foul), said(foul)]}
    kept["speakers"][2]["arm"] = foul
    kept["speakers"][1]["budget"] = foul
    keep(folder, kept)
    page = page_of(folder)
    shown = "&lt;script&gt;hacked()&lt;/script&gt;␛[31m[U+202E]gnp[U+2066][U+200B]␀"
    assert page.count("<script") == 1 and page.count("</section>") == page.count("<section")
    assert not set(page) & set("\x1b\u202e\u2066\u200b\x00\ud800\u2028\r")
    own = section(page)
    assert own.count(f'<bdi class="words">&lt;/dd&gt;&lt;/section&gt;{shown}�\nend{{{{7*7}}}}\nnext</bdi>') == 5
    assert own.count(shown) > 5  # who answers, too


def test_a_text_without_end_is_cut(folder: Path) -> None:
    kept = copy.deepcopy(KEPT)
    kept["records"][0]["prompt"] = "x" * 1_000_000
    keep(folder, kept)
    page = page_of(folder)
    assert "xxx… (1,000,000 characters)" in page and len(page) < 60_000


def test_an_export_has_them_in_a_file_of_their_own(folder: Path, tmp_path: Path) -> None:
    keep(folder, KEPT)
    whole = section(page_of(folder))
    export_study(folder, tmp_path)
    assert json.loads((tmp_path / "answers.json").read_text()) == KEPT
    assert "answers" not in json.loads((tmp_path / "facts.json").read_text())
    assert section(page_of(tmp_path)) == whole  # by its archive
    (tmp_path / "ledger.npz").unlink()
    assert section(page_of(tmp_path)) == whole  # by its text alone
    (tmp_path / "answers.json").write_text('{"records": [{}], "speakers": []}')
    with pytest.raises(StudyFolderError, match=r"another form \(KeyError: 'answers'\).*delete `answers.json`"):
        page_of(tmp_path)
    (tmp_path / "answers.json").write_text("{")
    with pytest.raises(StudyFolderError, match="holds no whole export"):
        page_of(tmp_path)
    (tmp_path / "answers.json").unlink()
    assert 'id="answers"' not in page_of(tmp_path)


def test_an_export_can_leave_out_what_quotes_the_data(folder: Path, tmp_path: Path) -> None:
    keep(folder, KEPT)
    export_study(folder, tmp_path)
    export_study(folder, tmp_path, answers=False)  # over one that had them
    texts = [*(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npz")]
    with contextlib.closing(read_archive(tmp_path / "ledger.npz")) as ledger:
        texts.append(json.dumps(ledger.facts()).encode())
    assert len(texts) > 8 and not any(b"Name a colour" in text for text in texts)
    assert 'id="answers"' not in page_of(tmp_path)


def test_reading_them_needs_no_torch() -> None:
    found = answers_of({"answers": KEPT})
    assert found is not None and found.records[0].said[1][1] is not None
    assert found.names == ["the frozen model", "uniform at rank:8", "decay-01 at rank:8"]
    assert answers_of({}) is None
