"""Tools that are not installed: a reason to skip, except in `make interop`, which installs `bench/interop.txt`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent.parent
IN_INTEROP = bool(os.environ.get("ADAPTIVE_LORA_INTEROP"))


def pinned() -> dict[str, str]:
    """Distribution -> version, as `make interop` installs them."""
    lines = (ROOT / "bench" / "interop.txt").read_text(encoding="utf-8").splitlines()
    return {m[1]: m[2] for line in lines if (m := re.match(r"([\w.-]+)==([\w.]+)", line))}


def absent(package: str, reason: str) -> NoReturn:
    """Skips a test for want of a distribution, and fails where that is a promise."""
    if IN_INTEROP and package in pinned():
        pytest.fail(f"{reason}, though `make interop` installs {package}")
    pytest.skip(reason)
