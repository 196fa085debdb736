"""One adapter on the frozen base, through PEFT: built from a plan, read back, saved in PEFT's format."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from adaptive_lora.errors import TrainingError
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.base import FrozenBase, quiet_libraries
from adaptive_lora.training.dropout import Masks, erase_
from adaptive_lora.training.options import initial_a

ADAPTER = "default"
"""PEFT's name of the one adapter in place."""


class SeededDropout(nn.Module):
    """Dropout whose mask follows from (seed, module, step) and the batch's tokens; see `dropout.Masks`.

    `step` and `real`, (B, T) true for tokens (nothing: all are), are set by the training loop before each
    forward pass.
    """

    def __init__(self, masks: Masks, name: str) -> None:
        super().__init__()
        self.masks, self.name, self.step = masks, name, 0
        self.real: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks.p == 0:
            return x
        # Some models lay the positions of a batch in one row before a product.
        every = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        real = every if self.real is None else self.real.reshape(x.shape[:-1])
        kept = torch.ones_like(x)
        tokens = kept[real]  # (n, d_in), a copy
        kept[real] = erase_(tokens, self.masks.dropped(self.name, self.step, len(tokens), x.device))
        return x * kept / (1 - self.masks.p)


@contextlib.contextmanager
def attached(base: FrozenBase, plan: RankPlan, seed: int, dropout: float = 0.0) -> Iterator[Any]:
    """The base as a PeftModel with a fresh adapter of `plan`; taken off again at the end.

    A starts nested (`initial_a`) and B at 0, so that at step 0 the model is the base. Realised ranks
    and scalings are read back from the built model; TrainingError where they are not the plan's.
    """
    from peft import get_peft_model

    try:
        # PEFT initialises with the global generator before we write our own values over it.
        with torch.random.fork_rng(devices=[]), quiet_libraries():
            model = get_peft_model(base.model, plan.to_lora_config(dropout))
        layers = lora_layers(model)
        verify(layers, plan)
        masks = Masks(seed, dropout, {shape.name: shape.d_in for shape in base.outline.modules})
        for name, layer in layers.items():
            a = initial_a(seed, name, plan.ranks[name], layer.in_features)
            weight = layer.lora_A[ADAPTER].weight
            weight.data.copy_(torch.from_numpy(a))
            layer.lora_B[ADAPTER].weight.data.zero_()
            layer.lora_dropout[ADAPTER] = SeededDropout(masks, name)
        model.eval()
        yield model
    finally:
        # Also where PEFT gave up halfway: the next run must find the base as it was.
        for name, layer in _layers_in(base.model).items():
            base.model.set_submodule(name, layer.get_base_layer())
        # PEFT leaves its mark on the base, and would warn of a second adapter at the next run.
        if hasattr(base.model, "peft_config"):
            del base.model.peft_config
        base.model.requires_grad_(False)


def lora_layers(model: Any) -> dict[str, Any]:
    """Full module name in the base -> PEFT's layer, in the model's order."""
    return _layers_in(model.base_model.model)


def _layers_in(inner: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def verify(layers: dict[str, Any], plan: RankPlan) -> None:
    """TrainingError unless every module of the plan, and no other, has the plan's rank and scaling.

    PEFT before 0.21 ignores a pattern key that matches nothing (huggingface/peft#3582).
    """
    wrong = [f"{name} has an adapter that the plan does not name" for name in layers.keys() - plan.ranks.keys()]
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
    if wrong:
        raise TrainingError(f"PEFT did not build the plan: {'; '.join(wrong[:4])} ({len(wrong)} modules in all).")


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_training(model: Any, on: bool) -> None:
    """Switches the adapter's dropout; the base stays in evaluation mode, its own dropout off."""
    for layer in lora_layers(model).values():
        layer.lora_dropout[ADAPTER].train(on)


def set_step(model: Any, step: int, real: Tensor) -> None:
    """Tells the dropout streams which update comes next, and which positions of its batch, (B, T), are tokens."""
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

    `weights` as `weights_of` gives them, whichever engine trained them.
    """
    config = plan.to_lora_config(dropout)
    config.base_model_name_or_path = base.location
    config.revision = base.revision if re.fullmatch("[0-9a-f]{40}", base.revision) else None
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix.contiguous()
        for name, pair in weights.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    (folder / "adapter_model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
