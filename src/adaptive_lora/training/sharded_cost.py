"""What sharing a base costs in time: a pass's products against the gathering of its weights.

    compute = 4 P T / F;    gathering = 2 b P (W - 1) / W / β

P parameters in the blocks of b bytes each, T positions in a training pass, W ranks, F floating-point operations a
second that a rank's products reach, β bytes a second that it receives. The base is frozen, so that a pass is two
products a weight and position, and every block is gathered twice. On accelerators a block is gathered while the one
before computes, and a pass takes the larger of the two times; on a CPU it takes their sum.
"""

from __future__ import annotations


def gathering_seconds(block_bytes: float, world: int, bandwidth: float) -> float:
    """Of one training pass: `block_bytes` of all blocks together, `bandwidth` in bytes a second and rank.

    >>> gathering_seconds(14e9, world=8, bandwidth=300e9)  # 7 billion parameters of 2 bytes
    0.08166666666666667
    """
    return 2 * block_bytes * (world - 1) / world / bandwidth


def break_even_positions(flops: float, world: int, bandwidth: float, bytes_per_parameter: float = 2) -> float:
    """Positions of a training pass whose products take as long as its gathering, T = b (W - 1) / W · F / (2 β),
    whatever the model; where gathering is hidden behind products, larger passes cost no more than without sharing.

    >>> round(break_even_positions(400e12, world=8, bandwidth=300e9))
    1167
    """
    return bytes_per_parameter * (world - 1) / world * flops / (2 * bandwidth)
