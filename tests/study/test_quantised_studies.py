"""Studies on a base in 4 or 8 bits: by both engines, what they record, and what a study file may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.results import load_results
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.schema import ModelPart
from adaptive_lora.study.study_file import load_study
from tests.conftest import REFERENCE

WriteStudy = Callable[..., Path]
NF4, INT8 = (("}\ndata:", f", quantise: {kind}}}\ndata:") for kind in ("nf4", "int8"))


def test_a_study_without_the_key_is_the_study_it_was(study_file: WriteStudy) -> None:
    plain = load_study(study_file())
    assert "quantise" not in plain.spec.model_dump(mode="json")["model"]
    null = load_study(study_file(("}\ndata:", ", quantise: null}\ndata:"), name="null.yaml"))
    nf4, int8 = (load_study(study_file(own, name=f"{i}.yaml")) for i, own in enumerate((NF4, INT8)))
    assert plain.identity == null.identity and len({plain.identity, nf4.identity, int8.identity}) == 3
    assert ModelPart.model_validate(nf4.spec.model_dump(mode="json")["model"]).quantise == "nf4"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("quantise: nf5", "nf4"),
        ("quantize: nf4", "quantise"),
        ("quantise: int8, dtype: float64", "made of float32, bfloat16 or float16, got dtype float64"),
    ],
)
def test_what_cannot_be_is_said_with_the_line(study_file: WriteStudy, said: str, answer: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        load_study(study_file(("}\ndata:", f", {said}}}\ndata:")))
    assert answer in str(caught.value) and "line 2" in str(caught.value)


@pytest.fixture(scope="module")
def has_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no quantised bases here")


@pytest.mark.usefixtures("has_bitsandbytes")
@pytest.mark.parametrize("kind", [NF4, INT8], ids=["nf4", "int8"])
def test_both_engines_run_it_and_agree(study_file: WriteStudy, tmp_path: Path, kind: tuple[str, str]) -> None:
    for name, engine in (("bank", ()), ("reference", (REFERENCE,))):
        assert run_study(load_study(study_file(kind, *engine)), tmp_path / name).finished
    bank, reference = (load_results(tmp_path / name) for name in ("bank", "reference"))
    assert list(bank["arm"]) == list(reference["arm"])
    for column in ("validation_loss", "test_loss"):
        pd.testing.assert_series_equal(bank[column], reference[column], rtol=1e-4)


@pytest.mark.usefixtures("has_bitsandbytes")
def test_it_is_another_study_with_other_facts(study_file: WriteStudy) -> None:
    plain, nf4 = (prepare(load_study(study_file(*own))) for own in ((), (NF4,)))
    assert nf4.context["model"] == {**plain.context["model"], "quantised": "nf4"}
    assert nf4.facts()["model"]["note"] == "linear layers in NF4 by bitsandbytes"
    assert nf4.facts()["model"]["total_parameters"] == plain.facts()["model"]["total_parameters"]
    assert any("linear layers in NF4 by bitsandbytes" in note for note in nf4.notes()) and not plain.notes()
    assert {"quantised", "note"} & {k for k, v in plain.facts()["model"].items() if v} == set()
