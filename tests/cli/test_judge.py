"""`judge`: results made elsewhere, from the files to verdicts on a terminal, as JSON and as a page."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from tests.cli.test_reading import call, without_train
from tests.foreign.conftest import lm_eval, peft

__all__ = ["lm_eval", "peft"]
KEYS = """arm task metric unit higher_is_better verdict mean baseline_mean difference interval resampled
          interval_over_seeds interval_over_items p adjusted_p equivalence_interval adjusted_equivalence_p runs seeds
          items items_in_either clusters items_higher_lower_same binary half_width half_width_at_twice_the_items
          half_width_at_twice_the_seeds variances cautions holds notes""".split()


@pytest.fixture
def two(lm_eval: Path) -> list[str]:
    return [str(lm_eval / name) for name in ("rank2-seed0", "rank8-seed0")]


def test_verdicts_are_told_with_what_they_hold_for(two: list[str]) -> None:
    found = call("judge", *two, "--baseline", "rank2-seed0")
    assert found.exit_code == 0 and found.stderr == ""
    told = " ".join(found.stdout.split())
    for words in (
        "+0.0240", "worse", "undecided", "for these trained runs alone", "with twice the items", "Caution: few seeds",
        "adjusted for 3 comparisons", "No margin was given, so nothing is called equivalent",
        "Also in the files, and not judged: exact_match,whole, bits_per_byte and acc_norm",
    ):  # fmt: skip
        assert words in told, words


def test_json_has_stable_keys(two: list[str]) -> None:
    found = call("judge", *two, "--baseline", "rank2-seed0", "--task", "whose_colour", "--margin", "0.3", "--json")
    told = json.loads(found.stdout)
    assert list(told) == ["baseline", "alpha", "margin", "family", "other_metrics", "comparisons", "page"]
    (own,) = told["comparisons"]
    assert list(own) == KEYS
    assert own["verdict"] == "equivalent" and own["binary"] and own["items"] == 90 and own["higher_is_better"]
    higher, lower, same = own["items_higher_lower_same"]
    assert own["difference"] == pytest.approx((higher - lower) / 90) and higher + lower + same == 90


def test_a_page_is_one_file_and_the_same_every_time(two: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        found = call("judge", *two, "--baseline", "rank2-seed0", "--out", tmp_path / name)
        assert found.exit_code == 0 and f"wrote {tmp_path / name / 'verdicts.html'}" in found.stderr
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [str(p) for p in files] == [
        "figures/differences.pdf", "figures/differences.png", "figures/differences.svg", "tables/verdicts.csv",
        "tables/verdicts.md", "tables/verdicts.tex", "verdicts.html",
    ]  # fmt: skip
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in files)
    page = (tmp_path / "a" / "verdicts.html").read_text()
    assert "rank8-seed0 on colour_words is worse than rank2-seed0 by 0.0240" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<svg" in page


def test_names_from_files_cannot_break_the_page(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{arm},{i},{(i * k) % 7}" for k, arm in ((2, "<script>alert(1)</script>"), (3, "[bold]base"))
            for i in range(9)]  # fmt: skip
    table.write_text("\n".join(["arm,record,value", *rows]))
    found = call("judge", table, "--baseline", "[bold]base", "--metric", "loss", "--out", tmp_path / "out")
    assert found.exit_code == 0 and "[bold]base" in found.stdout
    page = (tmp_path / "out" / "verdicts.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_peft_results_are_set_side_by_side_and_not_judged(peft: list[Path]) -> None:
    found = call("judge", *peft, "--baseline", "lora/llama-3.2-3B-rank32")
    assert found.exit_code == 0
    told = " ".join(found.stdout.split())
    assert "One run each and no scores by item: nothing here tells a difference from chance" in told


def test_a_committed_study_is_judged_by_exact_match() -> None:
    demo = Path(__file__).parents[2] / "results" / "demo"
    found = call("judge", demo, "--baseline", "uniform", "--arm", "empirical", "--metric", "exact_match", "--json")
    (own,) = json.loads(found.stdout)["comparisons"]
    runs = pd.read_csv(demo / "runs.csv")
    runs = runs[(runs["phase"] == "evaluation") & (runs["budget"] == own["task"]) & (runs["replica"] == 0)]
    table = runs.pivot(index="seed", columns="arm", values="test_exact_match")
    wanted = stats.ttest_rel(table["empirical"], table["uniform"])
    assert own["difference"] == pytest.approx((table["empirical"] - table["uniform"]).mean())
    assert own["p"] == pytest.approx(wanted.pvalue)
    assert own["higher_is_better"] and own["resampled"] == "seeds"


def test_it_needs_no_torch_and_explains_mistakes(two: list[str]) -> None:
    good, no_baseline, missing = without_train(
        ["judge", *two, "--baseline", "rank2-seed0", "--json"],
        ["judge", *two, "--baseline", "rank2"],
        ["judge", "nowhere", "--baseline", "rank2"],
    )
    assert good[0] == 0 and len(json.loads(good[1])["comparisons"]) == 3
    assert no_baseline[0] == 2 and "did you mean 'rank2-seed0'?" in no_baseline[2]
    assert missing[0] == 2 and "nowhere: no such file or folder" in missing[2]


def test_the_documentation_shows_what_is_printed(
    lm_eval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").symlink_to(lm_eval)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text()
    shown = re.findall(r"^```bash\n(.*?)^```\n\n```text\n(.*?)^```", page, flags=re.S | re.M)
    assert len(shown) == 2
    for command, output in shown:
        environment = {**os.environ, "COLUMNS": "110"}
        words = shlex.split(command)[1:]
        command_line = [sys.executable, "-m", "adaptive_lora.cli.main", *words]
        told = subprocess.run(command_line, capture_output=True, text=True, check=True, env=environment).stdout
        assert [line.rstrip() for line in told.splitlines()] == output.splitlines()
