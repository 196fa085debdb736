"""Very long texts: a beginning is tokenised, and what is kept of it is the same as of the whole text."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adaptive_lora import demo
from adaptive_lora.data import beginnings, encoding
from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.notices import count_texts
from adaptive_lora.data.records import Record, Turn
from adaptive_lora.data.sources import from_dicts
from tests.data.tokenizers_made import byte_level, with_space

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def unigram() -> Any:
    rng = random.Random(3)
    pieces = [(letter, -6.0 - i / 50) for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz.é中")]
    pieces += [("".join(rng.choice("abcdefghij▁") for _ in range(rng.randrange(2, 6))), -8.0) for _ in range(300)]
    made = Tokenizer(models.Unigram([("<unk>", -20.0), *dict(pieces).items()], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<unk>")


def pieces() -> Any:
    vocabulary = {"[UNK]": 0, **{w: i for i, w in enumerate("a b c river tin ##a ##b ##c ##in".split(), 1)}}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[UNK]")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-4": lambda: byte_level(["<|end|>", "<|user|>", "<|assistant|>"], CHAT, eos_token="<|end|>"),
    "gpt-2": lambda: byte_level(["<|end|>"], like_gpt2=True, eos_token="<|end|>"),
    "sentencepiece": lambda: with_space(["</s>"], eos_token="</s>"),
    "unigram": unigram,
    "wordpiece": pieces,
    "demo": lambda: demo_tokenizer(),
}


def demo_tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(str(demo.model_folder()))


def texts(seed: int, length: int) -> dict[str, str]:
    rng = random.Random(seed)
    words = "name a metal river copper tin sings the answer is".split()
    return {
        "words": " ".join(rng.choice(words) for _ in range(length // 5)),
        "letters": "".join(rng.choice("abcdefghij") for _ in range(length)),
        "signs": "".join(rng.choice(" \n\t.é中😀ab1<|") for _ in range(length)),
        "spaces": " " * length,
        "unknown": "中" * length + "river",
    }


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_kept_of_a_beginning_is_the_same_as_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer, 24, "chat" if tokenizer.chat_template else "plain")
    records = []
    for kind, text in texts(7, 9_000).items():
        records += [Record("prompt-completion", f"{kind}:", "", text), Record("prompt-completion", text, "", "tin")]
        records += [Record("prompt-completion", "Sing<|end|>", "", text + "<|end|>")]
        records += [] if tokenizer.chat_template else [Record("text", "", "", text)]
    seen: list[int] = []
    cut = list(encoder.encode_all(records))
    monkeypatch.setattr(encoding, "tokenised", counting(seen))
    assert cut == list(encoder.encode_all(records))
    assert max(seen) > beginnings._PER_TOKEN * 24 + 4096  # there was something to cut
    assert any(example.truncated for example in cut) and any(example.completion_tokens == 0 for example in cut)


def counting(seen: list[int]) -> Callable[..., list[list[int]]]:
    def whole(tokenise: beginnings.Tokenise, texts: Sequence[str], limit: int, least: int = 0) -> list[list[int]]:
        seen.extend(map(len, texts))
        return tokenise(texts)

    return whole


def test_every_answer_of_a_long_conversation_is_found_as_far_as_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["gpt-4"]()
    turns = tuple(
        turn
        for i in range(40)
        for turn in (Turn("user", f"name {i} " + "river " * 40), Turn("assistant", "tin " * (3 + i)))
    )
    record = Record("messages", "name a metal", "", "copper", turns)
    encoder = Encoder(tokenizer, 400, "chat", "all")
    whole = encoder.encode(record)
    monkeypatch.setattr(encoding, "LONGEST_CHAT", 1_000)
    monkeypatch.setattr(beginnings, "_PER_TOKEN", 1)
    assert encoder.encode(record) == whole
    assert len(whole.unlearnt) > 2 and whole.truncated


def test_fifty_megabytes_cost_what_a_page_costs() -> None:
    tokenizer = TOKENIZERS["gpt-4"]()
    rows = [{"prompt": "name a metal", "completion": "tin sings. " * 4_600_000}]
    record = from_dicts(rows, "long").records[0]
    began = time.process_time()
    example = Encoder(tokenizer, 64, "plain").encode(record)
    assert example.truncated and len(example.ids) == 64
    assert time.process_time() - began < 2


def test_unknown_tokens_are_counted_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record("text", "", "", "a river 中 b 中 " * 50)
    whole = count_texts([record], pieces())
    monkeypatch.setattr("adaptive_lora.data.notices._PART", 16 * 7)
    assert count_texts([record, replace(record, completion="")], pieces()) == whole
    assert whole.unknown_tokens == 100
