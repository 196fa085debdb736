"""The report: the numbers of the ledger, the same bytes every time, nothing foreign let through."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Self

import pandas as pd
import pytest

from adaptive_lora.reporting.figures import making
from adaptive_lora.reporting.html.build import write_report
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from adaptive_lora.study.results import runs_table
from adaptive_lora.study.runner import run_study
from adaptive_lora.study.study_file import load_study
from tests.conftest import STUDY
from tests.fresh import NEVER_ASKED, READING, fresh

ARMS = "[uniform, linear-decay, empirical, random]"


@pytest.fixture(scope="module")
def trained(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    arms = "[uniform, {name: fixed, ranks: {c_attn: 3, c_proj: 1, c_fc: 1}}]"
    (folder / "study.yaml").write_text(STUDY.format(model=model_folders["gpt2"]).replace(ARMS, arms))
    run_study(load_study(folder / "study.yaml"), folder / "out")
    return folder / "out"


@pytest.fixture
def done(trained: Path, tmp_path: Path) -> Path:
    """A finished study of a test's own."""
    return Path(shutil.copytree(trained, tmp_path / "out"))


def report(folder: Path) -> str:
    with contextlib.closing(open_to_read(folder)) as ledger:
        return write_report(ledger, folder).read_text()


def test_the_page_shows_the_ledgers_numbers(done: Path) -> None:
    page = report(done)
    with contextlib.closing(open_to_read(done)) as ledger:
        runs = runs_table(ledger)
    for arm in ("uniform", "fixed"):
        mean = runs[runs["arm"] == arm]["test_loss"].mean()
        assert f">{mean:.4f}<span" in page
    assert f"{runs['base_loss'].iloc[0]:.4f}" in page
    assert f"{int(runs['trainable_parameters'].iloc[0]):,}" in page
    assert "everything on this page is exploratory" in page
    assert page.count("<svg") == len(list((done / "figures").glob("*.svg")))
    assert "a size of its own" in page  # fixed ranks are exempt from equal size, and it says so


class Waiting(subprocess.Popen[str]):
    """A helper that is done before this process begins."""

    def __enter__(self) -> Self:
        self.wait()
        return super().__enter__()


def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_MANY", 0)
    monkeypatch.setattr(making, "_cores", lambda: 2)
    monkeypatch.setattr(making.subprocess, "Popen", Waiting)


def test_the_same_ledger_gives_the_same_bytes_whoever_draws(done: Path, all_forms: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        helped(patch)
        patch.setattr(making, "_write", lambda *_: pytest.fail("the helper had drawn everything"))
        report(done)
    written = [done / "report.html", *(done / "figures").iterdir(), *(done / "tables").iterdir()]
    first = {path: path.read_bytes() for path in written}
    again = report(done)
    assert again.encode() == first[done / "report.html"]
    for path, content in first.items():
        assert path.read_bytes() == content, path.name
    assert {path.suffix for path in first} == {".html", ".pdf", ".svg", ".png", ".csv", ".md", ".tex"}


def test_what_a_helper_leaves_undone_is_drawn_here(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helped(monkeypatch)
    dies = tmp_path / "python"
    dies.write_text('#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9; do : > "$3/$i"; done\necho "3 empty"\nexit 1\n')
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    without = figures_in(report(done))
    assert not (done / "figures" / "ranks-rank-2.svg").exists()  # told to be empty, and believed
    monkeypatch.undo()
    assert figures_in(report(done)) - without == {"ranks-rank-2"}


def figures_in(page: str) -> set[str]:
    return set(re.findall(r'aria-label="Figure: ([^"]+)"', page))


def test_the_reading_wing_needs_no_torch(done: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from adaptive_lora.study.open_ledger import open_to_read\n"
        "from adaptive_lora.reporting.html.build import write_report\n"
        "from adaptive_lora.study.status import study_status\n"
        "from adaptive_lora.study.results import export\n"
        "folder = Path(sys.argv[1]); ledger = open_to_read(folder)\n"
        "write_report(ledger, folder); export(ledger, folder / 'text'); study_status(folder)\n"
    )
    told = fresh(READING).run(script + NEVER_ASKED, done)
    assert told.returncode == 0, told.stderr


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attrs)


NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'{{ 7*7 }}"


def test_foreign_text_stays_text_and_nothing_is_fetched(done: Path) -> None:
    with contextlib.closing(create_or_open(done)) as ledger:
        facts = ledger.facts()
        facts["model"]["name"] = facts["data"]["source"] = facts["name"] = NASTY
        ledger.set_facts(facts)
        ledger._db.execute("UPDATE runs SET error = ?, status = 'failed' WHERE arm = 'fixed'", (NASTY,))
        ledger._db.commit()
    page = report(done)
    parser = _Tags()
    parser.feed(page)
    assert not parser.tags & {"img", "iframe", "link", "object"} and page.count("<script") == 1
    assert all(link.startswith("#") for link in parser.links)
    assert html.escape(NASTY, quote=False).split("&amp;")[0] in page
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    for name in ("style", "script"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and " style=" not in page
    assert "{{ 7*7 }}" in page


def test_a_study_that_has_hardly_begun_still_has_a_report(study_file: Callable[..., Path], tmp_path: Path) -> None:
    from adaptive_lora.study.runner import Silent

    class Stop(Silent):
        def step(self, record: object) -> None:
            import signal

            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_study(load_study(study_file()), tmp_path / "out", Stop())
    page = report(tmp_path / "out")
    assert "Unfinished: 0 of 8 runs" in page and "Nothing to compare yet" in page
    assert not re.search(r"nan|None", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S))


def test_hypotheses_get_verdicts_and_changes_after_the_lock_stand_on_top(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    def study(*changes: tuple[str, str], name: str) -> Path:
        short = (ARMS, "[uniform, linear-decay]"), ("steps: 6", "steps: 2")
        return study_file(*short, ("analysis: {primary: []}\ncontrols: none", "controls: all\nanalysis: {margin: 0.5}"),
                          *changes, name=name)  # fmt: skip

    out = tmp_path / "out"
    run_study(load_study(study(("evaluation: 2", "evaluation: 6"), name="a.yaml")), out)
    page = report(out)
    assert "linear-decay is equivalent to uniform." in page and ">Verdicts</h2>" in page
    assert "half of it, rank:1," in page and "changed after it was locked" not in page
    assert "named no hypothesis" not in page

    reason = "a seed <b>more</b>"
    run_study(load_study(study(("evaluation: 2", "evaluation: 7"), name="b.yaml")), out, deviation=reason)
    page = report(out)
    assert page.index("changed after it was locked") < page.index("linear-decay is equivalent")
    assert html.escape(reason) in page and reason not in page
    assert "seeds.evaluation: [0, 1, 2, 3, 4, 5] locked" in page


def test_a_study_without_hypotheses_says_that_it_is_exploratory(done: Path) -> None:
    page = report(done)
    assert "named no hypothesis before it began" in page and ">Verdicts</h2>" not in page


def test_the_evidence_stands_beside_the_verdicts(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """An arm that trains before it has a plan, beside the baseline trained as long in all; budgets around its own."""
    arms = (ARMS, "[uniform, {strategy: lora-drop, options: {short_run_steps: 2}}]")
    changes = ("steps: 6", "steps: 2"), ("controls: none", "controls: [half, double, compute]")
    rates = (("learning_rate: 1e-2", "learning_rate: [1e-3, 1e-2]"),
             ("{evaluation: 2}", "{evaluation: 2, tuning: 1}"))  # fmt: skip
    out = tmp_path / "out"
    run_study(load_study(study_file(arms, *changes, *rates)), out)
    page = report(out)
    with contextlib.closing(open_to_read(out)) as ledger:
        runs = runs_table(ledger)
        steps = {run["arm"]: run["steps"] for run in ledger.runs()}
    assert steps == {"uniform": 2, "lora-drop": 2, "uniform-x2": 4}
    losses = runs[(runs["phase"] == "evaluation") & (runs["budget"] == "rank:2")].pivot(
        index="seed", columns="arm", values="test_loss"
    )
    tables = {path.stem: pd.read_csv(path) for path in (out / "tables").glob("*.csv")}
    assert {"arms", "sizes", "equal-compute", "power", "stability", "learning-rates"} <= set(tables)
    (equal,) = tables["equal-compute"].to_dict("records")
    assert (equal["arm"], equal["control"], equal["seeds"]) == ("lora-drop", "uniform-x2", 2)
    assert equal["difference"] == pytest.approx((losses["lora-drop"] - losses["uniform-x2"]).mean())
    sizes = tables["sizes"].set_index("arm")
    difference = (losses["lora-drop"] - losses["uniform"]).mean()
    assert sizes.loc["lora-drop", "difference"] == pytest.approx(difference, abs=1e-6)  # of float32 losses
    assert len(tables["stability"]) == (3 + 2) * 2  # three arms, one at three budgets, at two rates
    for title in ("Loss by budget", "Stability", "Power", "Costs", "Learning rates"):
        assert f">{title}</h2>" in page, title
    # Two steps learn too little, so that the highest rate is the best one.
    assert "the edge of the grid: add 0.03 to `learning_rate`" in html.unescape(page)
