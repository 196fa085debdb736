"""What is refused, in which words, and that the remedy in them works."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import CONFIG_FILE, LARGEST_CONFIG, PICKLE_FILE, WEIGHTS_FILE
from adaptive_lora.export.reading import read_adapter, read_outline
from adaptive_lora.models.libraries import quiet_libraries
from tests.export.conftest import Saver, fresh_model
from tests.export.test_reading import SMALL, assert_as_peft, change_config, change_tensors


def refusal(folder: Path) -> AdapterError:
    with pytest.raises(AdapterError) as refused:
        read_adapter(folder)
    return refused.value


def remedy_of(error: AdapterError) -> str:
    """The line of code in the last complaint."""
    return str(re.findall("`([^`]+)`", error.complaints[-1])[0])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(8)[None]).logits
    return found


def run_remedy(code: str, folder: Path, out: Path, **more: Any) -> None:
    """Runs a remedy as a user would paste it."""
    import peft

    names = {"peft": peft, "PeftModel": peft.PeftModel, "BASE": fresh_model("llama"), "FOLDER": str(folder)}
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names | {"OUT": str(out)} | more)


MERGED: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True, "target_modules": ["q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 5], "target_modules": ["q_proj"]},
    "adapters of an embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "target_parameters": {"target_modules": ["q_proj"], "target_parameters": ["k_proj.weight"]},
}


@pytest.mark.parametrize("what", MERGED)
def test_more_than_a_lora_is_refused_and_merging_keeps_it(what: str, saved: Saver, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = saved(**MERGED[what])
    error = refusal(folder)
    assert what in str(error)
    code = next(code for line in error.complaints for code in re.findall("`([^`]+)`", line) if "merge_and" in code)
    run_remedy(code, folder, tmp_path / "merged")
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(fresh_model("llama"), str(folder))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    assert read_outline(folder).modules.keys() >= {"model.layers.0.self_attn.q_proj"}


def test_ranks_can_be_read_where_weights_are_refused(saved: Saver) -> None:
    outline = read_outline(saved(use_dora=True, target_modules=["q_proj"], rank_pattern={r".*1\..*": 3}))
    assert [module.rank for module in outline.modules.values()] == [8, 3]
    assert [beyond.key for beyond in outline.beyond] == ["use_dora"]


def test_a_base_that_was_changed_is_refused_and_converting_helps(saved: Saver, tmp_path: Path) -> None:
    """PiSSA: as PEFT's own guide does it, with the initial adapter saved before training."""
    initial, converted = tmp_path / "initial", tmp_path / "converted"
    kept: dict[str, Tensor] = {}

    def convert(model: Any) -> None:
        kept["logits"] = logits(model)
        change = {"model": model, "OUT": str(converted), "INITIAL": str(initial)}
        first = __import__("peft").get_peft_model(fresh_model("llama"), model.peft_config["default"])
        first.peft_config["default"].init_lora_weights = True
        first.save_pretrained(str(initial))
        first.peft_config["default"].init_lora_weights = "pissa"
        exec(code, change)

    code = remedy_of(refusal(saved(init_lora_weights="pissa", r=2, target_modules=["q_proj"])))
    assert "path_initial_model_for_weight_conversion" in code
    saved(init_lora_weights="pissa", r=2, target_modules=["q_proj"], edit=convert)
    assert_as_peft(converted)
    with quiet_libraries():
        model = __import__("peft").PeftModel.from_pretrained(fresh_model("llama"), str(converted))
    torch.testing.assert_close(logits(model), kept["logits"], rtol=1e-4, atol=1e-4)


def test_another_method_is_refused_and_converting_helps(saved: Saver, tmp_path: Path) -> None:
    from peft import LoHaConfig

    folder = saved(config=LoHaConfig(r=2, target_modules=["q_proj"]))
    error = refusal(folder)
    assert "'LOHA'" in str(error)
    run_remedy(remedy_of(error).replace("rank=16", "rank=4"), folder, tmp_path / "lora")
    assert_as_peft(tmp_path / "lora")


def test_a_pickle_is_not_opened_and_the_command_converts_it(saved: Saver) -> None:
    folder = saved(**SMALL)
    before = read_adapter(folder).modules
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLE_FILE)
    (folder / WEIGHTS_FILE).unlink()
    message = str(refusal(folder))
    assert "can run code" in message
    command = message[message.index("python -c ") + len("python -c ") :].strip('"')
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)
    after = read_adapter(folder).modules
    assert all(torch.equal(after[name].delta(), update.delta()) for name, update in before.items())


def test_a_pickle_with_code_in_it_stays_closed(saved: Saver, tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    folder = saved(**SMALL)
    (folder / WEIGHTS_FILE).unlink()
    (folder / PICKLE_FILE).write_bytes(pickle.dumps(Touches()))
    refusal(folder)
    (folder / PICKLE_FILE).rename(folder / WEIGHTS_FILE)
    refusal(folder)
    assert not (tmp_path / "ran").exists()


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "lora_bias": ({"lora_bias": True}, "trained biases in B"),
    "bias": ({"bias": "all"}, "biases of its base"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 2]]}, "repeats blocks"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "only after certain tokens"),
    "olora": ({"init_lora_weights": "olora"}, "began by changing its base"),
    "loftq": ({"init_lora_weights": "loftq"}, "began by changing its base"),
}


@pytest.mark.parametrize("key", KEYS)
def test_variants_are_refused_by_name(key: str, saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, **KEYS[key][0])
    assert KEYS[key][1] in str(refusal(folder))


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
    "convolution": (_tensor(FIRST, lambda a: a[..., None, None]), "is a convolution"),
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
