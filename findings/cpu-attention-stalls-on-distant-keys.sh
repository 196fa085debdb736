#!/usr/bin/env bash
# What: on an x86 CPU the backward pass of torch's attention takes ten times as long and more where one key outweighs the
#   others by e^87 to e^104: their weights are subnormal numbers, which the processor multiplies by a slow path. With a gap
#   of e^20 in its place the same shapes take the usual time; so they do after torch.set_flush_denormal(True).
# Version: torch 2.13.0 (CPU), float32.
# Why it hurts: the loss is right and nothing warns. Heads that look at one token alone can have the others' weights there,
#   and then a pass over one text takes many times as long as over another of the same length.
# Where: exponentials and products of scaled_dot_product_attention, forward and backward, on processors that handle
#   subnormal numbers by microcode. Processors of other kinds may not show it, so that there this says nothing.
set -euo pipefail
if [ "$(uname -m)" != x86_64 ]; then
  echo "not an x86 processor: nothing to see here"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" -I - <<'PY'
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)


def backward_ms(gap: float) -> float:
    """Of 8 heads of 16 numbers over 512 tokens, whose first key is `gap` nats ahead of the others."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, outer = (torch.randn(1, 8, 512, 16, generator=generator) for _ in range(4))
    query, key = 0.1 * query, 0.1 * key
    query[..., 0], key[..., 0] = 1, 0
    key[:, :, 0, 0] = gap
    seconds = []
    for _ in range(7):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        out = scaled_dot_product_attention(*leaves, is_causal=True, scale=1.0)
        began = time.perf_counter()
        torch.autograd.grad(out, leaves, outer)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


usual, slow = backward_ms(20), backward_ms(95)
torch.set_flush_denormal(True)
flushed = backward_ms(95)
print(f"torch {torch.__version__}; 8 heads of 16, 512 tokens, causal, float32, one thread")
print("Behaviour: the time of a backward pass depends on how far one key is ahead of the others.")
print("Expected: that the same shapes take the same time.")
print(f"Seen: {usual:.1f} ms where it is ahead by 20 nats, {slow:.1f} ms by 95, {flushed:.1f} ms by 95 with flushing")
assert slow > 5 * usual, "changed: distant keys take no longer"
assert flushed < slow / 5, "changed: flushing does not help"
PY
