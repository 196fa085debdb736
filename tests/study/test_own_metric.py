"""Studies that are judged by another metric than test loss: by right answers, or by a command of their own."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adaptive_lora.cli.terminal import arms_table, status_view
from adaptive_lora.errors import PaperError, ScoringError, StudyFileError, StudyFolderError
from adaptive_lora.foreign.judging import Asked, judge_runs
from adaptive_lora.foreign.sources import Reading, read_runs
from adaptive_lora.reporting.exported import export_study, open_findings
from adaptive_lora.reporting.figures.all import looks_in
from adaptive_lora.reporting.figures.differences import paired_differences
from adaptive_lora.reporting.html.page import made_tables
from adaptive_lora.reporting.memory.memory_bank import memory_texts
from adaptive_lora.reporting.paper.build import write_paper
from adaptive_lora.reporting.results import load_results
from adaptive_lora.reporting.tables import to_csv, to_markdown
from adaptive_lora.reporting.templating import render, render_all
from adaptive_lora.stats.evidence import judge_primary, tables_of
from adaptive_lora.stats.metrics import EXACT_MATCH
from adaptive_lora.stats.run_table import Comparison
from adaptive_lora.study.archive import continue_from
from adaptive_lora.study.lock import read_lock
from adaptive_lora.study.open_ledger import create_or_open
from adaptive_lora.study.results import read_export
from adaptive_lora.study.runner import Silent, run_study
from adaptive_lora.study.scoring import read_scores
from adaptive_lora.study.status import StudyStatus, study_status
from adaptive_lora.study.study_file import load_study, parse_study
from adaptive_lora.training.checkpoint import StepRecord
from tests.conftest import STUDY
from tests.study.test_spec import GOOD

WriteStudy = Callable[..., Path]

SCORE = """
import json, os, sys, zlib
adapter, model, out = sys.argv[1:]
assert os.path.exists(os.path.join(model, "config.json"))
open("calls", "a").write(adapter + "\\n")
if os.path.exists("broken"):
    print("cannot load the reward model")
    sys.exit(3)
most = max(json.load(open(os.path.join(adapter, "plan.json")))["ranks"].values())
weights = open(os.path.join(adapter, "adapter_model.safetensors"), "rb").read()
own = 0.001 * zlib.crc32(weights) / 2**32
items = range(6 if os.path.exists("longer") else 5)
with open(out, "w") as file:
    for i in items:
        file.write(json.dumps({"record": f"item-{i}", "value": 0.1 * most + 0.01 * i + own}) + "\\n")
"""
"""A tenth of the largest rank, on five items: 0.2 of a uniform rank 2, and 0.1 of its half."""
COMMAND = f'["{sys.executable}", -S, -E, score.py]'
BY_COMMAND = f"metric: {{name: depth, command: {COMMAND}, better: higher}}"
TWO_ARMS = ("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]")
FOUR_SEEDS = ("evaluation: 2", "evaluation: 4")
SHORT = ("steps: 6", "steps: 2")
CHANGES = (TWO_ARMS, FOUR_SEEDS, SHORT, ("controls: none", "controls: [half, twin]"))
DECAY, DEMO = Comparison("linear-decay", "rank:2"), Comparison("linear-decay", "rank:4")


class Counting(Silent):
    """How many updates there were."""

    updates = 0

    def step(self, record: StepRecord) -> None:
        self.updates += 1


def analysis(text: str) -> tuple[str, str]:
    """In place of the study file's own."""
    return "analysis: {primary: []}", f"analysis: {{{text}}}"


@dataclass(frozen=True)
class Scored:
    """A finished study by the command, whose first score failed."""

    file: Path
    out: Path
    said: str
    """The failure."""
    then: StudyStatus
    """Where the study stood."""
    updates: int
    """How many more it took to finish."""

    @property
    def calls(self) -> list[str]:
        """The adapters that were scored, in their order."""
        return [Path(line).name for line in (self.file.parent / "calls").read_text().splitlines()]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Scored:
    """Both arms, the baseline at half the budget and its twin, with four seeds."""
    folder = tmp_path_factory.mktemp("scored")
    file, out, broken = folder / "study.yaml", folder / "out", folder / "broken"
    text = STUDY.format(model=model_folders["gpt2"])
    for old, new in (*CHANGES, analysis(f"{BY_COMMAND}, margin: half-budget")):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    (folder / "score.py").write_text(SCORE)
    broken.touch()
    with pytest.raises(ScoringError) as caught:
        run_study(load_study(file), out)
    then, heard = study_status(out), Counting()
    broken.unlink()
    assert run_study(load_study(file), out, heard).finished
    return Scored(file, out, str(caught.value), then, heard.updates)


@pytest.fixture
def copied(scored: Scored, tmp_path: Path) -> Scored:
    """The same in a folder of its own, to be changed."""
    shutil.copytree(scored.file.parent, tmp_path / "own")
    return replace(scored, file=tmp_path / "own" / "study.yaml", out=tmp_path / "own" / "out")


def unscore(study: Scored, *run_ids: str) -> None:
    """As after a kill before these were scored."""
    with contextlib.closing(create_or_open(study.out)) as ledger:
        ledger._db.executemany("DELETE FROM scores WHERE run_id = ?", [(run_id,) for run_id in run_ids])
        ledger._db.commit()


def test_a_command_that_fails_loses_nothing(scored: Scored) -> None:
    assert "gave uniform at rank:2, seed 0 no score: it ended with exit code 3" in scored.said
    assert "score.py " in scored.said and "  cannot load the reward model" in scored.said
    assert "Nothing that was trained or scored is lost" in scored.said and "--deviation" in scored.said
    assert (scored.then.left, scored.then.unscored, scored.then.finished) == (0, 12, False)
    assert "0 left and 12 to be scored" in str(status_view(scored.then).renderables[0])
    assert scored.updates == 0 and scored.calls[0] == scored.calls[1]
    assert len(scored.calls[1:]) == len(set(scored.calls)) == 12  # both arms and the half, and not the twin


def test_verdict_and_margin_are_in_the_metrics_unit(scored: Scored) -> None:
    with open_findings(scored.out) as found:
        judged, (assay,) = found.judged[DECAY], found.assays
        most = max(found.ranks.query("arm == 'linear-decay'")["rank"])
        arms = {(arm.arm, arm.budget): arm for arm in found.arms}
    assert judged.mean == pytest.approx(0.1 * (most - 2), abs=0.001) and judged.verdict == "better"
    assert judged.margin.usable and judged.margin.value == pytest.approx(0.025, abs=0.001)
    assert judged.interval is not None and judged.interval.low is not None and judged.interval.low > 0.025
    assert judged.beyond_margin and judged.records == 5
    assert judged.improvement is not None and judged.improvement.mean == 1.0
    assert assay.sensitive and assay.shown is not None and assay.shown.mean == pytest.approx(-0.1, abs=0.001)
    half = arms["uniform", "rank:1"]
    assert half.score is not None and half.score.mean == pytest.approx(0.12, abs=0.001) and half.loss is not None


def test_the_command_is_locked(scored: Scored) -> None:
    lock = read_lock(scored.out)
    assert lock is not None and lock["hypotheses"] == [
        "linear-decay differs in depth from uniform at rank:2, or is equivalent to it within a quarter of what half "
        "the budget costs"
    ]
    other = scored.file.with_name("other.yaml")
    other.write_text(scored.file.read_text().replace("score.py]", "score.py, --strict]"))
    with pytest.raises(StudyFolderError, match=r"analysis\.metric\.command: .*score\.py'\] there, .*'--strict'\] here"):
        run_study(load_study(other), scored.out)


def test_an_export_has_the_scores_and_goes_on_from_them(scored: Scored, tmp_path: Path) -> None:
    export, bare, on = tmp_path / "export", tmp_path / "bare", tmp_path / "on"
    export_study(scored.out, export)
    shutil.copytree(export, bare)
    (bare / "ledger.npz").unlink()
    frames = [load_results(folder).judge() for folder in (scored.out, export, bare)]
    assert frames[0].equals(frames[1]) and set(frames[2]["metric"]) == {"depth"}
    assert frames[2]["mean"].tolist() == pytest.approx(frames[0]["mean"].tolist())
    own = judge_runs(read_runs([str(export)]), Asked("uniform", tasks=("rank:2",)))
    assert [(o.paired.question.metric, str(o.verdict)) for o in own] == [("depth", "better")]
    heard, before = Counting(), scored.calls
    assert continue_from(export, load_study(scored.file), on) == 13
    assert run_study(load_study(scored.file), on, heard).finished
    assert heard.updates == 0 and scored.calls == before


def test_everything_that_is_shown_names_the_metric(scored: Scored, tmp_path: Path) -> None:
    with open_findings(scored.out) as found:
        tables = {table.name: table for own in made_tables(found).values() for table in own}
        heads = {name: to_csv(table).splitlines()[0] for name, table in tables.items()}
        assert all("difference_depth" in heads[name] for name in ("verdicts", "arms", "sizes"))
        assert "test_depth,test_depth_low" in heads["arms"] and "perplexity_percent" not in heads["sizes"]
        said = to_markdown(tables["verdicts"]) + to_markdown(tables["sizes"]) + to_markdown(tables["power"])
        assert "depth minus uniform" in said and "in depth" in said and "nats" not in said and "loss" not in said
        sentences = [*render_all("comparisons.description", found), *render_all("comparisons.reach", found)]
        sentences += [render("comparisons.assay", found.assays[0])]
        assert all("in depth" in text and "nats" not in text for text in sentences[:1] + sentences[-2:])
        # A tenth, give or take the thousandth that the adapters' bytes make.
        assert re.search(r"half of it, rank:1, is worse \(−0\.(099|100)", sentences[-1])
        figure = paired_differences(found.arms, looks_in(found), "uniform", found.margins, found.metric)
        assert figure is not None and figure.axes[-1].get_xlabel() == (
            "depth minus uniform, in depth (right: better than uniform)"
        )
        bank = memory_texts(found)
        assert "depth minus uniform, in depth" in bank["progress"] and "positive is better" in bank["progress"]
        assert "reach another depth" in bank["projectbrief"] and "nats" not in "".join(bank.values())
        assert "depth, in depth; minus uniform" in str(
            arms_table(found.arms, "uniform", found.judged, found.metric).title
        )
        with pytest.raises(PaperError, match="test loss alone, and small is judged by depth"):
            write_paper(found, tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


def test_only_what_has_no_score_is_scored_again(copied: Scored) -> None:
    first, study = copied.calls[0], load_study(copied.file)
    unscore(copied, first)
    with open_findings(copied.out) as found:
        assert found.judged[DECAY].n == 3 and found.status().unscored == 1
    (copied.file.parent / "longer").touch()
    with pytest.raises(ScoringError, match=r"other records than the runs before it, which had 5: 1 new \(item-5\)"):
        run_study(study, copied.out)
    (copied.file.parent / "longer").unlink()
    assert run_study(study, copied.out).finished and copied.calls[13:] == [first, first]

    unscore(copied, first)
    (copied.file.parent / "score.py").write_text("print('done')")
    with pytest.raises(ScoringError, match=r"it ended well, but wrote no file at its last argument[\s\S]*  done"):
        run_study(study, copied.out)
    shutil.rmtree(copied.out / "adapters" / first)
    with pytest.raises(ScoringError, match="its adapter is not in"):
        run_study(study, copied.out)


def test_looks_are_decided_by_the_metric(study_file: WriteStudy, tmp_path: Path) -> None:
    path = study_file(
        TWO_ARMS, SHORT, ("evaluation: 2", "evaluation: 6, looks: [4, 6]"), analysis(f"{BY_COMMAND}, margin: 0.01")
    )
    (path.parent / "score.py").write_text(SCORE)
    assert run_study(load_study(path), tmp_path / "out").expected == 8  # two ranks of two losses would take all twelve
    with open_findings(tmp_path / "out") as found:
        assert (found.judged[DECAY].verdict, found.judged[DECAY].look) == ("better", 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("record,value\n1,2\n1,3", "line 3: the record '1' is there twice"),
        ("record,score\n1,2", "it has the columns record, score, and needs `record` and `value`"),
        ("record,value\n1,nan", "line 2: 'nan' is no finite number"),
        ("record,value\n1,", "line 2 lacks `record` or `value`"),
        ("record,value\n", "it has no value"),
        ("", "it has the columns none"),
    ],
)
def test_scores_that_cannot_be_read_say_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_scores(text)


def test_no_answer_right_on_few_records_is_no_certainty(study_file: WriteStudy, tmp_path: Path) -> None:
    path = study_file(TWO_ARMS, FOUR_SEEDS, SHORT, analysis("metric: exact_match, margin: 0.01"))
    run_study(load_study(path), tmp_path / "out")
    with open_findings(tmp_path / "out") as found:
        judged = found.judged[DECAY]
        assert judged.mean == 0.0 and judged.records == 20 and judged.verdict == "undecided"
        assert all(arm.score is not None and arm.score.mean == 0.0 and not arm.same for arm in found.arms)
    (own,) = judge_runs(
        read_runs([str(tmp_path / "out")], Reading(metric="exact_match")), Asked("uniform", margin=0.01)
    )
    assert own.interval is not None and judged.interval is not None
    assert (own.interval.low, own.interval.high) == pytest.approx((judged.interval.low, judged.interval.high))
    assert own.p == pytest.approx(judged.p)


def test_exact_match_is_refused_where_answers_are_not_single(study_file: WriteStudy, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": f"well, {i}"} for i in range(80)]
    (tmp_path / "free.json").write_text(json.dumps(rows))
    path = study_file(TWO_ARMS, FOUR_SEEDS, ('"demo:fine-tuning"', "free.json"), analysis("metric: exact_match"))
    with pytest.raises(StudyFileError, match=r"analysis\.metric: `exact_match` counts whole"):
        run_study(load_study(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("exact", "expected 'test_loss', 'exact_match' or 'answer_match', got 'exact' .did you mean 'exact_match'"),
        ("{name: f1, command: [true]}", "analysis.metric.better: this key is missing"),
        ("{name: f1, better: up, command: [x]}", "analysis.metric.better: expected 'higher' or 'lower', got 'up'"),
        (
            "{name: exact_match, better: lower, command: [x]}",
            "analysis.metric.name: 'exact_match' is what runs have anyway",
        ),
        (
            "{name: f1, better: lower, command: [x], unit: 3}",
            "analysis.metric.unit: unknown key; keys here: name, command",
        ),
    ],
)
def test_what_is_wrong_with_a_metric_is_said(study_file: WriteStudy, metric: str, why: str) -> None:
    with pytest.raises(StudyFileError, match=why):
        load_study(study_file(analysis(f"primary: [], metric: {metric}")))


def test_a_program_that_is_nowhere_stops_the_study_before_it_begins(study_file: WriteStudy, tmp_path: Path) -> None:
    own = "metric: {name: f1, better: lower, command: [./score-it]}"
    path = study_file(TWO_ARMS, FOUR_SEEDS, analysis(own))
    with pytest.raises(StudyFileError, match=r"analysis\.metric\.command: there is no program '.*score-it'"):
        run_study(load_study(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_that_names_no_metric_is_the_one_it_always_was() -> None:
    own = parse_study(GOOD, Path("study.yaml"))
    assert own.content["analysis"]["metric"] == "test_loss"
    assert own.identity == "fca0026269a5de80aa4bd715d77361f2532fbd7beb7df43c1bdc8dc79aa16136"


def test_right_answers_of_the_demo_are_those_of_its_runs() -> None:
    folder = Path(__file__).parents[2] / "results" / "demo"
    facts, runs = read_export(folder)
    own = judge_primary(tables_of(runs, folder, EXACT_MATCH), [vars(DEMO)], facts["spec"])[DEMO]
    done = runs[(runs["phase"] == "evaluation") & (runs["replica"] == 0) & (runs["budget"] == DEMO.budget)]
    means = done.groupby("arm")["test_exact_match"].mean()
    assert own.mean == pytest.approx(means[DEMO.arm] - means["uniform"]) and own.mean != 0
    (other,) = judge_runs(
        read_runs([str(folder)], Reading(metric="exact_match")),
        Asked("uniform", tasks=(DEMO.budget,), arms=(DEMO.arm,)),
    )
    assert own.mean == pytest.approx(other.difference) and own.n == len(other.paired.table.seeds) > 1
