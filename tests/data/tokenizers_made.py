"""Small tokenizers of real kinds, made here: byte-level ones with control tokens, and one that begins with a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "name a metal river copper tin sings the answer is assistant user system model weather".split()


def byte_level(
    control: Sequence[str],
    chat_template: Any = None,
    words: Sequence[str] = (),
    start: str | None = None,
    **special: str,
) -> Any:
    """A byte-level BPE tokenizer; `words` are added tokens that are not special, `start` is what it writes itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate(alphabet)}
    merges = []
    for word in [text for w in WORDS for text in (w, f"Ġ{w}")] + ["ĊĊ", "Ġ<", "ĠYes"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _finished(made, control, chat_template, words, start, special)


def with_space(control: Sequence[str], chat_template: Any = None, start: str | None = None, **special: str) -> Any:
    """One in SentencePiece's way: a space before every text, bytes for what it does not know."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(made, control, chat_template, (), start, special)


def _finished(
    made: Tokenizer,
    control: Sequence[str],
    chat_template: Any,
    words: Sequence[str],
    start: str | None,
    special: dict[str, str],
) -> Any:
    made.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    made.add_tokens([AddedToken(name, normalized=False) for name in words])
    if start is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = chat_template
    return tokenizer
