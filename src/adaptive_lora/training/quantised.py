"""Frozen layers whose weights bitsandbytes keeps in 4 or 8 bits: how they are loaded, their weights, their product.

Both engines and all measures compute with the weights that the codes stand for:

    y = x W^T + bias,   grad_x = grad_y W

W is dequantised into the input's number type for one product and then dropped; activations stay as they are. The
layers' own forward pass is not used, since it is not this function everywhere. On CPUs with AVX512-BF16 a 4-bit layer
in evaluation mode rearranges its weights for good and from then on computes in bfloat16 without a gradient. An 8-bit
layer rounds its inputs to 8 bits, but for columns in which any row of the pass is large: what a text is given would
depend on the texts beside it.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptive_lora.errors import ModelError
from adaptive_lora.planning.outline import DType, Quantise

_DEQUANTISED = (torch.float32, torch.bfloat16, torch.float16)
"""What bitsandbytes writes; on the CPU it leaves a result of any other type as the memory was."""


def check_quantisation(name: str, config: Any, dtype: DType, quantise: Quantise | None) -> str | None:
    """How the weights of the model `name` will be kept: as `quantise` says or its own `config`; None: as they are.

    ModelError where both say something, where that cannot be, or where bitsandbytes is missing.
    """
    stored = quantisation_of(config)
    if quantise and (other := stored or _method(config).get("quant_method")):
        raise ModelError(
            f"{name} is stored quantised already ({other}), and {quantise} was asked for: leave `quantise` out, or "
            "name the model that it was made from."
        )
    if quantise and dtype == "float64":
        raise ModelError(f"bitsandbytes quantises no float64 weights, got {quantise} of {name}: take dtype float32.")
    storage = _method(config).get("bnb_4bit_quant_storage") or dtype
    if stored in ("nf4", "fp4") and storage not in ("uint8", dtype):
        raise ModelError(  # transformers would convert the codes as if they were numbers
            f"{name} stores its 4-bit codes as {storage}, which can be read in that dtype alone, got dtype {dtype}: "
            f"take dtype {storage}."
        )
    if (quantise or stored) and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{name} in {quantise or stored} needs bitsandbytes, which is not installed: "
            "pip install 'adaptive-lora[bnb]', or take a model that is not quantised, without `quantise`."
        )
    return quantise or stored


def quantisation_config(quantise: Quantise, dtype: DType) -> Any:
    """What transformers takes as `quantization_config`.

    `nf4`: blocks of 64 weights with one float32 scale, 4.5 bits a weight. `int8`: one scale for every output, 8 bits.
    """
    from transformers import BitsAndBytesConfig

    if quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def quantisation_of(config: Any) -> str | None:
    """How bitsandbytes keeps the weights of a model with this configuration: `nf4`, `fp4`, `int8`; None for others."""
    said = _method(config)
    if said.get("quant_method") != "bitsandbytes":
        return None
    return "int8" if said.get("load_in_8bit") else str(said.get("bnb_4bit_quant_type", "fp4"))


def _method(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None)
    return found if isinstance(found, dict) else {} if found is None else dict(found.to_dict())


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear layer of bitsandbytes with its weight in 4 or 8 bits."""
    if not isinstance(module, nn.Linear):  # PEFT's layers show the weight of the layer inside
        return False
    if type(module.weight).__name__ == "Params4bit":  # whose codes may be stored as any type
        return getattr(module.weight, "quant_state", None) is not None
    return type(module.weight).__name__ == "Int8Params" and module.weight.dtype == torch.int8


def dense_weight(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """W (d_out, d_in) of a linear layer or `Conv1D`: its own, or dequantised into `dtype` (by default float32)."""
    weight: Any = module.weight
    if not is_quantised(module):
        own: Tensor = weight.detach()
        return own.t() if type(module).__name__ == "Conv1D" else own
    dtype = dtype or torch.float32
    exact = dtype if dtype in _DEQUANTISED else torch.float32
    if type(weight).__name__ == "Int8Params":
        codes, scales = _int8(module)
        return codes.to(exact).mul_(scales.div(127)[:, None]).to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(weight.quant_state)
    # Blocks of weights run on from row to row. bitsandbytes' kernel for CPUs begins a new one with every row, and gives
    # wrong weights where a row is no whole number of blocks (0.50.2): it is told of one long row.
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))
    state.dtype = exact
    found: Tensor = dequantize_4bit(weight.data, state)
    return found.view(shape).to(dtype)


def _int8(module: Any) -> tuple[Tensor, Tensor]:
    """Codes (d_out, d_in) and scales (d_out,), which lie in another place once the layer itself was used."""
    codes = module.weight.data if module.state.CB is None else module.state.CB
    return codes, module.weight.SCB if module.state.SCB is None else module.state.SCB


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        bias = None if module.bias is None else module.bias.detach().to(x.dtype)
        return functional.linear(x, dense_weight(module, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Dequantised once more, so that no pass ever holds more than one weight.
        return gradients[0] @ dense_weight(ctx.module, gradients[0].dtype), None


def _product(module: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = _Product.apply(x, module)
    return found


def use_dense_products(model: nn.Module) -> Callable[[], None]:
    """Gives every quantised layer of a frozen model the product above; returns what undoes it.

    ModelError where a pass of its own has already rearranged a layer's weights.
    """
    layers = list(quantised_layers(model))
    for name, layer in layers:
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"bitsandbytes has rearranged the weights of {name} for inference on this CPU, as it does in the first "
                "pass of a model in evaluation mode, and rounded their scales. Load the model again, and give it "
                "before its first pass."
            )
    own = [layer.__dict__.get("forward") for _, layer in layers]  # hooks of other libraries
    for _, layer in layers:
        layer.forward = functools.partial(_product, layer)

    def restore() -> None:
        for (_, layer), before in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if before is not None:
                layer.forward = before

    return restore


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of a model's quantised layers."""
    return ((name, module) for name, module in model.named_modules() if is_quantised(module))


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once; of a quantised weight as many as it stands for."""
    packed = sum(m.in_features * m.out_features - m.weight.numel() for _, m in quantised_layers(model))
    return sum(p.numel() for p in model.parameters()) + packed


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, the scales of quantised ones included."""
    scales = sum(_scale_bytes(module) for _, module in quantised_layers(model))
    return sum(p.numel() * p.element_size() for p in model.parameters()) + scales


def _scale_bytes(module: Any) -> int:
    if type(module.weight).__name__ == "Int8Params":
        return int(_int8(module)[1].nbytes)
    state = module.weight.quant_state
    return int(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0))
