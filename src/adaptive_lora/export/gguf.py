"""GGUF files by llama.cpp's own converter: the adapter, or the merged model.

An adapter goes through the form `single-alpha`, as llama.cpp knows one alpha and takes alpha / rank of each tensor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import ExportError, UsageError
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.merged import write_merged
from adaptive_lora.export.peft_folder import BaseFacts, write_peft
from adaptive_lora.models.libraries import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive_lora.training.base import FrozenBase

VARIABLE = "LLAMA_CPP"
"""Environment variable that names a checkout of llama.cpp."""
ADAPTER_FILE, MODEL_FILE = "adapter.gguf", "model.gguf"
_ADAPTERS, _MODELS = "convert_lora_to_gguf.py", "convert_hf_to_gguf.py"


def find_converter(folder: Path | None = None) -> Path | None:
    """The folder with llama.cpp's converters: the one named, that of $LLAMA_CPP, or one on the PATH; None without.

    UsageError where a folder is named and has none.
    """
    named = folder or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        if not (named / _ADAPTERS).is_file():
            raise UsageError(
                f"{named} has no {_ADAPTERS}: name a checkout of llama.cpp, or the folder vendor/llama.cpp of "
                "llama-cpp-python's source package."
            )
        return named
    found = shutil.which(_ADAPTERS)
    return Path(found).resolve().parent if found else None


def require_converter(folder: Path | None) -> Path:
    """`find_converter`, or UsageError with where to get it."""
    found = find_converter(folder)
    if found is None:
        raise UsageError(
            "GGUF files are written by llama.cpp's converter, which is not here. Name a checkout of llama.cpp with "
            f"--llama-cpp or ${VARIABLE} (or the folder vendor/llama.cpp of llama-cpp-python's source package: pip "
            "download --no-deps --no-binary :all: llama-cpp-python). Or take the form single-alpha or merged, and "
            "convert it there."
        )
    return found


def write_gguf(adapter: AdapterWeights, base: FrozenBase, facts: BaseFacts, folder: Path, converter: Path) -> None:
    """Writes a single-alpha adapter as `adapter.gguf` in float32; UsageError for GPT-2's transposed weights."""
    if facts.transposed & adapter.modules.keys():
        raise UsageError(
            f"llama.cpp's converter transposes adapters on the weights of {facts.family}, which is refused on loading "
            "or silently wrong: take the form gguf-merged."
        )
    with tempfile.TemporaryDirectory(prefix="adaptive-lora-") as private:
        lora, model = Path(private) / "adapter", Path(private) / "base"
        write_peft(adapter, facts, lora)
        with quiet_libraries():  # the converter reads no weights of the base
            base.model.config.save_pretrained(str(model))
            base.tokenizer.save_pretrained(str(model))
        folder.mkdir(parents=True, exist_ok=True)
        _convert(converter / _ADAPTERS, [lora, "--base", model], folder / ADAPTER_FILE)


def write_gguf_merged(modules: Mapping[str, LowRank], base: FrozenBase, folder: Path, converter: Path) -> None:
    """Writes the merged model as `model.gguf` in float32; llama.cpp's `llama-quantize` makes it smaller."""
    with tempfile.TemporaryDirectory(prefix="adaptive-lora-") as private:
        write_merged(modules, base, Path(private) / "merged")
        folder.mkdir(parents=True, exist_ok=True)
        _convert(converter / _MODELS, [Path(private) / "merged"], folder / MODEL_FILE)


def read_gguf(folder: Path, wanted: Mapping[str, LowRank], config: Any) -> dict[str, LowRank]:
    """The updates of `adapter.gguf` by llama.cpp's rule, alpha / rank of each tensor, under the base model's names.

    Rows of q and k that the converter has put into llama.cpp's order are put back; `wanted` tells the names, and where
    that order is used. What no wanted name stands for keeps the name that it has there.
    """
    import gguf
    import torch

    reader = gguf.GGUFReader(folder / ADAPTER_FILE)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {t.name: torch.from_numpy(t.data.copy()).float() for t in reader.tensors}
    architecture = str(reader.fields["general.architecture"].contents())
    names = _names(architecture, wanted, config)
    found = {}
    for stem in sorted({name.rpartition(".weight.lora_")[0] for name in tensors}):
        a, b = tensors[f"{stem}.weight.lora_a"], tensors[f"{stem}.weight.lora_b"]
        update = LowRank(a, b, alpha / a.shape[0] if alpha else 1.0)
        name = names.get(stem, stem)
        found[name] = _in_order(update, wanted[name], config, stem) if name in wanted else update
    return found


def _names(architecture: str, wanted: Mapping[str, LowRank], config: Any) -> dict[str, str]:
    """llama.cpp's name of a tensor -> the module's own."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[architecture], config.get_text_config().num_hidden_layers)
    return {str(table.get_name(name)): name for name in wanted}


def _in_order(update: LowRank, wanted: LowRank, config: Any, stem: str) -> LowRank:
    """With rows as the base model has them: of q and k, the order that is nearer to what is wanted."""
    if not stem.endswith(("attn_q", "attn_k")):
        return update
    text = config.get_text_config()
    heads = text.num_attention_heads if stem.endswith("attn_q") else text.num_key_value_heads
    turned = LowRank(update.a, _interleaved(update.b, heads), update.scaling)
    aim = wanted.delta()
    return min((update, turned), key=lambda own: float((own.delta() - aim).norm()))


def _interleaved(b: Tensor, heads: int) -> Tensor:
    """The opposite of the converter's permutation for Llama's rotary halves."""
    halves = b.reshape(heads, b.shape[0] // heads // 2, 2, -1)
    return halves.transpose(1, 2).reshape(b.shape)


def _convert(script: Path, arguments: list[Any], to: Path) -> None:
    command = [sys.executable, str(script), *map(str, arguments), "--outfile", str(to), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode or not to.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise ExportError(f"llama.cpp's {script.name} failed: {lines[-1].strip()} In full: {' '.join(command)}")
