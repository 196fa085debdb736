"""Folders that are broken, cut or hostile: each is refused with what is wrong, and all that is wrong at once."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptive_lora.export.folder_files import CONFIG_FILE, LARGEST_CONFIG, WEIGHTS_FILE
from tests.export.conftest import Saver
from tests.export.test_reading import SMALL, change_config, change_tensors
from tests.export.test_refusals import refusal


def _config(**fields: Any) -> Callable[[Path], object]:
    return lambda folder: change_config(folder, **fields)


def _text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG_FILE).write_text(change((folder / CONFIG_FILE).read_text()))


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS_FILE).write_bytes(change((folder / WEIGHTS_FILE).read_bytes()))


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def rewrite(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        written = json.dumps(header).encode()
        return len(written).to_bytes(8, "little") + written + content[8 + length :]

    return _bytes(rewrite)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], object]:
    return lambda folder: change_tensors(folder, lambda tensors: tensors | {name: change(tensors[name])})


def _link_out(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / WEIGHTS_FILE).rename(elsewhere)
    (folder / WEIGHTS_FILE).symlink_to(elsewhere)


def _pipe(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


def _loop(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    shard = "adapter_model-00001-of-00001.safetensors"
    (folder / shard).symlink_to(shard)


def _folder(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    (folder / CONFIG_FILE).mkdir()


def _one_shard(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model-00002-of-00003.safetensors")


def _two_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".weight", f".{'ab'[i % 2]}.weight"): t for i, (name, t) in enumerate(tensors.items())}


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / CONFIG_FILE).unlink(), "no adapter_config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "has no adapter_model.safetensors"),
    "half a configuration": (_text(lambda text: text[:90]), "is not valid JSON in line"),
    "a list": (_text(lambda text: f"[{text}]"), "is no JSON object"),
    "depth": (_text(lambda text: "[" * 100_000), "nested too deeply|not valid JSON"),
    "size": (_text(lambda text: " " * LARGEST_CONFIG + text), "no configuration needs more than"),
    "not a number": (_text(lambda text: text.replace('"lora_alpha": 3', '"lora_alpha": NaN')), "the number NaN"),
    "a key twice": (_text(lambda text: text.replace("{", '{"r": 2,', 1)), "says 'r' twice"),
    "a huge number": (_text(lambda text: text.replace('"r": 2', '"r": ' + "9" * 5000)), "adapter_config.json"),
    "no method": (_config(peft_type=None), "names no method"),
    "mlx": (_config(peft_type=None, lora_parameters={"rank": 8}), "is mlx-lm's"),
    "rank": (_config(r="8"), "`r` must be a whole number from 0 on, got '8'"),
    "alpha": (_config(lora_alpha=1e300), "`lora_alpha` must be a number up to"),
    "rank key": (_config(rank_pattern={"q_proj": -1}), "`rank_pattern` must be ranks by name"),
    "expression": (_config(alpha_pattern={"(q": 2}), r"`alpha_pattern` has the key '\(q', which is no regular"),
    "look-behind": (_config(target_modules="(?<=q)_proj"), "`target_modules` has a back reference, a look-behind"),
    "no target": (_config(target_modules=["w_proj"]), "no adapted module that its configuration targets"),
    "layers": (_config(layers_to_transform=[0], layers_pattern=["(.*)*x"]), "`layers_pattern` must be plain names"),
    "another rank": (_config(r=3), r"has rank 2 in its tensors, the configuration says 3 \(r\)"),
    "cut": (_bytes(lambda content: content[:-1]), "where its header says"),
    "cut in the header": (_bytes(lambda content: content[:50]), "its header would end after the file"),
    "empty": (_bytes(lambda content: b""), "is cut short"),
    "longer": (_bytes(lambda content: content + b"x"), "where its header says"),
    "no header": (_bytes(lambda content: content[:8] + b"x" * (len(content) - 8)), "its header is not valid JSON"),
    "shape": (_header(lambda header: header[FIRST].update(shape=[10**9, 10**9])), "1000000000. of F32"),
    "negative": (_header(lambda header: header[FIRST].update(shape=[-2, -8])), "which is none"),
    "type": (_header(lambda header: header[FIRST].update(dtype="F8_E4M3")), "is of type 'F8_E4M3'; adapters are of"),
    "place": (_header(lambda header: header[FIRST].update(data_offsets=[64, 128])), "does not begin where"),
    "no place": (_header(lambda header: header[FIRST].pop("data_offsets")), "lacks its type, shape or place"),
    "A alone": (_header(lambda header: header.update({FIRST.replace("A", "C"): header.pop(FIRST)})), "lora_A, lora_B"),
    "shapes": (_tensor(FIRST, lambda a: a[:1]), r"do not fit each other: lora_A \(1, 8\), lora_B \(8, 2\)"),
    "convolution": (_tensor(FIRST, lambda a: a[..., None, None]), "is a convolution or a stack of experts"),
    "not numbers": (_tensor(FIRST, lambda a: a * float("nan")), "has values that are not numbers"),
    "infinite": (_tensor(FIRST, lambda a: a / 0), "has values that are not numbers"),
    "all the rest": (_config(lora_bias=True, r=3), "the configuration says 3(.|\n)*trained biases"),
    "kohya": (_header(lambda header: header.update({"lora_unet_x.alpha": header.pop(FIRST)})), "kohya"),
    "two adapters": (lambda folder: change_tensors(folder, _two_names), r"several adapters in one file: \['a', 'b'\]"),
    "link": (_link_out, "is a link out of its folder"),
    "pipe": (_pipe, "is no regular file"),
    "loop": (_loop, "leads nowhere|cannot be read"),
    "folder": (_folder, "is no regular file"),
    "shard": (_one_shard, "holds 1 of 3 shards"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_refused_with_what_is_broken(what: str, saved: Saver) -> None:
    folder = saved(**SMALL)
    change, message = BROKEN[what]
    change(folder)
    error = refusal(folder)
    assert re.search(message, str(error)), error
    assert len(str(error)) < 2_000


def test_all_that_is_wrong_is_said_at_once(saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, r=2.5, use_rslora="no", target_modules="(")
    _header(lambda header: header[FIRST].update(dtype="I8"))(folder)
    assert [line.split()[0] + " " + line.split()[1] for line in refusal(folder).complaints] == [
        "adapter_config.json `target_modules`",
        "adapter_config.json `r`",
        "adapter_config.json `use_rslora`",
        "adapter_model.safetensors the",
    ]


def test_an_error_survives_the_way_to_another_process(saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, r=2.5)
    error = refusal(folder)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.complaints) == (str(error), error.complaints)


def test_a_file_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in str(refusal(tmp_path / "file"))
    assert "no such folder" in str(refusal(tmp_path / "nothing"))
    for name in ("a", "b"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / CONFIG_FILE).write_text("{}")
    assert "several adapters: 'a', 'b'" in str(refusal(tmp_path / "both"))


def test_tensors_of_the_same_module_twice(saved: Saver) -> None:
    folder = saved(**SMALL)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {FIRST.removeprefix("base_model.model."): tensors[FIRST].clone()}, folder / WEIGHTS_FILE)
    assert "is another lora_A of one module" in str(refusal(folder))
