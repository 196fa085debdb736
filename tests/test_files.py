"""Files are written whole, through links that the user names, and over nothing that is no file; reading has limits."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.files import expanded, parse_json, read_bounded, write_atomically

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and devices")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_link_that_is_named_is_written_through_and_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "plan.json", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    write_atomically(link, "new", named=True)  # of what is not there yet
    write_atomically(link, "newer", named=True)
    assert link.is_symlink() and target.read_text() == "newer" and [*target.parent.iterdir()] == [target]


def test_a_link_out_of_a_folder_that_may_be_someone_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "report.html").symlink_to(tmp_path / "mine")
    (folder / "inside").symlink_to(folder / "other")
    with pytest.raises(PermissionError, match=r"link out of its folder.*remove it"):
        write_atomically(folder / "report.html", "gone")
    write_atomically(folder / "inside", "text")
    assert (tmp_path / "mine").read_text() == "keep me" and (folder / "other").read_text() == "text"


@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_regular_file_is_not_replaced(named: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "self").symlink_to("self")
    for path, why in ((tmp_path / "pipe", "a pipe"), (Path("/dev/null"), "a device"), (tmp_path, "directory"),
                      (tmp_path / "self", "leads in a circle"), (tmp_path / "a\0b", "NUL")):  # fmt: skip
        with pytest.raises(OSError, match=why):
            write_atomically(path, "text", named)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_modes_longest_names_and_halves_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    path.touch(0o600)
    write_atomically(path, "a\udc80b")
    assert path.read_text() == "a\\udc80b" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="too long"):
        write_atomically(tmp_path / ("a" * 300), "text")


def test_reading_has_limits_and_waits_for_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    for path, why in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path / "a\0", "NUL")):
        with pytest.raises(OSError, match=why):
            read_bounded(path, 10)
    with pytest.raises(OSError, match="has 5 bytes; at most 4"):
        read_bounded(tmp_path / "file", 4)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each verb reads, sound as far as it comes."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "t.csv").write_text("arm,record,value\na,1,1\nb,1,2\n")
    return {"export": str(Path(__file__).parents[1] / "results" / "demo"), "table": str(folder / "t.csv")}


WRITERS = {
    "plan": "plan --model demo --out",
    "plan --for": "plan --model demo --for peft --out",
    "plan --peft": "plan --model demo --peft",
    "plan --adapter": "plan --model demo --adapter",
    "adapter": "adapter {export} --out",
    "init": "init demo --out",
    "data profile": "data profile demo:all --png",
    "report": "report {export} --out",
    "results": "results {export} --out",
    "paper": "paper {export} --out",
    "memory": "memory {export} --out",
    "judge": "judge {table} --baseline a --metric loss --out",
    "recommend": "recommend --model demo --minutes 0 --out",
    "run": "run {export}/study.yaml --out",
    "demo": "demo --out",
    "export": "export {export} --arm uniform --form peft --out",
}


@pytest.mark.parametrize("verb", WRITERS)
def test_no_verb_writes_over_what_is_none_of_its_kind(verb: str, sources: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    for place in (tmp_path / "pipe.png", tmp_path / "nowhere.png", tmp_path / ("a" * 300), Path("/dev/null")):
        found = call(*WRITERS[verb].format(**sources).split(), place)
        said = " ".join(found.stderr.split())
        assert found.exit_code == 2 and said.startswith("error: "), (place, found.output, found.exception)
        assert str(place)[:200] in said and "name another" in said, said
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode) and (tmp_path / "nowhere.png").is_symlink()


def test_plans_texts_and_studies_are_written_through_a_link(tmp_path: Path) -> None:
    for number, words in enumerate(("plan --model demo --out", "init demo --out", "data profile demo:all --png")):
        (tmp_path / str(number)).mkdir()
        link = tmp_path / f"{number}.png"
        link.symlink_to(tmp_path / str(number) / "file.png")
        found = call(*words.split(), link)
        assert found.exit_code == 0, found.output
        assert link.is_symlink() and (tmp_path / str(number) / "file.png").stat().st_size > 100
