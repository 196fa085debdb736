"""The manuscript: its numbers are those of the results, its claims those of the verdicts, its LaTeX compiles."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import PaperError
from adaptive_lora.planning.strategies import STRATEGIES
from adaptive_lora.reporting.escaping import escape_latex
from adaptive_lora.reporting.exported import export_all, open_findings
from adaptive_lora.reporting.formatting import interval_ends
from adaptive_lora.reporting.paper import build, compiling
from adaptive_lora.reporting.paper.arxiv import archive, broken_rules, upload_of
from adaptive_lora.reporting.paper.bibliography import read_works, work, works
from adaptive_lora.reporting.paper.build import write_paper
from adaptive_lora.reporting.paper.compiling import compile_pdf
from adaptive_lora.reporting.paper.document import read_blocks
from adaptive_lora.reporting.paper.facts import Facts
from adaptive_lora.reporting.paper.forms import render_latex, render_markdown, render_references
from adaptive_lora.reporting.paper.manuscript import Author, Manuscript, People, read_people
from adaptive_lora.reporting.paper.other_studies import open_beside
from adaptive_lora.reporting.paper.prose import Account, write_blocks
from adaptive_lora.reporting.paper.study_facts import gather
from adaptive_lora.reporting.paper.tables import study_tables
from adaptive_lora.reporting.templating import render_all
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.open_ledger import open_to_read
from tests.committed import RESULTS, superseded
from tests.fresh import NEVER_ASKED, READING, fresh
from tests.reporting.ledgers import make_ledger

TEXT = Path(compiling.__file__).parent / "text"
CLAIMS = re.compile(r"\b(improve[sd]?|outperform\w*|beats?|superior)\b")
BETTER = re.compile(r"\b(?:is|are) better than uniform\b|[Bb]etter than uniform:")
SOURCES = ["abstract", "introduction", "results", "discussion"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder and its export in `text`."""
    folder = make_ledger(tmp_path_factory.mktemp("study") / "own", arms=3, seeds=9)
    with contextlib.closing(open_to_read(folder)) as ledger:
        export_all(ledger, folder / "text")
    return folder


def tables_of(study: Path, to: Path) -> Path:
    """The export of a study without its archive, so that what its tables say is what counts."""
    folder = Path(shutil.copytree(study / "text", to))
    StudyPaths(folder).archive.unlink()
    return folder


@pytest.fixture
def results(study: Path, tmp_path: Path) -> Path:
    """A copy of the export's tables, to be changed."""
    return tables_of(study, tmp_path / "results")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_command", lambda: None)


@pytest.fixture(scope="module")
def paper(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's paper, written from its ledger once for all tests, without a PDF."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch, open_findings(study) as found:
        patch.setattr(compiling, "_command", lambda: None)
        write_paper(found, folder)
    return folder


@pytest.fixture
def drawn_once(paper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are those of `paper`: drawing them again would be most of a test's time."""
    files = {f"figures/{path.name}": path.read_bytes() for path in (paper / "figures").iterdir()}
    monkeypatch.setattr(build, "_pictures", lambda drawn: files)


@functools.cache
def told_of(name: str) -> str:
    """`told` of committed results, which no test changes."""
    return told(superseded(name))


def told(folder: Path) -> str:
    """All prose of a paper, without its tables."""
    with open_findings(folder) as found:
        account = Account(found, gather(found), list(study_tables(found)), ["overview", "differences"])
        blocks = write_blocks(account, "none")
    parts = [block for own in blocks.values() for block in own]
    return "\n".join("".join(span.content for span in item) for block in parts for item in block.items)


def set_losses(results: Path, **differences: Callable[[int], float]) -> None:
    """Test losses of arms as the baseline's plus what is given for the i-th seed."""
    runs = pd.read_csv(results / "runs.csv")
    counted = runs["phase"] == "evaluation"
    base = runs[counted & (runs["arm"] == "uniform")].set_index("seed")["test_loss"]
    for arm, difference in differences.items():
        own = counted & (runs["arm"] == arm.replace("_", "-"))
        losses = [base.get(seed, 2.0) + difference(i) for i, seed in enumerate(runs.loc[own, "seed"])]
        runs.loc[own, ["status", "test_loss", "validation_loss"]] = [["completed", x, x] for x in losses]
        runs.loc[own, "trainable_parameters"] = runs.loc[own, "trainable_parameters"].max()
    runs.to_csv(results / "runs.csv", index=False)


def mixed(i: int) -> float:
    return 0.06 * (-1) ** i


def no_difference(i: int) -> float:
    return 0.001 * (-1) ** i


def lower(i: int) -> float:
    return -0.05 - 0.001 * i


def higher(i: int) -> float:
    return 0.05 + 0.001 * i


@pytest.mark.usefixtures("uncompiled")
def test_the_same_bytes_from_ledger_and_export(study: Path, paper: Path, tmp_path: Path) -> None:
    with open_findings(study / "text") as found:
        write_paper(found, tmp_path)
    one, other = ({p.relative_to(top): p.read_bytes() for p in top.rglob("*.*")} for top in (paper, tmp_path))
    assert one == other
    assert {Path("paper.md"), Path("main.tex"), Path("figures/differences.pdf")} <= one.keys()


def test_a_number_changed_in_the_results_changes_the_text(results: Path) -> None:
    before = told(results)
    facts = json.loads((results / "facts.json").read_text())
    facts["spec"]["data"]["train"] = 12_345
    (results / "facts.json").write_text(json.dumps(facts))
    assert "12,345" not in before and "12,345" in told(results)
    set_losses(results, decay_01=lambda i: 0.1234)
    assert "+0.1234" in told(results)


@pytest.mark.parametrize("key", ["model.total_parameters", "model.context", "spec.data.test", "spec.train.batch_size"])
def test_a_fact_that_is_missing_stops_the_build_with_its_name(results: Path, key: str) -> None:
    facts = json.loads((results / "facts.json").read_text())
    *path, last = key.split(".")
    place = facts
    for part in path:
        place = place[part]
    place[last] = None
    (results / "facts.json").write_text(json.dumps(facts))
    name = {"total_parameters": "model.parameters"}.get(last, key.removeprefix("spec."))
    with pytest.raises(PaperError, match=f"`{name}`"):
        told(results)


def test_a_context_without_a_limit_is_no_missing_fact(results: Path) -> None:
    facts = json.loads((results / "facts.json").read_text())
    facts["model"] |= {"context": None, "unlimited_context": True}
    (results / "facts.json").write_text(json.dumps(facts))
    text = " ".join(told(results).split())
    assert "no limit on its context, in float32" in text and "a context of" not in text


def test_a_loss_that_is_missing_stops_the_build_with_its_name(results: Path) -> None:
    runs = pd.read_csv(results / "runs.csv")
    own = runs[(runs["phase"] == "evaluation") & (runs["status"] == "completed")].index[3]
    runs.loc[own, "test_loss"] = np.nan
    runs.to_csv(results / "runs.csv", index=False)
    result = CliRunner().invoke(app, ["paper", str(results), "--out", str(results / "paper")])
    assert result.exit_code == 2 and f"runs.{runs.loc[own, 'run_id']}.test_loss" in result.stderr
    assert not (results / "paper").exists()


def test_runs_that_are_missing_stop_the_build(results: Path) -> None:
    runs = pd.read_csv(results / "runs.csv")
    runs.iloc[:-1].to_csv(results / "runs.csv", index=False)
    with pytest.raises(PaperError, match=r"1 of .* runs have no result"):
        told(results)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (lower, no_difference, "The arm decay-01 is better than uniform"),
        (higher, no_difference, "The arm decay-01 is worse than uniform"),
        (no_difference, no_difference, "every plan tested is equivalent"),
        (mixed, mixed, "no comparison could be decided"),
        (higher, mixed, "no plan is shown to be better than uniform"),
    ],
)
def test_claims_are_those_of_the_verdicts(
    results: Path, first: Callable[[int], float], second: Callable[[int], float], says: str
) -> None:
    set_losses(results, decay_01=first, decay_02=second)
    text = told(results)
    assert says in text and not CLAIMS.search(text)
    assert "no plan is better" not in text
    assert ("Nothing here speaks against" in text) == (first is not lower and second is not mixed)
    assert ("is open." in text or "are open." in text) == (first is not lower and second is mixed)
    without_negations = re.sub(r"(?i)no (?:plan|arm)[^.]*?better than", "", text)
    assert bool(BETTER.search(without_negations)) == (first is lower)
    for verdict, claimed in ((lower, "reached a lower test loss"), (higher, "did worse than uniform"),
                             (mixed, "not evidence of equality")):  # fmt: skip
        assert (claimed in text) == (verdict in (first, second))


def diverge(results: Path, arm: str, seeds: int) -> None:
    """On the first of the seeds on which both it and the baseline have a result."""
    runs = pd.read_csv(results / "runs.csv")
    own = runs[(runs["phase"] == "evaluation") & (runs["arm"] == arm)].index[:seeds]
    runs.loc[own, ["status", "test_loss", "validation_loss"]] = ["diverged", np.nan, np.nan]
    runs.to_csv(results / "runs.csv", index=False)


def test_an_arm_that_diverged_is_not_told_as_better(results: Path) -> None:
    set_losses(results, decay_01=lower, decay_02=lower)
    diverge(results, "decay-01", 2)
    text = " ".join(told(results).split())
    assert "The arm decay-02 is better than uniform" in text and "The arm decay-01 is better" not in text
    assert (
        "The arm decay-01 is not decided: seeds are lost (diverged on 2 of 9 seeds), and the pairs that are left"
        in text
    )
    assert "decay-01 divergence took seeds from one of the two alone" in text and "too wide for the margin" not in text


def test_where_all_is_open_by_divergence_no_spread_is_blamed(results: Path) -> None:
    set_losses(results, decay_01=lower, decay_02=lower)
    for arm in ("decay-01", "decay-02"):
        diverge(results, arm, 1)
    text = " ".join(told(results).split())
    assert "Of decay-01 and decay-02 too many pairs are lost to divergence" in text
    assert "small against their spread" not in text and "seeds would have been needed" not in text


def test_a_study_without_hypotheses_has_no_verdicts(results: Path) -> None:
    facts = json.loads((results / "facts.json").read_text())
    facts["lock"]["primary"] = []
    (results / "facts.json").write_text(json.dumps(facts))
    set_losses(results, decay_01=lower, decay_02=higher)
    text = told(results)
    assert "exploratory" in text and "named no hypothesis" in text and "decay-01 is better" not in text
    assert not BETTER.search(text.replace("any of these plans is better", ""))


def test_a_plan_that_came_out_as_the_baselines_own_is_said_to_be_so(results: Path) -> None:
    set_losses(results, decay_01=lambda i: 0.0 if i else 0.001, decay_02=no_difference)
    with open_findings(results) as found:
        own = next(arm for arm in found.arms if arm.arm == "decay-01")
        remarks = render_all("comparisons.same_as_baseline", found)
    said = f"On {own.same} of {len(own.differences)} seeds decay-01 plans just what uniform does"
    assert own.same == len(own.differences) - 1 > 0 and said in " ".join(told(results).split())
    assert len(remarks) == 1 and remarks[0].startswith(
        f"On {own.same} of {len(own.differences)} seeds decay-01 at rank:"
    )


def test_a_control_that_longer_training_harms_is_said_to_flatter() -> None:
    harmed, helped = (told_of(name) for name in ("alpaca-babyllama-full", "gsm8k-stories260k"))
    assert "is itself worse than at the study's own length (uniform-x1.67 at rank:2 by" in " ".join(harmed.split())
    assert "is itself worse" not in helped


@pytest.mark.parametrize(
    ("half", "says"), [(0.0, "it cannot"), (0.005, "worse by less than the margin"), (0.2, "it can:")]
)
def test_an_assay_that_fails_is_said_beside_equivalence(results: Path, half: float, says: str) -> None:
    set_losses(results, decay_01=no_difference, decay_02=no_difference)
    runs = pd.read_csv(results / "runs.csv")
    own = runs[(runs["phase"] == "evaluation") & (runs["arm"] == "uniform")]
    losses = own["test_loss"] + half + 0.001 * (-1.0) ** np.arange(len(own))
    lesser = own.assign(budget="rank:2", test_loss=losses, run_id="half-" + own["run_id"])
    pd.concat([runs, lesser]).to_csv(results / "runs.csv", index=False)
    text = told(results)
    assert says in text
    assert ("equivalence says little" in " ".join(text.split())) == (half < 0.01)
    assert ("these ways of placing it do not differ by what counts" in " ".join(text.split())) == (half > 0.01)
    assert "not tested" not in text


def test_a_budget_without_an_assay_is_not_told_as_one_that_tells() -> None:
    with open_findings(superseded("alpaca-babyllama-full")) as found:
        found = replace(found, assays=[assay for assay in found.assays if assay.budget == "rank:2"])
        account = Account(found, gather(found), list(study_tables(found)), [])
        blocks = write_blocks(account, "none")["body"]
    text = " ".join("".join(span.content for span in item) for block in blocks for item in block.items)
    text = " ".join(text.split())
    assert "This was not tested at rank:8." in text and "tell ranks apart at rank:8 and rank:2 was not tested" in text
    assert "The equivalence of empirical at rank:8 may be for want" in text


def test_an_equivalence_is_only_as_good_as_the_assay_of_its_own_budget() -> None:
    text = told_of("alpaca-babyllama-full")
    assert "At rank:2 this is not known: rank:1, half of the budget, is worse" in text
    assert "At rank:8, however, half of the budget was not shown to be worse by more than the margin" in text
    assert "The equivalence of empirical at rank:8 is to be read with that" in text
    assert "not for want of sensitivity" not in text
    assert "spectral at rank:8 and lora-drop at rank:8: plans that were worse than plans by chance" in text


@pytest.mark.parametrize("name", ["gsm8k-stories260k", "alpaca-babyllama-full", "ceiling-smollm2-reasoning"])
def test_every_comparison_is_told_with_its_interval_and_every_caution(name: str) -> None:
    text = " ".join(told(RESULTS / name).split())
    with open_findings(RESULTS / name) as found:
        several, judged, cautions = len(found.facts["spec"]["budgets"]) > 1, found.judged, found.cautions
    for comparison, judgement in judged.items():
        arm = f"{comparison.arm} at {comparison.budget}" if several else comparison.arm
        assert judgement.interval is not None
        told_so = rf"{arm}[ ,](?:(?!; | arm ).)*?{re.escape(interval_ends(judgement.interval, '+±'))}"
        assert re.search(told_so, text), comparison
        assert all(str(caution) in text for caution in cautions[comparison])


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("gsm8k-stories260k", {"overview", "differences", "decomposition", "rates"}),
        ("stability", {"overview", "differences", "rates", "loss-by-budget", "stability"}),
    ],
)
def test_a_map_of_breaks_needs_one_and_losses_by_budget_need_several(name: str, figures: set[str]) -> None:
    with open_findings(RESULTS / name) as found:
        drawn = ["overview", "differences", "loss-by-budget", "rates", "stability", "decomposition"]
        body = write_blocks(Account(found, gather(found), list(study_tables(found)), drawn), "none")["body"]
    assert {block.content for block in body if block.kind == "figure"} == figures
    referred = {s.content for block in body for item in block.items for s in item if s.kind == "figure"}
    assert referred <= figures


def test_a_study_from_before_rates_could_be_shared_has_a_paper() -> None:
    assert "tune" not in json.loads((RESULTS / "demo" / "facts.json").read_text())["spec"]["train"]
    text = " ".join(told(RESULTS / "demo").split())
    assert "All arms use one learning rate, 0.01. It was not tuned" in text and "All arms share the rate 0.01." in text


def test_every_number_in_a_template_is_a_fact() -> None:
    for path in TEXT.rglob("*.txt"):
        prose = re.sub(
            r"<%.*?%>|<<.*?>>|\$\$.*?\$\$|\$[^$]*\$|\[?@[\w; @-]+\]?|\[\[.*?\]\]", "", path.read_text(), flags=re.S
        )
        assert not re.search(r"\d", prose), f"{path.name}: {re.findall(r'.{0,30}[0-9].{0,10}', prose)}"


def test_every_strategy_has_its_formula_and_every_work_its_identifier() -> None:
    for name in STRATEGIES:
        kinds = [block.kind for block in read_blocks((TEXT / "strategies" / f"{name}.txt").read_text())]
        assert kinds == ["paragraph", "equation"], name
    everywhere = " ".join(path.read_text() for path in TEXT.rglob("*.txt"))
    for key in set(re.findall(r"@([a-z]+\d{4}\w+)", everywhere)):
        assert work(key).title
    assert all(w.link[0] or w.place for w in works().values()) and len(works()) > 15
    with pytest.raises(PaperError, match="cites `nobody`"):
        work("nobody")
    with pytest.raises(ValueError, match="x lacks"):
        read_works("@misc{x,\n  title = {A}\n}")


def test_facts_that_are_not_there_are_named() -> None:
    facts = Facts({"a": (1.5, ".2f", "s")})
    assert facts["a"].text == "1.50 s" and "b" not in facts
    with pytest.raises(PaperError, match="fact `b`"):
        _ = facts["b"]


def test_foreign_words_command_nothing() -> None:
    evil = "\x02\\input{/etc/passwd} $x$ <script> @hu2022lora *a* & 100%_#~^\x03"
    paper = Manuscript(evil[1:-1], (), tuple(read_blocks(f"# Of {evil}\n\nIs {evil}.")), {}, {}, (), People())
    latex, markdown = render_latex(paper), render_markdown(paper)
    assert "\\input" not in latex.replace("\\inputenc", "").replace("]{inputenc}", "")
    assert "\\textbackslash{}input\\{/etc/passwd\\} \\$x\\$" in latex and "\\citet" not in latex
    assert escape_latex("6–7 --- a-b -") == "6--7 -{}-{}- a-b -"
    assert "<script>" not in markdown and "\\$x\\$" in markdown


def test_the_verb_needs_no_torch_and_no_tex(results: Path) -> None:
    code = (
        f"from adaptive_lora.cli.main import app\napp(['paper', {str(results)!r}, '--json'], standalone_mode=False)\n"
    )
    done = fresh(READING).run(code + NEVER_ASKED, environment={"PATH": ""})
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["pdf"] is None and written["figures"] >= 3
    assert "neither latexmk nor tectonic" in written["complaints"][0]


def test_a_strategy_without_a_formula_of_its_own_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(STRATEGIES["uniform"], name="my-own", summary="more rank on Sundays")
    monkeypatch.setitem(STRATEGIES, "my-own", mine)  # type: ignore[arg-type]
    facts = json.loads((results / "facts.json").read_text())
    facts["spec"]["arms"][1]["strategy"] = "my-own"
    facts["spec"]["arms"][1]["options"] = {}
    (results / "facts.json").write_text(json.dumps(facts))
    assert "my-own. more rank on Sundays." in told(results)


def our_own() -> list[Path]:
    """What `make paper` tells: the study, and what stands beside it."""
    makefile = (RESULTS.parent / "Makefile").read_text().replace("\\\n", " ")
    named = [re.search(rf"^{name}\s*\?= (.+)$", makefile, re.M) for name in ("STUDY", "BESIDE")]
    return [RESULTS.parent / path for match in named if match is not None for path in match.group(1).split()]


def test_the_committed_paper_is_that_of_the_committed_results() -> None:
    root = RESULTS.parent
    if not (root / "paper" / "paper.md").exists():
        pytest.skip("no paper is committed")
    own, *others = our_own()
    with open_findings(own) as study, open_beside(others) as beside:
        people = build.read_people((root / "paper" / "authors.txt").read_text())
        paper, drawn = build.own_manuscript(study, beside, people, root / "paper" / "text")
    made = {
        "paper.md": render_markdown(paper),
        "main.tex": render_latex(paper),
        "main.bbl": render_references(paper.works),
    }
    for name, text in made.items():
        assert text == (root / "paper" / name).read_text(), name
    figures = {block.content for block in paper.blocks if block.kind == "figure"}
    assert figures <= drawn.keys()
    assert figures <= {path.stem for path in (root / "paper" / "figures").glob("*.pdf")}


GOOD = {
    "00README.json": b"{}", "main.bbl": b"x", "figures/a.pdf": b"x",
    "main.tex": b"\\date{} \\includegraphics[width=1cm]{figures/a.pdf}",
}  # fmt: skip
AUTHORS = People((Author("Ada Example", "Somewhere"),), "none")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"b c.txt": b""}, "characters other than"),
        ({"é.txt": b""}, "characters other than"),
        ({".hidden": b""}, "hidden"),
        ({"main.log": b""}, "auxiliary"),
        ({"main.bbl": None}, "main.bbl"),
        ({"main.tex": None}, "no main.tex"),
        ({"main.tex": b"\\date{\\today} \\includegraphics{figures/a.pdf}"}, "today"),
        ({"main.tex": b"\\includegraphics{figures/a.pdf}"}, "no \\\\date"),
        ({"figures/a.pdf": None}, "shown and not there"),
        ({"figures/more.pdf": b""}, "there and not shown"),
        (
            {"main.tex": b"\\date{} \\includegraphics{figures/a.eps}", "figures/a.pdf": None, "figures/a.eps": b""},
            "no PDF",
        ),
        ({"main.bbl": bytes(51 * 2**20)}, "bytes are more"),
    ],
)
def test_the_rules_of_arxiv(change: dict[str, bytes | None], says: str) -> None:
    assert broken_rules(GOOD, AUTHORS) == []
    files = {name: content for name, content in {**GOOD, **change}.items() if content is not None}
    problems = broken_rules(files, AUTHORS)
    assert len(problems) == 1 and re.search(says, problems[0]), problems


@pytest.mark.parametrize(
    ("people", "says"),
    [
        (People((), "none"), "authors are missing"),
        (People((Author("Ada Example"),)), "generative tools"),
        (People((Author("Dr. Ada Example"),), "none"), "without titles"),
        (People((Author("Anonymous"),), "none"), "no name"),
    ],
)
def test_arxiv_wants_people(people: People, says: str) -> None:
    (problem,) = broken_rules(GOOD, people)
    assert says in problem


@pytest.mark.usefixtures("uncompiled", "drawn_once")
def test_the_archive_is_written_once_its_authors_are_named(results: Path) -> None:
    arguments = ["paper", str(results), "--arxiv"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "authors are missing" in result.stderr
    folder = results / "paper"
    assert (
        "AUTHORS MISSING" in (folder / "paper.md").read_text()
        and "STATEMENT MISSING" in (folder / "main.tex").read_text()
    )
    assert not (folder / "arxiv.tar.gz").exists()
    (folder / "authors.txt").write_text("author: Ada Example | Somewhere\nauthor: B. Other\ntools: None was used.\n")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    first = (folder / "arxiv.tar.gz").read_bytes()
    assert "MISSING" not in (folder / "main.tex").read_text() and "None was used." in (folder / "paper.md").read_text()
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        names = tar.getnames()
    assert {"main.tex", "main.bbl", "00README.json"} <= set(names) and not [n for n in names if n.endswith(".svg")]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    assert archive(upload_of(files)) == first
    assert archive({"a": b"1", "b": b"2"}) == archive({"b": b"2", "a": b"1"})
    assert "paper.md" not in upload_of({"paper.md": b"", "main.tex": b""})


@pytest.mark.skipif(shutil.which("pdflatex") is None or shutil.which("latexmk") is None, reason="no TeX here")
def test_it_compiles_without_complaints_and_to_the_same_bytes(paper: Path) -> None:
    files = upload_of({str(path.relative_to(paper)): path.read_bytes() for path in paper.rglob("*.*")})
    assert compile_pdf(files).complaints == ()
    head, _, _ = files["main.tex"].partition(b"\\section{")
    short = {**files, "main.tex": head + b"\\includegraphics{figures/differences.pdf}\n\\end{document}\n"}
    one, two = (compile_pdf(short).pdf for _ in range(2))
    assert one is not None and one.startswith(b"%PDF") and one == two


@pytest.mark.skipif(shutil.which("pdflatex") is None or shutil.which("latexmk") is None, reason="no TeX here")
def test_what_is_wrong_with_a_document_is_said() -> None:
    wide = "x" * 200
    tex = f"\\documentclass{{article}}\\begin{{document}}\\ref{{nowhere}} {wide}\n\n\\end{{document}}"
    complaints = " ".join(compile_pdf({"main.tex": tex.encode()}).complaints)
    assert "nowhere" in complaints and "too wide" in complaints
    broken = compile_pdf({"main.tex": b"\\documentclass{article}\\begin{document}\\nosuch\\end{document}"})
    assert broken.pdf is None and "error: Undefined control sequence." in broken.complaints


def test_a_group_stands_in_for_people_and_is_nobody_for_arxiv() -> None:
    people = read_people("group: The developers\ntools: none")
    paper = Manuscript("T", (), (), {}, {}, (), people)
    assert "The developers" in render_latex(paper) and "AUTHORS MISSING" not in render_latex(paper)
    assert "The developers" in render_markdown(paper)
    assert any("the authors are missing" in said for said in broken_rules({}, people))
    assert "AUTHORS MISSING" in render_latex(replace(paper, people=People()))
    named = replace(people, authors=(Author("A. B. Meyer"),))
    assert "The developers" not in render_markdown(replace(paper, people=named))
