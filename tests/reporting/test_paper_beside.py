"""A paper that tells more than one study: the words about each are those of its own verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import PaperError
from adaptive_lora.reporting.exported import open_findings
from adaptive_lora.reporting.paper import build
from adaptive_lora.reporting.paper.build import manuscript
from adaptive_lora.reporting.paper.manuscript import Manuscript, People
from adaptive_lora.reporting.paper.other_studies import open_beside
from adaptive_lora.reporting.paper.study_facts import winners
from tests.committed import RESULTS
from tests.reporting.test_paper import higher, lower, no_difference, set_losses, study, tables_of, uncompiled

__all__ = ["study", "uncompiled"]  # fixtures
BENCH = Path(__file__).parents[2] / "results" / "bench"


@pytest.fixture
def folders(study: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two exports, the second under another name."""
    one, other = (tables_of(study, tmp_path / name) for name in ("one", "other"))
    change(other, name="second")
    return one, other


def change(folder: Path, **facts: object) -> None:
    path = folder / "facts.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def made(one: Path, *others: Path) -> Manuscript:
    with open_findings(one) as found, open_beside(others) as beside:
        return manuscript(found, beside, People())[0]


def prose(paper: Manuscript) -> str:
    blocks = [*paper.abstract, *paper.blocks]
    return "\n".join("".join(span.content for span in item) for block in blocks for item in block.items)


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        (no_difference, lower, "The studies do not agree: decay-01 in second did better"),
        (no_difference, no_difference, "Nothing here speaks against uniform ranks"),
        (lower, higher, "the plans named above are worth trying"),
    ],
)
def test_each_study_claims_what_its_own_verdicts_allow(
    folders: tuple[Path, Path], here: Callable[[int], float], there: Callable[[int], float], says: str
) -> None:
    one, other = folders
    set_losses(one, decay_01=here, decay_02=no_difference)
    set_losses(other, decay_01=there, decay_02=no_difference)
    paper = made(one, other)
    text = prose(paper)
    part = text[text.index("The study second") : text.index("Discussion")]
    assert says in text
    assert ("Better than uniform: decay-01" in part) == (there is lower)
    assert ("Worse: decay-01" in part) == (there is higher)
    assert "second-conclusions" in paper.tables and "second-conclusions" in {b.content for b in paper.blocks}


def test_a_study_alone_tells_of_no_other(folders: tuple[Path, Path]) -> None:
    alone = prose(made(folders[0]))
    assert "Further studies" not in alone and "planted" not in alone


def test_the_same_arms_are_set_against_each_other_on_the_same_task_alone(folders: tuple[Path, Path]) -> None:
    one, other = folders
    paper = made(one, other)
    table = paper.tables["second-against"]
    assert [row.arm for row in table.rows] == ["decay-01", "decay-02"]
    assert re.fullmatch(r"\d(\.5)? of \d", str(table.rows[0].cells[2]))
    change(other, data={**json.loads((other / "facts.json").read_text())["data"], "source": "elsewhere.json"})
    assert "second-against" not in made(one, other).tables


def test_what_single_seeds_would_have_concluded(folders: tuple[Path, Path]) -> None:
    _, other = folders
    set_losses(other, decay_01=lambda i: -0.1 if i < 3 else 0.1, decay_02=lambda i: -0.2 if i == 0 else 0.2)
    with open_findings(other) as found:
        lowest = winners(found, "rank:4", ["decay-01", "decay-02"])
    assert lowest["decay-01"] == 2 and lowest["decay-02"] == 1 and sum(lowest.values()) == 9
    assert next(iter(lowest)) == "uniform"


def test_two_studies_of_one_name_and_two_files_of_planted_ranks_are_refused(folders: tuple[Path, Path]) -> None:
    one, other = folders
    with pytest.raises(PaperError, match="Two studies are called"):
        made(one, one)
    with pytest.raises(PaperError, match="Two studies are called second"):
        made(one, other, other)
    with pytest.raises(PaperError, match=r"have one name: there/a\.json, here/a\.json"):
        made(one, Path("there/a.json"), Path("here/a.json"))
    planted = [RESULTS / "bench" / f"recovery-{name}.json" for name in ("stories260K", "stories260K-dev")]
    with pytest.raises(PaperError, match="recovery-stories260K and recovery-stories260K-dev were given"):
        made(one, *planted)


def test_a_missing_fact_of_another_study_stops_the_build(folders: tuple[Path, Path]) -> None:
    one, other = folders
    facts = json.loads((other / "facts.json").read_text())
    change(other, model={**facts["model"], "total_parameters": None})
    with pytest.raises(PaperError, match=r"`model\.parameters`"):
        made(one, other)


@pytest.mark.usefixtures("uncompiled")
def test_planted_ranks_are_told_with_what_does_not_count(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = folders
    draw = build._pictures
    monkeypatch.setattr(build, "_pictures", lambda drawn: draw({"planted": drawn["planted"]}))  # the others take long
    planted = one / "planted.json"
    found = json.loads((BENCH / "recovery-babyllama.json").read_text())
    few = {"last-mlp": 6, "two-blocks": 5, "few-modules": 6, "uniform": 5}  # with these the second does not count
    found["results"] = [r for r in found["results"] if r["seed"] - 3000 < few.get(r["truth"], 0)]
    planted.write_text(json.dumps(found))
    result = CliRunner().invoke(app, ["paper", str(one), "--with", str(other), "--with", str(planted)])
    assert result.exit_code == 0, result.stderr
    text = (one / "paper" / "paper.md").read_text()
    assert "Where the right plan is known" in text and (one / "paper" / "figures" / "planted.pdf").exists()
    assert "The study second" in text
    above = re.search(r"Over (.*?), (.*?) recovers? a share whose interval lies above zero", text)
    assert above is not None and above.group(1) == "last-mlp and few-modules"
    assert above.group(2).startswith("marginal-gain, lora-drop") and "inverted" not in above.group(2)
    assert "It does for last-mlp and few-modules, and not for two-blocks" in text
    assert "Over last-mlp, two-blocks and few-modules alike, on the seeds that all of them have, marginal-gain" in text


def _another(result: dict[str, Any], truth: str, shrunk: float, **shares: float) -> dict[str, Any]:
    """The same divergences on another truth, drawn together and with other shares of the oracle's gain."""
    d = {name: shrunk * value for name, value in result["divergence"].items()}
    gain = d["uniform"] - d["oracle"]
    moved = {name.replace("_", "-"): d["uniform"] - share * gain for name, share in shares.items()}
    return {**result, "truth": truth, "divergence": d | moved}


@pytest.mark.usefixtures("uncompiled")
def test_where_the_best_strategy_is_not_the_best_is_said(folders: tuple[Path, Path]) -> None:
    one, other = folders
    planted = one / "planted.json"
    found = json.loads((BENCH / "recovery-babyllama.json").read_text())
    growing = [r for r in found["results"] if r["truth"] == "growing"]
    found["results"] = [r for r in found["results"] if r["truth"] in ("last-mlp", "growing")]
    spread = {"marginal_gain": 0.0, "posthoc_svd": 0.9, "mlp_only": 1.0}
    found["results"] += [_another(r, "mlp-only", 1.0, **spread) for r in growing]
    found["results"] += [_another(r, "real", 0.01, marginal_gain=0.5, eva=0.7) for r in growing]
    planted.write_text(json.dumps(found))
    paper = made(one, other, planted)
    text = prose(paper)
    assert "a choice made after a look" not in text  # all truths have the same seeds
    assert "in few layers. On growing, mlp-only and real, which do not, the largest shares are" in text
    assert "on mlp-only, posthoc-svd with 0.90" in text and "on real, eva with 0.70" in text
    assert "On mlp-only marginal-gain kept uniform ranks on every seed and recovers nothing" in text
    assert "On real marginal-gain recovers 0.50" in text and "On growing marginal-gain" not in text
    assert "are worth less than what this paper calls a difference" in text
    assert "on other patterns (mlp-only and real) others recover more" in text
    assert [c.name for c in paper.tables["planted-spread"].columns][1:4] == ["growing", "mlp_only", "real"]


@pytest.mark.usefixtures("uncompiled")
def test_a_study_made_to_break_training_is_told_by_its_map_and_its_changes(folders: tuple[Path, Path]) -> None:
    paper = made(folders[0], BENCH.parent / "stability")
    text = prose(paper)
    assert "no plan, under any rule of scaling, is shown to break" in text
    assert "The scaling rule is a cause of the break (alpha-over-r scaling of empirical at rank:8)" in text
    assert {b.content for b in paper.blocks} >= {"stability-changes", "stability-stability"}
    effects = {str(row.cells[-1]) for row in paper.tables["stability-changes"].rows}
    assert "This change removes the break there" in effects
    assert "stability" not in {label.partition("-")[2] for label in made(folders[0]).figures}
