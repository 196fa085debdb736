"""Other libraries' chatter while models are read and built."""

from __future__ import annotations

import contextlib
import logging as python_logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences loading bars and the libraries' deprecation warnings of each other: no user can act on them."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # Says, as PEFT first imports it on some CPUs, which package would bring kernels for inference.
    extra = python_logging.getLogger("bitsandbytes")
    level = extra.level
    extra.setLevel(python_logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        extra.setLevel(level)
        if bars:
            logging.enable_progress_bar()
