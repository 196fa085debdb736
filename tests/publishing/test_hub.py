"""An upload to the hub: what goes there, what is refused, and that no token is seen anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from typer.testing import CliRunner, Result

import adaptive_lora
from adaptive_lora.cli.main import app
from adaptive_lora.errors import ExportError, HubError, UsageError
from adaptive_lora.export.checked_folder import checked_folder
from adaptive_lora.publishing import hub as uploading
from tests.publishing.hub_server import OWNER, TOKEN, Hub, serve

REPO = f"{OWNER}/linear-decay"
Push = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and beside it what must not be uploaded."""
    folder = tmp_path_factory.mktemp("study")
    plan = adaptive_lora.plan("demo", "linear-decay", "rank:1", targets=["attn.c_proj"])
    adaptive_lora.export_adapter(plan, folder / "served", form="peft")
    (folder / "records.json").write_text("[]")
    return folder / "served"


@pytest.fixture
def served(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "served"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's library asks a server here; its waiting between attempts is left out."""
    found, server = serve()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(served: Path) -> Push:
    def call(*more: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(app, ["export", str(served), "--push", REPO, *more], input=answer)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exactly_the_folder_goes_into_a_new_private_repository(hub: Hub, served: Path, push: Push) -> None:
    done = push("--yes")
    assert done.exit_code == 0, done.output
    assert hub.private == {REPO: True}
    assert hub.files[REPO] == {".gitattributes": b"there before", **content(served)}
    assert f"uploaded to {hub.url}/{REPO}: {hub.url}/{REPO}/commit/" in done.stdout
    names = content(served).keys()
    assert all(f"  {name}\n" in done.stderr for name in names) and "(new, private)" in done.stderr
    assert f"in {len(names)} files, all of {served}; nothing else" in done.stderr


def test_public_is_said_twice(hub: Hub, push: Push) -> None:
    done = push("--public", "--yes", "--json")
    assert done.exit_code == 0 and hub.private == {REPO: False} and "PUBLIC: everybody can read it" in done.stderr
    (told,) = json.loads(done.stdout)
    assert told["public"] is True and told["repository"] == f"{hub.url}/{REPO}" and "README.md" in told["uploaded"]


def test_an_empty_repository_of_that_kind_is_taken(hub: Hub, served: Path) -> None:
    hub.make(REPO, True)
    adaptive_lora.push_to_hub(served, REPO)
    assert hub.files[REPO].keys() - {".gitattributes"} == content(served).keys()
    assert json.loads(hub.bodies[-1].splitlines()[0])["value"]["parentCommit"] == "0" * 40  # nobody was faster
    assert "POST /api/repos/create" not in hub.asked


def test_what_is_there_is_not_overwritten_and_no_private_folder_becomes_public(hub: Hub, push: Push) -> None:
    hub.make(REPO, True, "README.md", "model.safetensors")
    done = push("--yes")
    assert done.exit_code == 2 and "has 2 files already (README.md, model.safetensors" in done.stderr
    hub.make(REPO, False)
    done = push("--yes")
    assert done.exit_code == 2 and "exists and is public, and private was asked for" in done.stderr
    hub.make(REPO, True)
    done = push("--yes", "--public")
    assert done.exit_code == 2 and "Leave --public out" in done.stderr
    assert {line.split()[0] for line in hub.asked} == {"GET"}


REFUSALS = [
    ("look", 401, "looking at", "does not accept the token"),
    ("create", 401, "making", "does not accept the token"),
    ("create", 403, "making", f"may not write there: make one with write access to {OWNER}"),
    ("create", 409, "making", "reports a conflict"),
    ("upload", 403, "uploading to", "may not write there"),
    ("upload", 0, "uploading to", "it did not go through"),
    ("commit", 409, "uploading to", "reports a conflict"),
    ("commit", 500, "uploading to", "the hub failed with 500: try again later"),
]


@pytest.mark.parametrize(("step", "status", "doing", "told"), REFUSALS)
def test_a_refusal_says_what_it_means_and_leaves_the_folder_as_it_was(
    hub: Hub, served: Path, push: Push, step: str, status: int, doing: str, told: str
) -> None:
    before = content(served)
    hub.refuse[step] = status
    done = push("--yes")
    assert done.exit_code == 1 and f"failed: {doing} {hub.url}/{REPO}: " in done.stderr and told in done.stderr
    assert content(served) == before and set(hub.files.get(REPO, {})) <= {".gitattributes"}
    assert TOKEN not in done.output and TOKEN not in str(done.exception)
    if step != "look":
        assert f"stays as it was. To try again: adaptive-lora export {served} --push {REPO}" in done.stderr
    hub.refuse.clear()
    assert push("--yes").exit_code == 0 and hub.files[REPO].keys() > before.keys()


def test_a_wrong_token_is_told_apart_from_a_missing_repository(
    hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "hf_" + "Q7" * 17
    monkeypatch.setenv("HF_TOKEN", wrong)
    done = push("--yes")
    assert done.exit_code == 1 and "does not accept the token" in done.stderr and wrong not in done.output
    assert len(hub.asked) == 1


def test_offline_and_without_a_token_nothing_is_asked(
    hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = push("--yes")
    assert done.exit_code == 2 and "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    done = push("--yes")
    assert done.exit_code == 2 and "Nobody is logged in to the hub: log in with `hf auth login`" in done.stderr
    assert hub.asked == []


def test_it_asks_and_takes_no_for_an_answer(hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    done = push()
    assert done.exit_code == 2 and "nobody can answer here: say --yes" in done.stderr
    monkeypatch.setattr("adaptive_lora.cli.export.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = push(answer="n\n")
    assert done.exit_code == 1 and "nothing was uploaded" in done.stderr and "Upload this?" in done.stderr
    assert hub.files == {}
    assert push(answer="y\n").exit_code == 0 and REPO in hub.files


def test_bad_calls_are_refused_before_anything_is_done(hub: Hub, served: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["export", str(served), *arguments])
        assert done.exit_code == 2
        return done.stderr

    for alone in ("--public", "--yes"):
        assert "are about an upload" in told("--form", "peft", alone)
    assert "There is no form 'pded'" in told("--form", "pded", "--push", REPO, "--yes")
    assert "One repository holds one export" in told("--push", REPO, "--run", "all", "--yes")
    assert "is uploaded as it is: leave all but --push out" in told("--push", REPO, "--yes", "--arm", "uniform")
    for name in ("linear-decay", "a/b/c", "a/b--c", "a/b.git", "/b", "a/..b"):
        assert "is no repository of the hub: write OWNER/NAME" in told("--push", name, "--yes"), name
    message = told("--push", f"{OWNER}/{TOKEN}", "--yes")
    assert "names a repository, and no token" in message and TOKEN not in message
    assert hub.asked == []


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json has changed since"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda f: (f / "study.db").write_text("x"), "study.db was put there since"),
        (lambda f: (f / "more").symlink_to(f.parent), "is a link, and an export has none"),
        (lambda f: (f / "compat.json").write_text("{}"), "is none that this version writes"),
        (lambda f: (f / "compat.json").unlink(), "is no export: it has no compat.json"),
        (lambda f: _say_failed(f / "compat.json"), "its check failed when it was written"),
        (lambda f: (f / "README.md").write_text(f"HF_TOKEN={TOKEN}"), "has a token in it, and is not uploaded"),
    ],
)  # fmt: skip
def test_only_what_was_checked_goes_up(hub: Hub, served: Path, harm: Callable[[Path], object], told: str) -> None:
    harm(served)
    with pytest.raises((UsageError, ExportError), match=told):
        adaptive_lora.push_to_hub(served, REPO)
    assert not any(line.startswith(("POST", "PUT")) for line in hub.asked)


def _say_failed(path: Path) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "check": {**found["check"], "passed": False}}))


def test_a_card_may_be_edited(hub: Hub, served: Path) -> None:
    (served / "README.md").write_text("# Mine\n")
    adaptive_lora.push_to_hub(served, REPO)
    assert hub.files[REPO]["README.md"] == b"# Mine\n"


def test_a_plan_is_exported_and_uploaded_in_one_call(hub: Hub, tmp_path: Path) -> None:
    adaptive_lora.plan("demo", "uniform", "rank:1", targets=["attn.c_proj"]).save(tmp_path / "plan.json")
    asked = [str(tmp_path / "plan.json"), "--form", "peft", "--out", str(tmp_path / "out"), "--push", REPO, "--yes"]
    done = CliRunner().invoke(app, ["export", *asked, "--json"])
    (told,) = json.loads(done.stdout)
    assert told["form"] == "peft" and told["check"]["untrained"] and told["commit"].endswith("1" * 40)
    assert done.exit_code == 0 and hub.files[REPO].keys() - {".gitattributes"} == content(tmp_path / "out").keys()
    assert "untrained" in hub.files[REPO]["README.md"].decode()
    hub.refuse["look"] = 403
    asked[4] = str(tmp_path / "again")
    done = CliRunner().invoke(app, ["export", *asked])
    assert done.exit_code == 1 and not (tmp_path / "again").exists()  # known before the work


def test_no_token_is_sent_in_a_body_written_or_told(
    hub: Hub, served: Path, push: Push, capfd: pytest.CaptureFixture[str]
) -> None:
    done = push("--yes")
    told = "".join(capfd.readouterr())
    assert TOKEN.encode() not in b"".join(hub.bodies) and TOKEN not in done.output + told
    assert not any(TOKEN in line for line in hub.asked)
    assert not any(TOKEN.encode() in data for data in content(served.parent).values())


def test_the_base_models_folder_is_remarked(made: Path) -> None:
    target = uploading.Target(REPO, False, "https://huggingface.co", False)
    found = checked_folder(made)
    lines = uploading.listing(target, replace(found, base_model=str(made)))
    assert "a folder here, which nobody else can load" in lines[-1]
    assert "a folder here" not in "\n".join(uploading.listing(target, found))


def test_what_the_client_raises_is_never_told_with_a_token(hub: Hub) -> None:
    target = uploading.Target(REPO, False, hub.url, False)
    with pytest.raises(HubError) as caught, uploading._explained(target, "uploading to"):
        raise OSError(f"no route with {{'authorization': 'Bearer {TOKEN}'}}")
    assert TOKEN not in str(caught.value) and "hf_[redacted]" in str(caught.value)
    assert caught.value.__suppress_context__
