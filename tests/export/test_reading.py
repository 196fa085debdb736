"""`read_adapter` against PEFT itself: the same update of every module, for every form that a folder can have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import CONFIG_FILE, WEIGHTS_FILE
from adaptive_lora.export.reading import read_adapter, read_outline
from tests.export.conftest import Saver, peft_deltas

SMALL: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]}


def assert_as_peft(folder: Path, kind: str = "llama") -> None:
    """The same modules, and the same ΔW up to the rounding of float32."""
    found, wanted = read_adapter(folder).modules, peft_deltas(folder, kind)
    assert found.keys() == wanted.keys()
    for name, update in found.items():
        torch.testing.assert_close(update.delta(), wanted[name].float(), rtol=1e-6, atol=1e-6, msg=name)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / WEIGHTS_FILE))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("llama", {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"r": 4, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}}),
    "leaf keys": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, "mlp.up_proj": 5},
            "alpha_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 16},
        },
    ),
    "regular expressions": (
        "llama",
        {
            "target_modules": r".*\.(?:self_attn|mlp)\.(?:[qv]|up)_proj",
            "exclude_modules": r".*layers\.1\.mlp.*",
            "rank_pattern": {r".*layers\.[1-9]\..*": 3, r"self_attn\.(q|k)_proj": 5},
            "alpha_pattern": {r".*\.0\..+": 4, "v_proj": 9},
        },
    ),
    "blocks by number": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "one block": ("gpt2", {"target_modules": ["c_proj"], "layers_to_transform": 0, "fan_in_fan_out": True}),
    "conv1d": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "alpha_pattern": {r"^transformer\.h\.0": 3}},
    ),
    "gaussian initialisation": ("llama", {"target_modules": ["k_proj"], "init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_updates_are_those_of_peft(form: str, saved: Saver) -> None:
    kind, fields = FORMS[form]
    assert_as_peft(saved(kind, **fields), kind)


def test_overlapping_keys_count_by_their_order_in_the_file(saved: Saver) -> None:
    """PEFT sorts keys when it saves, so the same configuration can mean another scale after loading."""
    folder = saved(
        target_modules=["q_proj", "k_proj"], r=2, lora_alpha=2,
        alpha_pattern={"self_attn.q_proj": 16, "layers.0.self_attn.q_proj": 2},
    )  # fmt: skip
    assert_as_peft(folder)
    assert read_adapter(folder).modules["model.layers.0.self_attn.q_proj"].scaling == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_type_become_float32_as_in_peft(dtype: torch.dtype, saved: Saver) -> None:
    folder = saved(**SMALL)
    change_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert_as_peft(folder)


@pytest.mark.parametrize("alpha", [8, 0])
def test_adalora_with_directions_and_whole_modules_pruned(alpha: int, saved: Saver) -> None:
    from peft import AdaLoraConfig

    def prune(model: Any) -> None:
        masks = {
            f"model.layers.{i}.self_attn.{leaf}.lora_E.default": kept
            for i, leaf, kept in [
                (0, "q_proj", [True, False, True, True]),
                (1, "q_proj", [False] * 4),
                (0, "v_proj", [False, True, False, False]),
                (1, "v_proj", [True] * 4),
            ]
        }
        model.peft_config["default"].rank_pattern = masks

    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], total_step=10, tfinal=2
    )
    folder = saved(config=config, edit=prune)
    wanted = dict(peft_deltas(folder))
    empty = wanted.pop("model.layers.1.self_attn.q_proj")
    assert not empty.any()
    found = read_adapter(folder)
    assert found.modules.keys() == wanted.keys()
    for name, update in found.modules.items():
        torch.testing.assert_close(update.delta(), wanted[name], rtol=1e-5, atol=1e-6)
    assert found.ranks == {
        "model.layers.0.self_attn.q_proj": 3,
        "model.layers.0.self_attn.v_proj": 1,
        "model.layers.1.self_attn.v_proj": 4,
    }
    assert found.notes == ("model.layers.1.self_attn.q_proj: rank 0, left as in the base model.",)


def test_adalora_before_anything_was_pruned(saved: Saver) -> None:
    from peft import AdaLoraConfig

    folder = saved(config=AdaLoraConfig(init_r=3, target_modules=["q_proj"], total_step=10))
    found, wanted = read_adapter(folder), peft_deltas(folder)
    for name, update in found.modules.items():
        torch.testing.assert_close(update.delta(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 0.6])
def test_convert_to_lora_of_another_method(rank: float, saved: Saver, tmp_path: Path) -> None:
    from peft import LoHaConfig, save_as_lora

    def convert(model: Any) -> None:
        save_as_lora(tmp_path / "lora", model, rank)

    saved(config=LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]), edit=convert)
    assert_as_peft(tmp_path / "lora")
    assert {update.scaling for update in read_adapter(tmp_path / "lora").modules.values()} == {1}


def test_modules_of_rank_0_as_mergekit_writes_them_are_untouched(saved: Saver) -> None:
    folder = saved(**SMALL)
    before = read_adapter(folder).modules
    gone = "model.layers.1.self_attn.q_proj"

    def empty(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        key = f"base_model.model.{gone}.lora_%s.weight"
        a, b = tensors[key % "A"], tensors[key % "B"]
        return tensors | {key % "A": a[:0], key % "B": b[:, :0]}

    change_tensors(folder, empty)
    change_config(folder, rank_pattern={gone: 0})
    outline = read_outline(folder)
    assert outline.untouched == (gone,)
    found = read_adapter(folder)
    assert found.modules.keys() == before.keys() - {gone}
    assert found.notes == (f"{gone}: rank 0, left as in the base model.",)


RENAMINGS: dict[str, tuple[Callable[[str], str], str]] = {
    "bare": (lambda name: name.removeprefix("base_model.model."), "8 tensors lack `base_model.model.`"),
    "adapter's name": (lambda name: name.replace(".weight", ".default.weight"), ""),
    "compiled": (lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."), ""),
    "compiled blocks": (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), ""),
}


@pytest.mark.parametrize("way", RENAMINGS)
def test_names_of_tensors_that_peft_would_pass_over(way: str, saved: Saver) -> None:
    rename, note = RENAMINGS[way]
    folder = saved(**SMALL)
    before = read_adapter(folder)
    change_tensors(folder, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    found = read_adapter(folder)
    assert found.modules.keys() == before.modules.keys()
    for name, update in found.modules.items():
        assert torch.equal(update.delta(), before.modules[name].delta())
    assert note in " ".join(found.notes)
    assert bool(found.notes) == bool(note)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj"]},
        {"exclude_modules": ["down_proj"]},
        {"exclude_modules": r".*\.1\..*"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    ],
)
def test_what_the_configuration_does_not_target_is_left_out_as_in_peft(fields: dict[str, Any], saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, **fields)
    assert_as_peft(folder)
    assert "left out, as PEFT ignores them" in read_adapter(folder).notes[0]


def test_keys_that_count_for_no_module_are_named(saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, alpha_pattern={"q_proj": 3, "layers.0.self_attn.q_proj": 5, "w_proj": 5})
    assert read_adapter(folder).notes == (
        "'layers.0.self_attn.q_proj', 'w_proj': in alpha_pattern, but counts for no module.",
    )


def test_keys_of_a_newer_peft_are_named(saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, warp_factor=9, unused_thing=None)
    assert read_adapter(folder).notes == ("Not used, as PEFT or this version does not know it: 'warp_factor'.",)


def test_an_adapter_in_a_folder_of_its_name(saved: Saver, tmp_path: Path) -> None:
    folder = saved(**SMALL)
    shutil.move(folder, tmp_path / "outer" / "helpful")
    found = read_adapter(tmp_path / "outer")
    assert len(found.modules) == 4
    assert found.notes == ("The adapter was found in the folder 'helpful'.",)


def test_shards_are_read_together(saved: Saver) -> None:
    folder = saved(**SMALL)
    before = read_adapter(folder).modules
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    for number, names in enumerate((sorted(tensors)[:3], sorted(tensors)[3:]), 1):
        save_file({name: tensors[name] for name in names}, folder / f"adapter_model-0000{number}-of-00002.safetensors")
    assert read_adapter(folder).modules.keys() == before.keys()


def test_links_of_the_hugging_face_cache_are_followed(saved: Saver, tmp_path: Path) -> None:
    folder = saved(**SMALL)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(folder / name, blobs / name[:9])
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / name[:9])
    assert len(read_adapter(snapshot).modules) == 4


def test_base_model_is_a_name_and_no_path_is_opened(saved: Saver) -> None:
    folder = saved(**SMALL)
    change_config(folder, base_model_name_or_path="/nowhere/at/all", revision="abc")
    found = read_adapter(folder)
    assert (found.base_name, found.revision) == ("/nowhere/at/all", "abc")
    assert found.parameters == 2 * 2 * (8 + 8 + 12 + 8)


def test_an_adapted_output_layer_saved_without_the_layer_itself(saved: Saver) -> None:
    """PEFT saves the base's own output layer beside an adapter of it, unless told not to."""
    folder = saved(target_modules=["lm_head", "k_proj"], rank_pattern={"lm_head": 3})
    with pytest.raises(AdapterError, match="save_embedding_layers=False"):
        read_adapter(folder)
    change_tensors(folder, lambda ts: {name: t for name, t in ts.items() if "base_layer" not in name})
    assert_as_peft(folder)
    change_config(folder, target_modules="all-linear", r=8)
    assert "lm_head" not in peft_deltas(folder)
    assert list(read_adapter(folder).modules) == [f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)]


def test_a_rank_that_two_keys_dispute_is_named_with_the_key_that_counts(saved: Saver) -> None:
    """PEFT sorts the keys as it saves, and then refuses its own file."""
    folder = saved(target_modules=["q_proj"], rank_pattern={r".*\.1\..*": 3, r".*(q|k)_proj": 5})
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft_deltas(folder)
    with pytest.raises(AdapterError) as refused:
        read_adapter(folder)
    assert refused.value.complaints == (
        "model.layers.1.self_attn.q_proj has rank 3 in its tensors, the configuration says 5 (rank_pattern "
        "'.*(q|k)_proj'), and PEFT refuses it too; correct the configuration. Of several keys that match, the first in "
        "the file counts.",
    )
