"""Studies on a model with a chat template: what `auto` takes, what is said of it, what is a study's identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptive_lora.cli.main import app
from adaptive_lora.errors import StudyFileError
from adaptive_lora.study import runner
from adaptive_lora.study.json_schema import study_json_schema
from adaptive_lora.study.prepare import prepare
from adaptive_lora.study.progress import Silent
from adaptive_lora.study.study_file import Study, load_study
from adaptive_lora.training.base import load_tokenizer

WriteStudy = Callable[..., Path]
TURNS = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}[assistant]\n{% endif %}"
SOURCE = 'source: "demo:fine-tuning"'
PLAIN = (SOURCE, SOURCE + ", template: question")


@pytest.fixture
def chatty(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """The tiny GPT-2, taught a chat template."""
    folder = tmp_path / "chatty"
    shutil.copytree(model_folders["gpt2"], folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture
def study(study_file: WriteStudy, model_folders: dict[str, Path], chatty: Path) -> Callable[..., Study]:
    """A small study on that model, with replacements."""
    return lambda *changes: load_study(study_file((str(model_folders["gpt2"]), str(chatty)), *changes))


def test_a_study_says_who_writes_its_records(study: Callable[..., Study], tmp_path: Path) -> None:
    class Heard(Silent):
        def stage(self, text: str) -> None:
            heard.append(text)

    class StopHere(Exception):
        pass

    def stop(folder: Path) -> None:
        raise StopHere

    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopHere):
        patch.setattr(runner, "make_folder", stop)
        runner.run_study(study(), tmp_path / "out", Heard(), "cpu")
    [told] = [text for text in heard if "are written by" in text]
    assert "`template: auto` takes" in told and "26 Jul 2024" in told


def test_the_template_in_force_is_a_fact_and_what_was_asked_is_the_identity(study: Callable[..., Study]) -> None:
    chat, plain = prepare(study(), "cpu"), prepare(study(PLAIN), "cpu")
    assert chat.facts()["data"].items() >= {"template": "chat", "template_date": "26 Jul 2024"}.items()
    assert plain.facts()["data"]["template"] == "question" and "template_date" not in plain.facts()["data"]
    assert (chat.context["data"]["template"], "learn" in chat.context["data"]) == ("auto", False)
    assert plain.notes() == [] and len(chat.notes()) == 1
    assert any("writes no end behind an answer" in text for text in chat.warnings())


def test_learn_is_part_of_a_study_only_where_it_is_not_the_default(study: Callable[..., Study]) -> None:
    unsaid, said, every = (
        study(*([(SOURCE, f"{SOURCE}, learn: {learn}")] if learn else [])) for learn in ("", "last", "all")
    )
    assert unsaid.identity == said.identity != every.identity
    assert "learn" not in unsaid.spec.model_dump(mode="json")["data"]
    assert every.spec.model_dump(mode="json")["data"]["learn"] == "all"
    assert prepare(every, "cpu").splits.encoder.learn == prepare(every, "cpu").context["data"]["learn"] == "all"
    assert study_json_schema()["$defs"]["DataPart"]["properties"]["learn"]["enum"] == ["last", "all"]


def test_a_template_misspelled_is_found_before_the_model_is_read(study: Callable[..., Study]) -> None:
    with pytest.raises(StudyFileError, match="did you mean 'question'"):
        study((SOURCE, SOURCE + ", template: qestion"))
    assert study((SOURCE, SOURCE + ", template: tool_use")).spec.data.template == "tool_use"


def test_the_profile_says_who_writes_the_records_and_what_stays_text(chatty: Path, tmp_path: Path) -> None:
    said = [("user", "<|endoftext|>?"), ("assistant", "no"), ("user", "so?"), ("assistant", "yes")]
    turns = [{"role": role, "content": text} for role, text in said]
    (tmp_path / "data.json").write_text(json.dumps([{"messages": turns}]))
    words = ["data", "profile", tmp_path / "data.json", "--model", chatty, "--learn", "all", "--json"]
    found = CliRunner().invoke(app, [str(word) for word in words])
    shown = json.loads(found.stdout)
    assert (shown["template"], shown["template_date"]) == ("chat", "26 Jul 2024")
    assert shown["samples"][0]["learnt"] == "no\n [...] yes\n"
    ids = load_tokenizer("chatty", chatty)(["no\n", "yes\n"])["input_ids"]
    assert shown["completion_tokens"]["max"] == sum(map(len, ids))
    assert "Records are written by the model's chat template" in found.stderr
    assert shown["control_records"] == 1
