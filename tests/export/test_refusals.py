"""What is refused, in which words, and that the remedy in them works."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import PICKLE_FILE, WEIGHTS_FILE
from adaptive_lora.export.reading import read_adapter, read_outline
from adaptive_lora.models.libraries import quiet_libraries
from tests.export.conftest import Saver, fresh_model
from tests.export.test_reading import SMALL, assert_as_peft, change_config


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
