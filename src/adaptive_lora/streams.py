"""Named random streams: every draw in a study comes from (seed, name), never from global state."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of `seed`.

    SHA-256 of the seed and the names, so that streams with different names are independent and a
    stream does not depend on which other streams were used. 63 bits because torch takes signed ones.

    >>> derive_seed(0, "init", "h.0.attn") == derive_seed(0, "init", "h.0.attn")
    True
    >>> derive_seed(0, "init") != derive_seed(0, "data") != derive_seed(1, "data")
    True
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator (counter-based Philox) for the stream `names` of `seed`."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *names)))


def python_stream(seed: int, *names: str | int) -> random.Random:
    """A standard-library generator for the stream `names` of `seed`."""
    return random.Random(derive_seed(seed, *names))
