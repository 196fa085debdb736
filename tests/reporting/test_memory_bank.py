"""The memory bank: people's text untouched, true sentences for every state of a study, the same bytes each time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFolderError
from adaptive_lora.reporting.findings import read_findings
from adaptive_lora.reporting.memory.blocks import markers, put_block
from adaptive_lora.reporting.memory.memory_bank import TITLES, memory_texts, write_memory_bank
from adaptive_lora.stats.run_table import Status
from adaptive_lora.study.open_ledger import create_or_open, open_to_read
from tests.fresh import NEVER_ASKED, READING, fresh
from tests.reporting.ledgers import Made, make_study

EIGHT = {"uniform": 0.0, "linear-decay": 0.0005, "attention-heavy": 0.03, "empirical": -0.03, "eva": -0.004,
         "mlp-heavy": 0.001, "u-shape": 0.002, "linear-growth": 0.012}  # fmt: skip
BEGIN, END = markers("progress")
GRID = "[1e-3, 3e-3, 1e-2]"


TEXTS: dict[tuple[bytes, bool], dict[str, str]] = {}
"""Of ledgers by a hash of their bytes: most tests are about what becomes of texts, which take longer than all else."""


def texts_of(folder: Path, in_use: bool = False) -> dict[str, str]:
    files = [path for path in sorted(folder.glob("study.db*")) if path.suffix != ".db-shm"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest(), in_use
    if key not in TEXTS:
        with contextlib.closing(open_to_read(folder)) as ledger:
            TEXTS[key] = memory_texts(read_findings(ledger), in_use)
    return dict(TEXTS[key])


def update(folder: Path) -> list[str]:
    return [path.stem for path in write_memory_bank(texts_of(folder), folder)]


def change(folder: Path, query: str, *values: object) -> None:
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger._db.execute(query, values)
        ledger._db.commit()


def change_facts(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    with contextlib.closing(create_or_open(folder)) as ledger:
        facts = ledger.facts()
        edit(facts)
        ledger.set_facts(facts)


def steps(text: str) -> list[str]:
    return re.findall(r"^\d+\. (.*)$", text, re.M)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by many tests, changed by none."""
    return make_study(tmp_path_factory.mktemp("memory") / "study", Made(rates=GRID))


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A folder with a bank, and the ledger it was made from."""
    (tmp_path / "study.db").write_bytes((finished / "study.db").read_bytes())
    update(tmp_path)
    return tmp_path


def test_seven_files_with_heading_block_and_a_place_for_people(folder: Path) -> None:
    files = sorted((folder / "memory-bank").iterdir())
    assert [path.stem for path in files] == sorted(TITLES)
    for path in files:
        text = path.read_text()
        begin, end = markers(path.stem)
        assert text.startswith("# ") and "## Notes\n" in text and text.count(begin) == text.count(end) == 1
        assert not re.search(r"nan|None|  \S", text), path.name


def test_the_same_ledger_writes_nothing_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "memory-bank").iterdir()}
    TEXTS.clear()  # they are the same when they are made again
    assert update(folder) == []
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "memory-bank").iterdir()}


def test_edits_by_hand_outlive_every_update(folder: Path) -> None:
    path = folder / "memory-bank" / "progress.md"
    made = path.read_text()
    edited = "Mine, above.\n\n" + made.replace("# Progress\n", "# Our progress\n\nBetween *heading* and block.\n")
    edited = edited.replace("Yours, as is everything outside the markers.", "My note in the notes.") + "\n\ttail"
    path.write_text(edited)
    assert update(folder) == []
    assert path.read_text() == edited
    # Another result, another block, and still every word of theirs.
    change(
        folder, "UPDATE runs SET status = 'diverged' WHERE arm = 'linear-decay' AND phase = 'evaluation' AND seed < 4"
    )
    assert "progress" in update(folder)
    now = path.read_text()
    assert now != edited and now.split(BEGIN)[0] == edited.split(BEGIN)[0]
    assert now.split(END)[1] == edited.split(END)[1]


def test_what_is_typed_into_a_block_is_replaced(folder: Path) -> None:
    path = folder / "memory-bank" / "progress.md"
    made = path.read_text()
    path.write_text(made.replace(BEGIN, f"{BEGIN}\n\ninside"))
    assert update(folder) == ["progress"]
    assert path.read_text() == made


def test_line_ends_and_odd_bytes_stay(folder: Path) -> None:
    path = folder / "memory-bank" / "progress.md"
    made = path.read_bytes()
    windows = b"\xef\xbb\xbf" + made.replace(b"\n", b"\r\n").rstrip() + b" caf\xe9"
    path.write_bytes(windows)
    assert update(folder) == []
    path.write_bytes(windows.replace(b"uniform", b"UNIFORM"))
    assert update(folder) == ["progress"]
    assert path.read_bytes() == windows


@pytest.mark.parametrize("mine", ["", "No end of line", "One line\n", "Windows\r\nlines\r\n", "Old\rMac\r", "\n\n"])
def test_deleted_markers_come_back_at_the_end(folder: Path, mine: str) -> None:
    path = folder / "memory-bank" / "progress.md"
    path.write_bytes(mine.encode())
    assert update(folder) == ["progress"]
    assert path.read_bytes().startswith(mine.encode()) and END in path.read_text()
    assert update(folder) == []


@pytest.mark.parametrize(
    "torn",
    [BEGIN, END, f"{END}\n{BEGIN}", f"{END}\n{END}", f"{BEGIN}\n{markers('x')[1]}",
     f"{BEGIN}\n{BEGIN}\n{END}\n{END}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}",
     f"{BEGIN}\n{markers('x')[0]}\n{END}\n{markers('x')[1]}", f"{BEGIN}\n{markers('x')[0]}\n{markers('x')[1]}\n{END}"],
)  # fmt: skip
def test_torn_markers_are_refused_and_nothing_is_written(folder: Path, torn: str) -> None:
    path, other = (folder / "memory-bank" / f"{name}.md" for name in ("progress", "activeContext"))
    path.write_text(f"mine\n{torn}\nmine\n")
    other.unlink()
    with pytest.raises(StudyFolderError, match=r"progress\.md has broken markers: .*once each.* or delete both"):
        update(folder)
    assert path.read_text() == f"mine\n{torn}\nmine\n" and not other.exists()


def test_what_is_no_plain_text_file_is_refused(folder: Path) -> None:
    path = folder / "memory-bank" / "progress.md"
    path.write_text("# Mine", encoding="utf-16")
    with pytest.raises(StudyFolderError, match="not in UTF-8"):
        update(folder)
    path.unlink()
    (folder / "elsewhere.md").write_text("not ours")
    path.symlink_to(folder / "elsewhere.md")
    with pytest.raises(StudyFolderError, match="no plain file"):
        update(folder)
    assert (folder / "elsewhere.md").read_text() == "not ours"


WORDS = st.sampled_from(
    [BEGIN, END, *markers("other"), f"see `{BEGIN}`", "\n", "\r\n", "\r", " ", "mine", "\ufeff", "é"]
)
HUMAN = st.one_of(st.text(), st.lists(WORDS, max_size=12).map("".join))


@given(text=HUMAN, first=st.sampled_from(["", "one", "a\nb\n"]), second=st.sampled_from(["two", "- x\n\n- y"]))
@example(text="a\r", first="one", second="two")
@example(text=f"\ufeff{BEGIN}\r\n\r\n{END}", first="one", second="two")
def test_a_block_is_put_once_and_touches_nothing_else(text: str, first: str, second: str) -> None:
    try:
        once = put_block(text, "progress", first)
    except ValueError:
        assert "adaptive-lora:" in text
        return
    assert put_block(once, "progress", first) == once
    assert put_block(once, "progress", second) == put_block(text, "progress", second)
    assert _is_kept(_outside(text), once)


def test_a_block_may_stand_first_behind_a_byte_order_mark() -> None:
    text = f"\ufeff{BEGIN}\r\nold\r\n{END}"
    assert put_block(text, "progress", "new") == f"\ufeff{BEGIN}\r\n\r\nnew\r\n\r\n{END}"


def _outside(text: str) -> str:
    """What stands outside the block, if there is one."""
    line = r"(?<![^\r\n\ufeff])[ \t]*{}[ \t]*(?![^\r\n])"
    return re.sub(f"({line.format(re.escape(BEGIN))}).*?({line.format(re.escape(END))})", r"\1\2", text, flags=re.S)


def _is_kept(text: str, within: str) -> bool:
    """Whether every character is there, in order."""
    rest = iter(within)
    return all(character in rest for character in text)


def test_all_seven_are_short_enough_to_be_read_whole(tmp_path: Path) -> None:
    """Eight arms, two budgets, every control, as many hypotheses as there may be, a rate at the edge, a divergence,
    a deviation."""
    primary = ["linear-decay", "attention-heavy", "empirical", "eva", "mlp-heavy"]
    made = Made(
        EIGHT, ("rank:4", "rank:8"), seeds=10, spread=0.02, noise=0.3, primary=primary, rates=GRID, best_rate=1e-2
    )
    make_study(tmp_path, made)
    change(tmp_path, "UPDATE runs SET status = 'diverged', error = 'loss is not finite' WHERE arm = 'eva' AND seed = 3")
    deviate(tmp_path, "one seed more, " * 20)
    update(tmp_path)
    words = {path.stem: len(path.read_text().split()) for path in (tmp_path / "memory-bank").iterdir()}
    assert sum(words.values()) < 1520, words  # 1,500 with a note or two
    assert all(count > 30 for count in words.values())


def deviate(folder: Path, reason: str) -> None:
    def edit(facts: dict[str, Any]) -> None:
        facts["lock"]["deviations"] = [
            {
                "when": "2026-03-05T08:00:00+00:00",
                "reason": reason,
                "results": 0,
                "differences": ["data.train: 50 locked, 100 now"],
            }
        ]

    change_facts(folder, edit)


def test_a_finished_study_tells_verdicts_sizes_and_what_to_do(finished: Path) -> None:
    texts = texts_of(finished)
    assert "Finished: 103 of 103 runs have a result" in texts["activeContext"]
    assert "- linear-decay is better than uniform." in texts["progress"]
    interval = r"−0\.0\d{2,3} \[−0\.0\d{2,3}, −0\.0\d{2,3}\]"
    assert re.search(rf"\| linear-decay \| {interval} better \|", texts["progress"])
    assert "By more than the margin, as the whole interval says: linear-decay." in texts["progress"]
    assert "95 % interval over new seeds and records" in texts["progress"]
    assert "At rank:4 this task can tell ranks apart: half of it, rank:2" in texts["progress"]
    parts = r"where there is one\.\n\n- Uneven ranks cost; .* \(better\)\.\n\nExploratory:\n"
    assert re.search(parts, texts["progress"])
    assert "Exploratory:\n\n- Whether anything breaks cannot be said: " in texts["progress"]
    assert [step.split()[0] for step in steps(texts["activeContext"])] == ["Try"]
    assert "linear-decay at rank:4 on another model or data set" in texts["activeContext"]
    assert "2026-03-01: locked before the first step: 1 comparison, baseline uniform" in texts["decisionLog"]
    assert "0.003: uniform, linear-decay" in texts["decisionLog"]
    assert "Trained on 2023-11-14 (UTC)" in texts["techContext"]
    assert "1 comparison, one family" in texts["projectbrief"] and "the baseline's twin" in texts["projectbrief"]
    assert "Here: 1 better." in texts["productContext"]
    assert "| linear-decay | 1 to 7 |" in texts["systemPatterns"]


CASES: dict[str, tuple[Made, str, str]] = {
    "equivalent": (Made({"uniform": 0.0, "linear-decay": 0.0}), "linear-decay is equivalent to uniform.",
                   "Use uniform where linear-decay at rank:4 would be the choice"),
    "equivalent, though half the budget is as good": (
        Made({"uniform": 0.0, "linear-decay": 0.0}, worth=0.0), "At rank:4 this task cannot tell ranks apart",
        "Choose a harder task, more training records, or a budget below rank:4"),
    "equivalent, and never asked whether the task tells": (
        Made({"uniform": 0.0, "linear-decay": 0.0}, controls="[twin]"), "was not tested",
        "Add `half` to `controls`"),
    "equivalent, though half is worse by a tenth of the margin alone": (
        Made({"uniform": 0.0, "linear-decay": 0.0}, worth=0.001, spread=0.0003), "worse by less than that",
        "Choose a harder task, more training records, or a budget below rank:4"),
    "equivalent at a budget whose half was not trained": (
        Made({"uniform": 0.0, "linear-decay": 0.0}, budgets=("rank:4", "rank:8"), controls="none"),
        "not tested at rank:4",
        "Add `half` to `controls`: whether this task is sensitive to rank was not tested at rank:4."),
    "undecided": (Made({"uniform": 0.0, "linear-decay": 0.005}, spread=0.012), "linear-decay is not decided against",
                  "Decide what is open in a new study with fresh evaluation seeds, more than the 8 here"),
    "worse": (Made({"uniform": 0.0, "linear-decay": 0.03}), "linear-decay is worse than uniform.",
              "Leave linear-decay at rank:4 out of what follows"),
    "records vary more than the margin": (
        Made({"uniform": 0.0, "linear-decay": -0.1}, noise=0.3), "linear-decay is better",
        "Raise `data.test` from 400 to"),
    "a rate at the edge": (Made(best_rate=1e-2, rates=GRID), "the edge of the grid: add 0.03",
                           "Widen `train.learning_rate` by 0.03"),
    "no hypothesis": (Made(primary=()), "named no hypothesis before it began", "name hypotheses under"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_results_lead_to_their_sentences_and_first_steps(tmp_path: Path, case: str) -> None:
    made, said, step = CASES[case]
    texts = texts_of(make_study(tmp_path / "study", made))
    assert said in texts["progress"]
    assert step in steps(texts["activeContext"])[0], texts["activeContext"]
    blunt = made.worth == 0 or made.controls == "[twin]"
    used = re.findall("Use uniform where (.*) would be the choice", texts["activeContext"])
    firm = {"equivalent": "rank:4", "equivalent at a budget whose half was not trained": "rank:8"}
    expected = [f"linear-decay at {firm[case]}"] if case in firm else []
    assert used == expected, "no advice on a task that tells nothing"
    assert not blunt or "no difference beyond" not in texts["activeContext"]


def test_survivors_are_told_as_such_and_more_seeds_are_no_remedy(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made(seeds=12))
    change(folder, "UPDATE runs SET status = 'diverged', error = 'loss is not finite' WHERE arm = 'linear-decay' AND "
           "phase = 'evaluation' AND seed < 4")  # fmt: skip
    texts = texts_of(folder)
    assert "linear-decay (diverged on 4 of 12 seeds) is not decided against uniform." in texts["progress"]
    (step,) = steps(texts["activeContext"])
    assert step == (
        "Find out why runs diverge in the comparison of linear-decay at rank:4: more seeds would not decide it."
    )


def test_a_study_that_has_hardly_begun(tmp_path: Path) -> None:
    texts = texts_of(make_study(tmp_path / "study", Made(), stop_after=0))
    assert "Nothing has been trained yet: 0 of 49 runs" in texts["activeContext"]
    assert steps(texts["activeContext"])[0] == (
        "Finish 49 runs that are missing: `adaptive-lora run study.yaml --out .`."
    )
    assert "Nothing to compare yet" in texts["progress"] and "No plan is recorded yet." in texts["systemPatterns"]
    assert not any(re.search(r"nan|None", text) for text in texts.values())


def test_an_interrupted_study_says_how_to_go_on_and_no_more(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", Made(), stop_after=40)
    texts = texts_of(folder)
    assert "Unfinished: 40 of 49 runs have a result; 1 interrupted." in texts["activeContext"]
    assert "What follows may change." in texts["progress"]
    assert [step.split()[0] for step in steps(texts["activeContext"])] == ["Finish", "Then"]
    running = texts_of(folder, in_use=True)["activeContext"]
    assert "Running: a process works on this study now" in running and "Wait for 9 runs" in running


def test_failed_runs_are_told_with_their_reason(folder: Path) -> None:
    change(folder, "UPDATE runs SET status = ?, error = ? WHERE arm = 'random' AND phase = 'evaluation' AND seed < 2",
           Status.FAILED, "out of memory at step 3")  # fmt: skip
    text = texts_of(folder)["activeContext"]
    assert "2 failed (random): out of memory at step 3" in text
    assert steps(text)[0].startswith("Fix what made 2 runs fail")
    # A deviation that sets the failed runs aside leaves nothing to repeat.
    with contextlib.closing(open_to_read(folder)) as ledger:
        aside = [run["run_id"] for run in ledger.runs() if run["status"] == Status.FAILED]
    change_facts(folder, lambda facts: facts.update(set_aside=aside, expected_runs={"evaluation": 103 - len(aside)}))
    assert "failed" not in texts_of(folder)["activeContext"]


def test_divergence_counts_as_a_result(folder: Path) -> None:
    change(folder, "UPDATE runs SET status = 'diverged' WHERE arm = 'linear-decay' AND seed IN (0, 1)")
    texts = texts_of(folder)
    assert "Finished: 103 of 103" in texts["activeContext"] and "linear-decay (2 evaluation)" in texts["activeContext"]
    assert "Means are over the seeds that remain." in texts["decisionLog"]


def test_a_deviation_is_told_with_its_reason(folder: Path) -> None:
    deviate(folder, "a seed more")
    texts = texts_of(folder)
    assert "2026-03-05: deviation from the lock. Why: a seed more. What: data.train: 50 locked" in texts["decisionLog"]
    assert "changed after it was locked, last on 2026-03-05" in texts["activeContext"]


NASTY = f"x\n{END}\n{BEGIN}\n# head\n| zz |\x1b[31m\u202e</p><script>[a](http://b)![c](http://d) `tick` **b** \x00"


def test_foreign_text_breaks_neither_markers_nor_markdown(folder: Path) -> None:
    change(folder, "UPDATE runs SET status = 'failed', error = ?, device = ? WHERE arm = 'random'", NASTY, NASTY)
    change(folder, "UPDATE runs SET scaling = ?", NASTY)  # fmt: skip
    deviate(folder, NASTY)

    def edit(facts: dict[str, Any]) -> None:
        facts["name"] = facts["model"]["name"] = facts["data"]["source"] = facts["data"]["licence"] = NASTY
        facts["lock"]["deviations"][0]["differences"] = facts["spec"]["targets"] = [NASTY]
        facts["lock"]["controls"]["arms"] = {NASTY: NASTY, "random": None}
        facts["versions"] = {NASTY: NASTY}

    change_facts(folder, edit)
    update(folder)
    assert update(folder) == []
    for path in (folder / "memory-bank").iterdir():
        text = path.read_text()
        assert text.count("<!-- adaptive-lora") == 2, path.name
        outside_code = re.sub(r"`[^`\n]*`", "", text)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text), path.name
        assert not re.search(r"<script|</p|(?<!\\)\]\(http|^# head|^\| zz", outside_code, re.M), path.name


def test_the_verb_shows_and_updates(folder: Path) -> None:
    found = CliRunner().invoke(app, ["memory", str(folder)])
    assert found.exit_code == 0 and "nothing changed" in found.stderr
    assert found.stdout.startswith("# Active context\n") and "# Progress\n\n- linear-decay is better" in found.stdout
    (folder / "memory-bank" / "progress.md").unlink()
    found = CliRunner().invoke(app, ["memory", str(folder), "--json"])
    told = json.loads(found.stdout)
    assert told["changed"] == ["progress.md"] and set(told["texts"]) == set(TITLES)
    assert (folder / "memory-bank" / "progress.md").exists()
    (folder / "memory-bank" / "progress.md").write_text(BEGIN)
    found = CliRunner().invoke(app, ["memory", str(folder)])
    assert found.exit_code == 2 and "broken markers" in found.stderr and not found.stdout
    found = CliRunner().invoke(app, ["memory", str(folder / "memory-bank")])
    assert found.exit_code == 2 and "no study folder" in found.stderr


def test_run_and_report_keep_it_current(study_file: Callable[..., Path], tmp_path: Path) -> None:
    out, path = tmp_path / "out", study_file(("[uniform, linear-decay, empirical, random]", "[uniform, linear-decay]"))
    assert CliRunner().invoke(app, ["run", str(path), "--out", str(out)]).exit_code == 0
    bank = out / "memory-bank"
    assert "Finished: 4 of 4 runs" in (bank / "activeContext.md").read_text()
    with (bank / "progress.md").open("a") as file:
        file.write("\nA note by hand.\n")
    before = {file.name: file.read_bytes() for file in bank.iterdir()}
    assert CliRunner().invoke(app, ["run", str(path), "--out", str(out)]).exit_code == 0
    assert {file.name: file.read_bytes() for file in bank.iterdir()} == before
    (bank / "decisionLog.md").unlink()
    (bank / "activeContext.md").write_text(markers("activeContext")[0])
    found = CliRunner().invoke(app, ["report", str(out)])
    assert found.exit_code == 0 and "memory bank is not up to date" in found.stderr  # the report stands all the same
    (bank / "activeContext.md").unlink()
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert {file.name: file.read_bytes() for file in bank.iterdir()} == before


def test_an_interrupted_run_leaves_a_bank(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptive_lora.cli import progress as lines

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lines.PlainProgress, "begin", interrupt)
    found = CliRunner().invoke(app, ["run", str(study_file()), "--out", str(tmp_path / "out")])
    assert found.exit_code == 130
    assert "Unfinished: 0 of 8 runs" in (tmp_path / "out" / "memory-bank" / "activeContext.md").read_text()


def test_it_needs_no_torch() -> None:
    done = fresh(READING).run("import adaptive_lora.reporting.memory.memory_bank\n" + NEVER_ASKED)
    assert done.returncode == 0, done.stderr
