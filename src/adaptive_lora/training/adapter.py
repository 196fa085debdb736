"""One adapter on the frozen base, through PEFT: built from a plan, read back, saved in PEFT's format."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.files import write_atomically
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.activation_checkpointing import recomputed_blocks
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.dropout import DropoutMasks, zero_
from adaptive_lora.training.options import initial_a

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"
"""PEFT's name of the adapter."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def tensor_name(module: str, letter: str) -> str:
    """PEFT's name of a saved A or B of a module."""
    return f"base_model.model.{module}.lora_{letter}.weight"


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (seed, module, step); see `DropoutMasks`.

    The training loop sets `step` and `real`, (B, T), true for tokens (None: no padding), before each forward pass.
    """

    def __init__(self, masks: DropoutMasks, name: str) -> None:
        super().__init__()
        self.masks, self.name, self.step = masks, name, 0
        self.real: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks.p == 0:
            return x
        # Some models flatten the positions of a batch before a product.
        every = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        real = every if self.real is None else self.real.reshape(x.shape[:-1])
        mask = torch.ones_like(x)
        tokens = mask[real]  # (n, d_in), a copy
        mask[real] = zero_(tokens, self.masks.dropped(self.name, self.step, len(tokens), x.device))
        return x * mask / (1 - self.masks.p)


@contextlib.contextmanager
def attached(
    base: FrozenBase, plan: RankPlan, seed: int, dropout: float = 0.0, checkpointing: bool = False
) -> Iterator[Any]:
    """The base as a PeftModel with a fresh adapter of `plan`; the adapter is removed at the end.

    A starts nested (`initial_a`) and B at 0, so that at step 0 the model is the base. Realised ranks
    and scalings are read back from the built model; TrainingError if they are not the plan's. With
    `checkpointing` activations are recomputed in the backward pass: the same results for less memory.
    """
    from peft import get_peft_model

    try:
        # PEFT initialises from the global generator; our own values are written over it below.
        with torch.random.fork_rng(devices=[]), quiet_libraries():
            model = get_peft_model(base.model, plan.to_lora_config(dropout))
        layers = lora_layers(model)
        verify(layers, plan)
        masks = DropoutMasks(seed, dropout, {shape.name: shape.d_in for shape in base.outline.modules})
        for name, layer in layers.items():
            a = initial_a(seed, name, plan.ranks[name], layer.in_features)
            weight = layer.lora_A[ADAPTER].weight
            weight.data.copy_(torch.from_numpy(a))
            layer.lora_B[ADAPTER].weight.data.zero_()
            layer.lora_dropout[ADAPTER] = SeededDropout(masks, name)
        model.eval()
        with recomputed_blocks(base.model) if checkpointing else contextlib.nullcontext():
            yield model
    finally:
        # Also where PEFT failed halfway: the next run needs the base unchanged.
        detach(base.model)
        base.model.requires_grad_(False)


def detach(model: Any) -> None:
    """Takes PEFT's layers out of a model that it wrapped, also where it failed halfway."""
    layers = _layers_in(model)
    for name, layer in layers.items():
        # Over fused experts PEFT puts one wrapper into another; the outermost knows the innermost layer.
        if not any(name.startswith(f"{outer}.") for outer in layers):
            model.set_submodule(name, layer.get_base_layer())
    # PEFT leaves this attribute on the base, and would warn of a second adapter at the next run.
    if hasattr(model, "peft_config"):
        del model.peft_config


def lora_layers(model: Any) -> dict[str, Any]:
    """Full module name in the base -> PEFT's layer, in the model's order."""
    return _layers_in(model.base_model.model)


def _layers_in(inner: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def verify(layers: dict[str, Any], plan: RankPlan) -> None:
    """TrainingError unless exactly the modules of the plan have adapters, with the plan's ranks and scalings.

    PEFT before 0.21 ignores a pattern key that matches nothing (huggingface/peft#3582).
    """
    wrong = []
    for name, rank in plan.ranks.items():
        layer, scaling = layers.get(name), plan.scaling_of(name)
        if layer is None:
            wrong.append(f"{name} has no adapter")
        elif layer.r[ADAPTER] != rank or tuple(layer.lora_A[ADAPTER].weight.shape) != (
            rank,
            layer.in_features,
        ):
            wrong.append(f"{name} has rank {layer.r[ADAPTER]}, the plan says {rank}")
        elif abs(layer.scaling[ADAPTER] - scaling) > 1e-12 * scaling:
            wrong.append(f"{name} has scaling {layer.scaling[ADAPTER]}, the plan says {scaling}")
    unplanned = sorted(layers.keys() - plan.ranks.keys())
    wrong += [f"{name} has an adapter that the plan does not name" for name in unplanned]
    if wrong:
        raise TrainingError(f"PEFT did not build the plan: {'; '.join(wrong[:4])} ({len(wrong)} modules in all).")


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_training(model: Any, on: bool) -> None:
    """Switches the adapter's dropout; the base stays in evaluation mode, without its own dropout."""
    for layer in lora_layers(model).values():
        layer.lora_dropout[ADAPTER].train(on)


def set_step(model: Any, step: int, real: Tensor) -> None:
    """Sets which update the dropout masks are for, and which positions of its batch, (B, T), are tokens."""
    for layer in lora_layers(model).values():
        layer.lora_dropout[ADAPTER].step = step
        layer.lora_dropout[ADAPTER].real = real


def weights_of(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, d_in) and B (d_out, r) by full module name, on the CPU."""
    return {
        name: (layer.lora_A[ADAPTER].weight.detach().cpu(), layer.lora_B[ADAPTER].weight.detach().cpu())
        for name, layer in lora_layers(model).items()
    }


def save_adapter(
    weights: Mapping[str, tuple[Tensor, Tensor]], plan: RankPlan, folder: Path, base: FrozenBase, dropout: float = 0.0
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, readable by `PeftModel.from_pretrained`.

    `weights` as returned by `weights_of` or `Slot.weights`. `peft_check.read_back` compares what was written.
    """
    config = plan.to_lora_config(dropout)
    config.base_model_name_or_path = base.location
    config.revision = base.revision if re.fullmatch("[0-9a-f]{40}", base.revision) else None
    config.inference_mode = True
    save_config(config, folder)
    write_atomically(folder / WEIGHTS_FILE, tensors_of(weights))


def tensors_of(weights: Mapping[str, tuple[Tensor, Tensor]]) -> bytes:
    """A and B by full module name as the content of PEFT's file of weights."""
    tensors = {
        tensor_name(name, letter): matrix.contiguous()
        for name, pair in weights.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    return safetensors.torch.save(tensors, {"format": "pt"})


def save_config(config: LoraConfig, folder: Path) -> None:
    """Writes `adapter_config.json`; the same bytes whatever the hash seed, which decides the order of PEFT's sets."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_FILE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".config-") as private:  # a kill leaves no half configuration
        config.save_pretrained(private)
        written = json.loads((Path(private) / CONFIG_FILE).read_text(encoding="utf-8"))
    written["target_modules"] = sorted(written["target_modules"])
    write_atomically(path, json.dumps(written, indent=2, sort_keys=True) + "\n")
