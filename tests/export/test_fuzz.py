"""Folders with random damage: two hundred of what `bench/fuzz_adapters.py` does two thousand times."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import CONFIG_FILE, WEIGHTS_FILE
from adaptive_lora.export.reading import read_outline

SCRIPT = Path(__file__).parents[2] / "bench" / "fuzz_adapters.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fuzz_adapters", SCRIPT)
    assert spec and spec.loader
    sys.modules["bench_fuzz_adapters"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_random_damage_gives_readings_or_clear_errors(bench: ModuleType, tmp_path: Path) -> None:
    sources = bench.sound_folders(tmp_path / "sound")
    with bench.limited(bench.MEMORY):
        found = bench.fuzz(200, 1, sources, tmp_path)
    assert found.failures == []
    assert found.read + found.refused == 200
    assert min(found.read, found.refused) > 20


def wide_folder(folder: Path, names: list[str], **config: object) -> Path:
    """An adapter of rank 1 with many modules, and a configuration."""
    header, place = {}, 0
    for name in names:
        for letter, shape in (("A", [1, 2]), ("B", [2, 1])):
            header[f"base_model.model.{name}.lora_{letter}.weight"] = {
                "dtype": "F32", "shape": shape, "data_offsets": [place, place + 8]
            }  # fmt: skip
            place += 8
    written = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(written).to_bytes(8, "little") + written + bytes(place))
    (folder / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": 1, **config}))
    return folder


EXPERTS = [f"model.layers.{i}.mlp.experts.{j}.{leaf}_proj" for i in range(24) for j in range(64) for leaf in "abc"]


def test_a_mixture_of_4608_matrices_with_a_key_for_each_is_quick(tmp_path: Path) -> None:
    folder = wide_folder(
        tmp_path, EXPERTS, target_modules=EXPERTS, rank_pattern=dict.fromkeys(EXPERTS, 1),
        alpha_pattern={f"^{name.replace('.', chr(92) + '.')}": 2 for name in EXPERTS},
    )  # fmt: skip
    began = time.process_time()
    outline = read_outline(folder)
    assert [module.scaling for module in outline.modules.values()] == [2.0] * 4608
    assert time.process_time() - began < 3


def test_expressions_that_would_need_much_memory_are_refused_at_once(tmp_path: Path) -> None:
    keys = {f"(a|b){{0,200}}[^.]{{0,200}}{i}": 1 for i in range(1_900)}
    folder = wide_folder(tmp_path, EXPERTS[:2], rank_pattern=keys)
    began = time.process_time()
    with pytest.raises(AdapterError, match="brings the automaton's states above 100,000"):
        read_outline(folder)
    assert time.process_time() - began < 5


def test_many_expressions_for_many_modules_are_given_up_in_bounded_time(tmp_path: Path) -> None:
    keys = {f".*{i}.*(x|y)[0-9]*.*z": 1 for i in range(500)}
    folder = wide_folder(tmp_path, EXPERTS, rank_pattern=keys)
    began = time.process_time()
    with pytest.raises(AdapterError, match="takes too many steps to match; write the modules' names out"):
        read_outline(folder)
    assert time.process_time() - began < 15
