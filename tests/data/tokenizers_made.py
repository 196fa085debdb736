"""Small tokenizers of real kinds, made here: byte-level ones with control tokens, and one that begins with a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "name a metal river copper tin sings the answer is assistant user system model weather".split()


# How Llama 3 and Qwen cut text into words (GPT-4's way): line breaks stay together.
_LINES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    control: Sequence[str],
    chat_template: Any = None,
    words: Sequence[str] = (),
    start: str | None = None,
    like_gpt2: bool = False,
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
    lines = pre_tokenizers.Split(Regex(_LINES), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=like_gpt2)
    made.pre_tokenizer = letters if like_gpt2 else pre_tokenizers.Sequence([lines, letters])
    made.decoder = decoders.ByteLevel()
    return _finished(
        made, [AddedToken(name, normalized=False) for name in control], chat_template, words, start, special
    )


def with_space(
    control: Sequence[str],
    chat_template: Any = None,
    start: str | None = None,
    space: bool = True,
    eats: Sequence[str] = (),
    **special: str,
) -> Any:
    """One in SentencePiece's way: bytes for what it does not know, and a `space` before every stretch of text.

    Gemma's puts none there; Phi-3's control tokens swallow the white space behind them, as those in `eats` do.
    """
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    pieces += ["▁Y"] if space else ["\n"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    made = Tokenizer(
        models.BPE(vocabulary, [("▁", "Y")] if space else [], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    before = [normalizers.Prepend("▁")] if space else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    tokens = [AddedToken(name, normalized=False, rstrip=name in eats) for name in control]
    return _finished(made, tokens, chat_template, (), start, special)


def _finished(
    made: Tokenizer,
    control: Sequence[AddedToken],
    chat_template: Any,
    words: Sequence[str],
    start: str | None,
    special: dict[str, str],
) -> Any:
    made.add_special_tokens(list(control))
    made.add_tokens([AddedToken(name, normalized=False) for name in words])
    if start is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = chat_template
    return tokenizer
