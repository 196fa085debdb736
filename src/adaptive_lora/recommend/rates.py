"""Learning rates to begin with."""

from __future__ import annotations

_KNOWN = ((5e5, 1e-2), (3e7, 3e-3), (1e9, 1e-3))
"""Parameters of the model below which a rate is the default, on the steps 1, 3, 10.

The first two are what committed studies found (`evidence.json`: 0.0098 to 0.013 on a model of 260,000 parameters,
0.0027 on one of a million), the third is what SmolLM2 was trained at."""
LARGE = 3e-4
"""For models from a billion parameters on; QLoRA (arXiv 2305.14314) has 2e-4 up to 13 billion, 1e-4 beyond."""


def default_rate(parameters: int) -> float:
    """Where tuning begins, for rank 8 or so at alpha = 2 r.

    >>> default_rate(134_515_008), default_rate(8_000_000_000)
    (0.001, 0.0003)
    """
    return next((rate for size, rate in _KNOWN if parameters < size), LARGE)


def bracket(rate: float) -> tuple[float, float, float]:
    """A rate on the steps 1, 3, 10 and its neighbours.

    >>> bracket(1e-3), bracket(3e-4)
    ((0.0003, 0.001, 0.003), (0.0001, 0.0003, 0.001))
    """
    leading, exponent = f"{rate:.0e}".split("e")
    if leading == "1":
        return float(f"3e{int(exponent) - 1}"), rate, float(f"3e{exponent}")
    return float(f"1e{exponent}"), rate, float(f"1e{int(exponent) + 1}")
