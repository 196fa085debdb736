"""Other libraries' chatter while models are read and built."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# PEFT imports it wherever it is installed, and on some CPUs it then asks for kernels that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences loading bars and the libraries' deprecation warnings of each other: no user can act on them."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
