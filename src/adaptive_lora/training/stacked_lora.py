"""LoRA of all adapters of a pack in one layer by torch's batched products, for accelerators; others are in `lora_ops`.

    u_b = s_b x_b A_k(b)^T;   y_b += u_b B_k(b);   backward: i_b = s_b g_b B_k(b)^T;   dB_k = Σ_b u_b^T g_b;   ...

for every block b of positions and its adapter k(b): x (N, d_in) as (n, BLOCK, d_in), u and i (n, BLOCK, R).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptive_lora.training.current_batch import BankBatch
from adaptive_lora.training.packing import BLOCK


class BatchedBmm:
    """Positions in blocks, each block multiplied with its adapter's A and B.

    Ranks are padded with zeros to the module's largest, R. On accelerators launching a call costs more than its
    arithmetic: what a call needs besides its inputs is made once a pass (`BankBatch.layout`, `BankBatch.dropped`).
    """

    def __init__(self, name: str, batch: BankBatch) -> None:
        self.name, self.batch = name, batch
        self.stack = batch.stacks.get(name)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See `LoraOp.forward`."""
        if self.stack is None:
            return []
        layout = self.batch.layout
        u = torch.bmm(_blocks(self._masked(x)), self.stack.a_compute[layout.rows].transpose(1, 2))
        u *= layout.scaling[self.name]
        _blocks(y).baddbmm_(u, self.stack.b_compute[layout.rows])
        return [u]

    def backward(self, x: Tensor, saved: list[Tensor], grad_output: Tensor, grad_input: Tensor | None) -> None:
        """See `LoraOp.backward`."""
        if self.stack is None:
            return
        layout, (u,) = self.batch.layout, saved
        block_grads = _blocks(grad_output.contiguous())
        inner = torch.bmm(block_grads, self.stack.b_compute[layout.rows].transpose(1, 2))
        inner *= layout.scaling[self.name]
        for total, blocks in (
            (self.stack.b_gradient, torch.bmm(u.transpose(1, 2), block_grads)),
            (self.stack.a_gradient, torch.bmm(inner.transpose(1, 2), _blocks(self._masked(x)))),
        ):
            # Blocks are summed by segment, in order, and not by an atomic add: the same bits every time.
            summed = torch.segment_reduce(blocks.to(total.dtype), "sum", lengths=layout.lengths, axis=0, unsafe=True)
            total.index_add_(0, layout.adapters, summed)  # every row occurs once
        if grad_input is None:
            return
        a = self.stack.a_compute[layout.rows]
        if self.batch.dropped is None:
            _blocks(grad_input).baddbmm_(inner, a)
        else:
            grad_input += torch.bmm(inner, a).view_as(x).masked_fill_(self.batch.dropped[self.name], 0)

    def _masked(self, x: Tensor) -> Tensor:
        """x with 0 where an adapter drops its input."""
        return x if self.batch.dropped is None else x.masked_fill(self.batch.dropped[self.name], 0)


def _blocks(x: Tensor) -> Tensor:
    """(N, d) as (N / BLOCK, BLOCK, d)."""
    return x.view(-1, BLOCK, x.shape[-1])
