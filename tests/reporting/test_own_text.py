"""A manuscript that a person wrote: facts of several studies by name, shown tables, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import PaperError
from adaptive_lora.reporting import exported
from adaptive_lora.reporting.choices import ceilings_of
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.figures.ceilings import several_ceilings
from adaptive_lora.reporting.findings import Findings
from adaptive_lora.reporting.paper.build import own_manuscript
from adaptive_lora.reporting.paper.forms import render_latex, render_markdown
from adaptive_lora.reporting.paper.manuscript import Manuscript, People
from adaptive_lora.reporting.paper.other_studies import Beside
from adaptive_lora.reporting.recovered import read_recovered
from tests.committed import RESULTS

GSM8K = "gsm8k-stories260k"


def write(folder: Path, body: str, **more: str) -> Path:
    texts = {"title": "On ranks", "abstract": "Short.", "10-body": body, **more}
    for name, text in texts.items():
        if text:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def studies() -> Iterator[tuple[Findings, Beside]]:
    with open_findings(RESULTS / "demo") as demo, open_findings(RESULTS / GSM8K) as other:
        yield demo, Beside((other,))


@pytest.fixture
def made(studies: tuple[Findings, Beside], tmp_path: Path) -> Callable[..., Manuscript]:
    """The manuscript of a body, with the other parts of its text."""
    return lambda body, **more: own_manuscript(*studies, People(), write(tmp_path, body, **more))[0]


def test_facts_of_several_studies_and_a_table(made: Callable[..., Manuscript]) -> None:
    body = f"""# One

<% set gsm = study("{GSM8K}") %>
<< gsm.n("seeds") >> seeds of << gsm.n("model") >>, not << study("demo").n("seeds") >> [@hu2022lora].
<% if gsm.better %>
Better: << gsm.better[0].name >>, [[table:{GSM8K}-verdicts]].
<% endif %>
<% if study("demo").better %>Never said.<% endif %>

::table {GSM8K}-verdicts
"""
    paper = made(body, **{"20-end": "# Two\n\nThe end."})
    text = render_markdown(paper)
    assert "12 seeds of stories260K, not 3 (" in text and "Better: lora-drop, Table 1." in text
    assert "Never said" not in text and text.index("## One") < text.index("## Two") < text.index("## References")
    assert [work.key for work in paper.works] == ["hu2022lora"]
    assert rf"\label{{tab:{GSM8K}-verdicts}}" in render_latex(paper)


def test_a_figure_can_have_a_caption_of_its_own(made: Callable[..., Manuscript]) -> None:
    body = f"""# One

::figure {GSM8K}-differences
On << study("{GSM8K}").n("model") >>, by *seed* and 100 % ours, as in @hu2022lora.

::figure {GSM8K}-rates
"""
    paper = made(body)
    markdown, latex = render_markdown(paper), render_latex(paper)
    assert (
        "**Figure 1.** On stories260K, by *seed* and 100 % ours, as in [Hu et al. (2022)](#hu2022lora).\n\n!"
        in markdown
    )
    own = r"\caption{On stories260K, by \emph{seed} and 100 \% ours, as in \citet{hu2022lora}.}"
    assert own in latex.replace("\n", "")
    assert f"**Figure 2.** {paper.figures[f'{GSM8K}-rates']}" in markdown  # its usual one
    assert [work.key for work in paper.works] == ["hu2022lora"]


def test_planted_ranks_of_several_files(studies: tuple[Findings, Beside], tmp_path: Path) -> None:
    names = ("recovery-stories260K", "recovery-stories260K-hindsight")
    own, beside = studies
    beside = replace(beside, planted={name: read_recovered(RESULTS / "bench" / f"{name}.json") for name in names})
    body = f"""<< planted.found.circumstances.steps >>
<< "hindsight" in recovery("{names[0]}").found.order() >> << "hindsight" in recovery("{names[1]}").found.order() >>"""
    paper, _ = own_manuscript(own, beside, People(), write(tmp_path, body))
    assert f"{beside.planted[names[0]].circumstances['steps']} False True" in render_markdown(paper)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<< study("gsm8k-stories260").n("seeds") >>', r"a study 'gsm8k-stories260' \(did you mean"),
        ('<< study("demo").n("sneeds") >>', "needs the fact `sneeds`"),
        ("<< nothing >>", "10-body.txt asks for what no study has: 'nothing' is undefined"),
        ('<< 1 + "a" >>', "10-body.txt could not be filled in: TypeError: unsupported operand"),
        ("One.\n\n<% if %>", "10-body.txt, line 3"),
        ("::table demo-vedicts", "shows the table demo-vedicts, which the results do not have"),
        ("::figure demo-nothing", "shows the figure demo-nothing, which the results do not have"),
        ("Of [@nobody2020].", "cites `nobody2020`"),
        ('<< recovery("babyllama") >>', r"planted ranks 'babyllama'.* There are: none"),
    ],
)
def test_what_nobody_has_is_refused(made: Callable[..., Manuscript], body: str, said: str) -> None:
    with pytest.raises(PaperError, match=said.replace("[", r"\[")):
        made(body)


def test_a_folder_without_its_parts_is_refused(made: Callable[..., Manuscript], tmp_path: Path) -> None:
    with pytest.raises(PaperError, match=r"missing: title.txt, abstract.txt"):
        made("Text.", title="", abstract="")
    (tmp_path / "10-body.txt").unlink()
    with pytest.raises(PaperError, match="has no body"):
        made("")


def test_expressions_reach_nothing_but_what_they_are_given(made: Callable[..., Manuscript]) -> None:
    with pytest.raises(PaperError, match=r"unsafe|undefined"):
        made('<< study.__globals__["PaperError"] >>')


def test_what_a_text_can_tell_is_listed(studies: tuple[Findings, Beside], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "open_findings", lambda folder: contextlib.nullcontext(studies[1].studies[0]))
    asked = ["paper", str(RESULTS / GSM8K), "--facts"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0 and told.stdout.startswith(f'study("{GSM8K}")\n')
    assert '  n("seeds.used")  12\n' in told.stdout
    assert f"  ::table {GSM8K}-verdicts\n" in told.stdout and f"  ::figure {GSM8K}-differences\n" in told.stdout
    listed = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert listed[GSM8K]["facts"]["seeds.used"] == "12" and "verdicts" in listed[GSM8K]["tables"]


@pytest.mark.parametrize("kind, name", [("figure", "differences"), ("table", "verdicts")])
def test_what_a_sentence_refers_to_is_shown(made: Callable[..., Manuscript], kind: str, name: str) -> None:
    text = f"# One\n\nSee [[{kind}:{GSM8K}-{name}]].\n"
    with pytest.raises(
        PaperError, match=f"refers to the {kind} {GSM8K}-{name} and does not show it; add a line `::{kind}"
    ):
        made(text)
    assert made(f"{text}\n::{kind} {GSM8K}-{name}\n")


def test_ceilings_are_counted_by_verdict(tmp_path: Path) -> None:
    names = ["ceiling-smollm2-reasoning", "ceiling-not-run"]
    with open_findings(RESULTS / names[0]) as found:
        counts = " ".join(f"<< cells({names}, {verdict}) | length >>" for verdict in ('"open"', '"closed"', "none"))
        paper, _ = own_manuscript(found, Beside(), People(), write(tmp_path, f"# One\n\nThere are {counts}.\n"))
    assert "There are 1 0 2." in render_markdown(paper)


def test_many_ceilings_stand_in_two_columns_of_like_height() -> None:
    with open_findings(RESULTS / "ceiling-stories260k-reasoning") as found:
        own = ceilings_of(found)
    names = [f"study {n}" for n in range(5)]
    figure = several_ceilings(dict.fromkeys(names, own))
    assert figure is not None and several_ceilings({}) is None and several_ceilings({"none": []}) is None
    titles = [[text.get_text() for text in axes.texts if text.get_text() in names] for axes in figure.axes]
    assert titles == [names[:2], names[2:]] or titles == [names[:3], names[3:]]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_ceilings_of_several_studies_share_a_figure(tmp_path: Path) -> None:
    """Each under what its name does not share with the others, with the verdict of every budget."""
    ran = RESULTS / "ceiling-smollm2-reasoning"
    with open_findings(ran) as one, open_findings(ran) as two, open_findings(RESULTS / "demo") as demo:
        other = replace(two, facts={**two.facts, "name": "ceiling-smollm2-again"})
        body = "# One\n\nSee [[figure:ceilings]].\n\n::figure ceilings\n"
        paper, drawn = own_manuscript(one, Beside((other, demo)), People(), write(tmp_path, body))
        (axes,) = drawn["ceilings"].axes
        assert [text.get_text() for text in axes.get_yticklabels()] == ["rank:2", "rank:4"] * 2
        said = [text.get_text() for text in axes.texts]
        assert said == ["reasoning", "open", "insensitive", "again", "open", "insensitive"]
        assert "a quarter of what half of the budget costs" in paper.figures["ceilings"]
        with pytest.raises(PaperError, match="figure ceilings, which the results do not have"):
            own_manuscript(demo, Beside(), People(), write(tmp_path, body))
