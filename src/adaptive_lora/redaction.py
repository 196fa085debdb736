"""Tokens of the Hugging Face hub taken out of text, before it is printed or written."""

from __future__ import annotations

import os
import re

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables that hold a token."""
HIDDEN = "hf_[redacted]"
_SHORTEST = 8
"""Characters; what is shorter is no token, and taking it out everywhere would garble text."""
# User tokens have 34 letters and digits; OAuth's are three groups of base64 with dots between them.
_TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf_oauth_|hf_jwt_)[\w.-]{16,}|(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{20,}")


def redacted(text: str) -> str:
    """`text` without what looks like a token, and without the environment's own, whatever that looks like.

    >>> redacted("401 for hf_" + "a1" * 17)
    '401 for hf_[redacted]'
    >>> redacted("from hf_hub_download_of_a_file")
    'from hf_hub_download_of_a_file'
    """
    for own in filter(None, map(os.environ.get, VARIABLES)):
        if len(own.strip()) >= _SHORTEST:
            text = text.replace(own.strip(), HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


def has_token(text: str) -> bool:
    """Whether `redacted` would take something out."""
    return redacted(text) != text
