"""Token ids of texts that are cut to a number of tokens: of a very long text only a beginning is tokenised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_PER_TOKEN = 16
"""Characters of a text that are tokenised at first, for each token that is kept; most tokens have fewer."""
_SPARE = 256
LONGEST_CHAT = 1_000_000
"""Characters up to which a conversation whose every answer is learnt is tokenised whole: its turns are sought in it."""

Tokenise = Callable[[Sequence[str]], list[list[int]]]


def tokenised(tokenise: Tokenise, texts: Sequence[str], limit: int, least: int = 0) -> list[list[int]]:
    """The ids of texts; of one that is much longer than `limit` tokens, ids of a beginning whose first `limit` are the
    text's own.

    The beginning has as many tokens again behind those, and `_SPARE` more: where a text is cut, only the last few
    tokens before the cut become others, as words and merges of them look no further. (A Unigram vocabulary may divide
    one character that is repeated without an end otherwise.) Texts of up to `least` characters are tokenised whole.

    >>> tokenised(lambda texts: [[ord(c) for c in text] for text in texts], ["ab", "c" * 10**6], 4)[0]
    [97, 98]
    """
    size = max(_PER_TOKEN * limit + 4096, least)
    found = tokenise([text[:size] for text in texts])
    while short := [i for i, text in enumerate(texts) if len(text) > size and len(found[i]) < 2 * limit + _SPARE]:
        size *= 4  # of spaces, or of what the tokenizer does not know, one token holds many
        for i, ids in zip(short, tokenise([texts[i][:size] for i in short]), strict=True):
            found[i] = ids
    return found
