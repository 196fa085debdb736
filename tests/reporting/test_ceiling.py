"""The ceiling on the page: its table and its sentence, by the arms that a study locked, and the key that names them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.findings import Findings, read_findings
from adaptive_lora.reporting.html.ceiling import ceiling
from adaptive_lora.reporting.html.sections import SECTIONS
from adaptive_lora.reporting.tables import to_markdown
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.study_file import load_study
from tests.reporting.ledgers import Made, make_study

ARMS = {"uniform": 0.0, "eva": 0.001, "linear-decay": -0.06}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("ceiling") / "study", Made(ARMS, controls="[half]"))


@contextlib.contextmanager
def judged(folder: Path, arms: list[str]) -> Iterator[Findings]:
    with contextlib.closing(create_or_open(folder)) as ledger:
        facts = ledger.facts()
        facts["spec"]["analysis"]["ceiling"] = arms
        ledger.set_facts(facts)
    with contextlib.closing(open_to_read(folder)) as ledger:
        yield read_findings(ledger)


def sentences(found: Findings) -> list[str]:
    (section,) = [section for section in SECTIONS if section.name == "ceiling"]
    return list(section.remarks(found))


def test_closed_pays_and_nothing_asked(made: Path) -> None:
    with judged(made, ["eva"]) as found:
        (own,) = ceilings_of(found)
        assert str(own.verdict) == "closed" and own.half == "rank:2"
        assert own.cost_of_half.mean == pytest.approx(0.1, abs=0.005)
        (said,) = sentences(found)
        assert said.startswith("At rank:4 allocation is closed: eva gains less than a quarter of what half the budget")
        assert "rank:2 costs +0.098" in said
    with judged(made, ["eva", "linear-decay"]) as found:
        table = ceiling(found)
        assert table is not None
        text = to_markdown(table)
        assert "| pays" in text and text.count("rank:4") == 2 and "+0.06" in text
        assert sentences(found)[0].startswith("At rank:4 allocation pays: linear-decay gains more than a quarter")
    with judged(made, []) as found:
        assert ceiling(found) is None and sentences(found) == []


def test_the_key_names_arms_of_the_study_and_needs_half(study_file: Callable[..., Path]) -> None:
    without = load_study(study_file())
    assert "ceiling" not in without.spec.model_dump(mode="json")["analysis"]
    named = ("analysis: {", "analysis: {ceiling: [empirical], ")
    asked = load_study(study_file(named, ("controls: none", "controls: [half]")))
    assert asked.spec.analysis.ceiling == ["empirical"] and asked.identity != without.identity
    for changes, said in (
        ([named], "add `half` to `controls`"),
        ([("analysis: {", "analysis: {ceiling: [empiric], "), ("controls: none", "controls: [half]")],
         r"no arm beside the baseline is called 'empiric' \(did you mean 'empirical'"),
        ([("analysis: {", "analysis: {ceiling: [uniform], "), ("controls: none", "controls: [half]")], "no arm beside"),
    ):  # fmt: skip
        with pytest.raises(StudyFileError, match=said):
            load_study(study_file(*changes))
