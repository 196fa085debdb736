"""The adapter as an `.onnx_adapter` file, which ONNX Runtime gives a model as inputs.

It is what `olive convert-adapters` writes: names without PEFT's prefix, A (d_in, rank), B (rank, d_out) with the
scaling in it, padded to one rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptive_lora.errors import UsageError
from adaptive_lora.export.low_rank import AdapterWeights, LowRank

FILE = "adapter.onnx_adapter"


def write_onnx_adapter(adapter: AdapterWeights, folder: Path) -> None:
    """Writes a padded adapter; UsageError where ONNX Runtime is not installed."""
    runtime = _runtime()
    arrays = {}
    for name, update in adapter.modules.items():
        arrays[f"{_prefixed(name)}.lora_A.weight"] = update.a.float().t().contiguous().numpy()
        arrays[f"{_prefixed(name)}.lora_B.weight"] = (update.b.float() * update.scaling).t().contiguous().numpy()
    file = runtime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    folder.mkdir(parents=True, exist_ok=True)
    file.export_adapter(str(folder / FILE))


def read_onnx_adapter(folder: Path) -> dict[str, LowRank]:
    """The updates as a model with such inputs computes them: (x A) B."""
    import torch

    found = _runtime().AdapterFormat.read_adapter(str(folder / FILE)).get_parameters()
    tensors = {name: torch.from_numpy(value.numpy().copy()).t() for name, value in found.items()}
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    return {
        name.removeprefix("base_model.model."): LowRank(
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], 1.0
        )
        for name in sorted(modules)
    }


def _prefixed(name: str) -> str:
    # Olive cuts the prefix where it stands before `model`, and nowhere else.
    return name if name.startswith("model.") else f"base_model.model.{name}"


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(
            "The form onnx-adapter is written by ONNX Runtime, which is not installed: pip install onnxruntime. Or "
            "take the form padded and convert it with `olive convert-adapters`."
        ) from None
    return onnxruntime
