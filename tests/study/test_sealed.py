"""Whatever is changed in a ledger, what is read is what was written or an error that names the run and the remedy."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from adaptive_lora.cli.app import explained
from adaptive_lora.errors import LedgerDamaged, StudyFolderError
from adaptive_lora.stats.run_table import Phase, Status
from adaptive_lora.streams import numpy_stream
from adaptive_lora.study.folder import StudyPaths
from adaptive_lora.study.ledger import Ledger, SplitResult
from adaptive_lora.study.open_ledger import columns_of, create_or_open, open_to_read
from adaptive_lora.study.results import runs_table
from adaptive_lora.study.sealed import TABLES
from tests.study.test_ledger import PLAN, RUN

RUNS = 8


def fill(folder: Path) -> Path:
    """A ledger of several pages: some finished runs, one diverged, one begun, plans, curves, scores; all by chance."""
    random = numpy_stream(0, "ledger")
    folder.mkdir(exist_ok=True)
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.set_facts({"name": "s", "expected_runs": {"evaluation": RUNS}, "spec": {"x": list(range(400))}})
        runs = {
            f"{i:016x}": replace(RUN, seed=i, phase=Phase.TUNING if i % 2 else Phase.EVALUATION) for i in range(RUNS)
        }
        ledger.register(runs)
        ledger.store_base({split: result(random) for split in ("validation", "test")})
        for i, run_id in enumerate(runs):
            ledger.begin(run_id, "bank of 8", "cpu", 60)
            ledger.record_step(run_id, 30)
            if i == 1:
                ledger.fail(run_id, Status.DIVERGED, "the loss at step 3 is not finite", 3)
            elif i != 2:
                names = ("step", "loss", "gradient_norm", "learning_rate", "tokens")
                curve = {name: random.random(60).tolist() for name in names}
                splits = ("validation",) if i % 2 else ("validation", "test")
                plan, seconds = {**PLAN, "provenance": {}}, {"plan": 0.5, "train": 7.0}
                ledger.complete(run_id, plan, curve, {split: result(random) for split in splits}, seconds)
                ledger.scores.store(run_id, "command:x", ["a", "b"], random.random(2))
        ledger.planning.store_measurement("k", {"measure": "x"}, {"values": random.random(40).tolist()})
    return StudyPaths(folder).ledger


def result(random: np.random.Generator) -> SplitResult:
    tokens = random.integers(1, 50, 150)
    return SplitResult(tokens * random.random(150), tokens, random.random(150) < 0.5)


def everything(ledger: Ledger) -> list[Any]:
    """All that anyone reads of a ledger."""
    found: list[Any] = [
        ledger.facts(),
        ledger.runs(every=True),
        ledger.totals(),
        ledger.counts(),
        ledger.tuning_results(),
    ]
    found += [ledger.scores.means("command:x"), ledger.planning.measurements(), ledger.planning.measurement("k")]
    found += [
        list(ledger.plans()),
        [[(i, {k: list(v) for k, v in c.items()}) for i, c in ledger.curves(p)] for p in Phase],
    ]
    for run_id, split in ledger.totals():
        own = ledger.by_record(run_id, split)
        assert own is not None
        found.append([own.nll.tolist(), own.tokens.tolist(), own.exact.tolist()])
        found.append(ledger.scores.values(run_id, "command:x"))
    return [*found, runs_table(ledger).to_csv()]


def read_all(folder: Path) -> str:
    with contextlib.closing(open_to_read(folder)) as ledger:
        return repr(everything(ledger))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    """A ledger, its bytes, and all that is read of it."""
    path = fill(tmp_path_factory.mktemp("ledger"))
    return path, path.read_bytes(), read_all(path.parent)


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    damaged[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def test_whatever_is_damaged_results_are_those_that_were_written_or_none(whole: tuple[Path, bytes, str]) -> None:
    path, content, told = whole
    random, refused = numpy_stream(0, "flips"), 0
    damaged = [flipped(content, random) for _ in range(40)]
    for page in range(0, len(content), 4096):
        damaged.append(content[:page] + bytes(4096) + content[page + 4096 :])
    damaged += [content[: len(content) // 2], content[:4096], b"\1" * 8192]
    for version in damaged:
        path.write_bytes(version)
        try:
            assert read_all(path.parent) == told
        except StudyFolderError as error:
            refused += 1
            assert "adaptive-lora recover" in str(error) or "never began" in str(error)
    path.write_bytes(content)
    assert refused > len(damaged) / 3 and read_all(path.parent) == told


def changed(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("UPDATE runs SET seed = 7 WHERE run_id LIKE '%3'", r"run 0+3 is not what was written"),
        (
            "UPDATE evaluations SET nll = nll + 1 WHERE run_id LIKE '%4'",
            r"run 0+4 \(uniform at rank:4, seed 4\), its row in `evaluations` \(\w+\)",
        ),
        ("UPDATE evaluations SET exact_by_record = nll_by_record WHERE run_id LIKE '%4'", r"run 0+4 .*`evaluations`"),
        ("UPDATE curves SET points = x'00' WHERE run_id LIKE '%5'", r"run 0+5 .*its row in `curves` is not what"),
        ("UPDATE plans SET plan = x'00' WHERE run_id LIKE '%6'", r"run 0+6 .*its row in `plans` is not what"),
        ("UPDATE scores SET mean = 0 WHERE run_id LIKE '%6'", r"run 0+6 .*its row in `scores` \(command:x\)"),
        ("UPDATE study SET value = '[]' WHERE key = 'name'", r"'name' in its table `study` is not what"),
        ("DELETE FROM runs WHERE run_id LIKE '%3'", r"run 0+3 is gone"),
        (
            "DELETE FROM evaluations WHERE run_id LIKE '%4' AND split = 'test'",
            r"run 0+4 .*`evaluations` \(test\) is gone",
        ),
        ("DELETE FROM digests WHERE key LIKE '%3'", r"run 0+3 .*has no digest"),
        ("UPDATE runs SET rowid = 99 WHERE run_id LIKE '%3'", r"run 0+3 is not what was written"),
        ("DROP TABLE scores", r"its table `scores` is gone"),
        ("ALTER TABLE runs RENAME COLUMN seed TO seec", r"its table `runs` cannot be read: no such column: seed"),
    ],
)
def test_the_error_names_the_run_and_the_remedy(tmp_path: Path, statement: str, match: str) -> None:
    path = fill(tmp_path)
    changed(path, statement)
    with pytest.raises(LedgerDamaged, match=match) as error:
        read_all(tmp_path)
    assert f"{path} is damaged: " in str(error.value) and f"`adaptive-lora recover {tmp_path}`" in str(error.value)


def test_a_ledger_of_before_is_read_as_it_is_and_gets_digests_when_it_is_written(tmp_path: Path) -> None:
    path = fill(tmp_path)
    told = read_all(tmp_path)
    changed(path, "DROP TABLE digests", "PRAGMA user_version = 2")
    assert read_all(tmp_path) == told
    for _ in range(2):
        create_or_open(tmp_path).close()
        assert read_all(tmp_path) == told
        changed(path, "PRAGMA user_version = 2")  # a flipped bit of what has digests
    changed(path, "UPDATE runs SET seed = 7 WHERE run_id LIKE '%3'")
    with pytest.raises(LedgerDamaged):
        read_all(tmp_path)


def test_a_torn_ledger_of_before_gets_no_digests_and_says_what_it_is(tmp_path: Path) -> None:
    path = fill(tmp_path)
    changed(
        path, "DROP TABLE digests", "PRAGMA user_version = 2", "UPDATE curves SET points = x'00' WHERE run_id LIKE '%5'"
    )
    with pytest.raises(LedgerDamaged, match=r"run 0+5 cannot be read"):
        read_all(tmp_path)
    with pytest.raises(
        LedgerDamaged, match=r"run 0+5 \(uniform at rank:4, seed 5\), its row in `curves` does not add up"
    ):
        create_or_open(tmp_path)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 4 * 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged):
        create_or_open(tmp_path)


def test_a_column_in_the_other_case_is_the_same_column(tmp_path: Path) -> None:
    """A flipped bit of the schema; SQLite gives the name as it stands in the file."""
    path = fill(tmp_path)
    told = read_all(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"started REAL, finished REAL", b"started REAL, finisHed REAL"))
    assert read_all(tmp_path) == told


def test_a_copy_is_as_sound_as_the_ledger(whole: tuple[Path, bytes, str], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    StudyPaths(tmp_path / "own").ledger.write_bytes(whole[1])
    with contextlib.closing(create_or_open(tmp_path / "own")) as ledger:
        ledger.set_facts({"name": "another"})  # a row that was written again has another place than at first
        ledger.copy_to(StudyPaths(tmp_path).ledger)
        copied = everything(ledger)
    with contextlib.closing(open_to_read(tmp_path)) as copy:
        copy.check()
        assert repr(everything(copy)) == repr(copied)
        places = copy._db.execute("SELECT rowid FROM study ORDER BY rowid").fetchall()
    assert [place for (place,) in places] != list(range(1, len(places) + 1))


def test_every_column_of_every_table_is_covered() -> None:
    own = {name: set(columns) for name, columns in columns_of().items() if name != "digests"}
    assert own == {name: set(table.columns) for name, table in TABLES.items()}


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("PRAGMA max_page_count = 1; CREATE TABLE a (x); CREATE TABLE b (x)", "is the disk full"),
        ("SELECT * FROM none_such", "the ledger: no such table: none_such"),
    ],
)
def test_what_sqlite_says_is_told_for_what_it_is(fault: str, match: str, capsys: Any) -> None:
    @explained
    def verb() -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            for statement in fault.split("; "):
                db.execute(statement)

    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == 1 and match in capsys.readouterr().err


def test_a_damaged_ledger_is_not_called_a_full_disk(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "torn.db"
    path.write_bytes(b"\1" * 8192)

    @explained
    def verb() -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("SELECT * FROM sqlite_schema")

    with pytest.raises(typer.Exit):
        verb()
    told = capsys.readouterr().err
    assert "the ledger is damaged" in told and "adaptive-lora recover" in told and "disk" not in told
