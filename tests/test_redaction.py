"""No token of the hub is printed or written, whatever it stands in."""

from __future__ import annotations

import contextlib

import pytest
import typer

from adaptive_lora.cli import app as speaking
from adaptive_lora.errors import HubError, UsageError
from adaptive_lora.redaction import HIDDEN, has_token, redacted

TOKENS = (
    "hf_" + "aB3" * 11 + "z",
    "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6WyJyZWFkIl19.c2ln-bmF0_dXJl",
    "hf_jwt_" + "eyJ0eXAiOiJKV1Qi.x-y_z.abc",
    "api_org_" + "Qw9" * 11 + "x",
)


@pytest.fixture(autouse=True)
def _no_token_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "text", ["{}", "Bearer {}", "https://user:{}@huggingface.co/x", '{{"token": "{}"}}', "HF_TOKEN={}\n", "({}),{}."]
)
def test_a_token_is_taken_out_wherever_it_stands(token: str, text: str) -> None:
    whole = text.replace("{{", "{").replace("}}", "}").replace("{}", token)
    assert token in whole and has_token(whole)
    assert token not in redacted(whole) and token[9:25] not in redacted(whole) and HIDDEN in redacted(whole)
    assert not has_token(redacted(whole))


@pytest.mark.parametrize("text", ["hf_hub_download", "hf_transfer", "convert_hf_to_gguf.py", "hf_" + "ab" * 5, "shf_x"])
def test_what_is_no_token_stays(text: str) -> None:
    assert redacted(text) == text


def test_the_environments_own_token_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", " an-odd:one/of 2027 ")
    assert redacted("sent an-odd:one/of 2027.") == f"sent {HIDDEN}."
    monkeypatch.setenv("HF_TOKEN", "a")
    assert redacted("a banana") == "a banana"


def test_errors_notes_and_json_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    token = TOKENS[0]
    for error in (UsageError(f"asked with {token}"), HubError(f"came {token}"), OSError(f"disk {token}")):

        def fail(error: Exception = error) -> None:
            raise error

        with contextlib.suppress(typer.Exit):
            speaking.explained(fail)()
    speaking.err.print(f"note: {token}", markup=False)
    speaking.out.print(f"see {token}", markup=False)
    speaking.print_json({"prompt": f"say {token}"})
    told = "".join(capsys.readouterr())
    assert token not in told and told.count(HIDDEN) == 6
