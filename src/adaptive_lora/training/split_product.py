"""Products of a frozen float32 layer by processors that multiply bfloat16 many times as fast: `split_product.c`.

    y = x W^T,   x = x0 + x1 + x2,   W = W0 + W1 + W2,   each part in bfloat16

added up in float32 over the six largest products of parts. Errors are those of a product in float32, or smaller; a row
of y does not depend on other rows nor on their number. Where a processor has no such tiles (AMX), torch's product in
float32 stands in.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from adaptive_lora.training.kernels import SplitArgs, split_kernel

_SMALLEST = 32
"""Inputs and outputs of a layer that are a whole block of tiles; narrower ones would be mostly zeros."""
_OWN = threading.local()
"""`workspace`: memory of this thread, kept from one product to the next: new pages would cost as much as cutting."""


def splits(x: Tensor, weight: Tensor) -> bool:
    """Whether `split_product` is for these: float32 on a CPU with tiles, not too narrow, in a thread that works alone.

    The number of rows does not matter, so that no row is computed otherwise in other company.
    """
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and len(x) > 0
    return plain and min(weight.shape) >= _SMALLEST and torch.get_num_threads() == 1 and split_kernel() is not None


def split_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, d_in) by weight (d_out, d_in), any strides; (N, d_out). Only where it `splits`."""
    kernel = split_kernel()
    assert kernel is not None, "`splits` was asked first"
    x, weight = x.contiguous(), weight if 1 in weight.stride() else weight.contiguous()
    y = x.new_empty(len(x), len(weight))
    kept: Tensor | None = getattr(_OWN, "workspace", None)
    it = SplitArgs(
        *x.shape, len(weight), *weight.stride(), x.data_ptr(), weight.data_ptr(), y.data_ptr(),
        *((None, 0) if kept is None else (kept.data_ptr(), kept.numel())),
    )  # fmt: skip
    if kernel.split_product_multiply(it):
        _OWN.workspace = _new_workspace(it.bytes)
        it.workspace = _OWN.workspace.data_ptr()
        kernel.split_product_multiply(it)
    return y


def _new_workspace(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)
