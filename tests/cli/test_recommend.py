"""`recommend` as a stranger meets it: what to paste comes first, the rest says why and how sure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptive_lora.recommend import sizing
from adaptive_lora.study import pricing
from tests.cli.test_cli import call
from tests.cli.test_front import script


@pytest.fixture(autouse=True)
def _small_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "LADDER", ((4, 2, 4),))
    monkeypatch.setattr(sizing, "MOST_SEEDS", 4)
    monkeypatch.setattr(pricing, "PATIENCE", 0.1)


def test_what_to_paste_stands_in_the_first_ten_lines(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("recommend", "--model", model_folders["gpt2"], "--data", "demo:fine-tuning", "--max-length", 64,
                 "--minutes", 20, "--rank", 4, "--memory", "24GB", "--out", out)  # fmt: skip
    found = call(*arguments)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0].startswith(("Uniform rank ", "The ranks of ")) and "learning rate" in lines[0]
    assert any("LoraConfig" in line for line in lines[1:10])
    assert any(line.startswith("# learning_rate=") for line in lines[1:10])
    labels = [line.split("  ")[0] for line in lines]
    for label in ("why", "how much", "where", "rate", "gain", "real run", "memory", "rests on", "files"):
        assert label in labels, found.stdout
    assert "lora-drop: " in found.stdout and "attention-heavy: " in found.stdout
    assert (out / "study" / "report.html").is_file() and (out / "study" / "memory-bank").is_dir()
    assert "the study that fits" in found.stderr

    page = (out / "study" / "report.html").stat().st_mtime_ns
    again = call(*arguments, "--json")  # nothing is left to train, or to draw
    assert (out / "study" / "report.html").stat().st_mtime_ns == page
    said = json.loads(again.stdout)
    assert again.exit_code == 0 and "timing" not in again.stderr
    assert said["basis"] == "a study" and said["snippet"] in found.stdout
    assert said["rank"] in (2, 4, 8) and said["tuned"] and said["real_run"]["card"]["fits"]
    assert [own["budget"] for own in said["how_much"]] == ["rank:2", "rank:8"]
    assert {own["arm"] for own in said["where"]} == {"lora-drop", "attention-heavy"}


def test_no_time_says_what_it_rests_on(tmp_path: Path) -> None:
    found = call("recommend", "--model", "demo", "--minutes", 0, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "by shape and the studies of this package alone" in " ".join(found.stdout.split())
    assert "Nothing was trained (`--minutes 0`)" in found.stdout
    assert 'target_modules=["c_attn", "c_proj", "c_fc"]' in found.stdout


@pytest.mark.parametrize(
    ("tool", "first"),
    [("axolotl", "For Axolotl: "), ("llama-factory", "# uniform"), ("trl", "from peft")],
)
def test_a_tool_gets_its_own_text_or_the_file_that_has_it(tool: str, first: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = call("recommend", "--model", "demo", "--minutes", 0, "--for", tool, "--out", out)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[lines.index("") + 1].startswith(first)
    (written,) = out.glob(f"for-{tool}.*")
    assert "0.003" in written.read_text() and "checked: read back" in " ".join(found.stdout.split())
    assert lines[-1].endswith(".py") or lines[-1].endswith(".yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "demo", "--for", "axolotle"), "did you mean 'axolotl'"),
        (("--model", "smollm2"), "give `--data` a file or a hub data set"),
        (("--model", "demo", "--minutes", -1), "`--minutes` is a time from 0 to a month, got -1"),
        (("--model", "demo", "--memory", "much"), "such as 24GB or 80GiB, got 'much'"),
        (("--model", "demo", "--template", "alpacca"), "template must be one of"),
    ],
)
def test_what_cannot_be_is_said_before_torch_is_imported(arguments: tuple[object, ...], message: str) -> None:
    found = script("recommend", *arguments)
    assert found.returncode == 2 and message in found.stderr
    assert "torch" not in found.stderr.splitlines()[-1]


def test_a_tool_that_cannot_take_the_plan_does_not_hide_the_answer(tmp_path: Path) -> None:
    found = call("recommend", "--model", "demo", "--minutes", 0, "--for", "torchtune", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "LoraConfig" in found.stdout and "torchtune: torchtune 0.6.1 has no name for" in " ".join(
        found.stdout.split()
    )


def test_a_rank_without_room_for_its_double_is_refused(tmp_path: Path) -> None:
    found = call("recommend", "--model", "demo", "--rank", 100, "--minutes", 0, "--out", tmp_path / "out")
    assert found.exit_code == 2 and "an even number from 2 to 64" in found.stderr
