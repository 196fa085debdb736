"""What we learn of a chat, token by token beside TRL's and transformers' masks; `docs/chat-masks.md` says who is right.

TRL's files hold the chat templates of real models and, for training, the same with the answers marked, from which
transformers makes its mask. What TRL does not ship is written anew in `chat_templates/`. The tokenizers are small ones
of the same kind as the models' own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptive_lora.data.encoding import Encoder
from adaptive_lora.data.records import Record, Turn
from tests.data.tokenizers_made import byte_level, with_space

trl = pytest.importorskip("trl", reason="TRL, of the extra `dev`, is not installed")

OF_TRL, OWN = Path(trl.__file__).parent / "chat_templates", Path(__file__).parent / "chat_templates"
RECORD = Record(
    "messages", "And by night?", "", "An owl.", turns=(Turn("user", "Which bird sings?"), Turn("assistant", "A lark."))
)
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK = ["<think>", "</think>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
PHI3 = ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
COHERE = [
    "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
]  # fmt: skip
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
GPT_OSS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
GLM = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]


def ends(
    make: Callable[..., Any], control: Sequence[str], end: str, start: str = "", **more: Any
) -> Callable[..., Any]:
    """A maker of tokenizers with these control tokens; `start` is defined and written by the tokenizer itself."""
    own = {"start": start, "bos_token": start} if start else {}
    return functools.partial(make, control, eos_token=end, **own, **more)


TOKENIZERS: dict[str, Callable[..., Any]] = {
    "llama3": ends(byte_level, LLAMA3, "<|eot_id|>", "<|begin_of_text|>"),
    "qwen2_5": ends(byte_level, IM, "<|im_end|>"),
    "qwen2_5 base": ends(byte_level, IM, "<|endoftext|>"),
    "qwen3": ends(byte_level, IM, "<|im_end|>", words=THINK),
    "gemma": ends(with_space, GEMMA, "<eos>", "<bos>", space=False),
    "gemma3": ends(with_space, GEMMA, "<eos>", "<bos>", space=False),
    "phi3": ends(with_space, PHI3, "<|endoftext|>", "<s>", eats=PHI3[2:]),
    "mistral": ends(with_space, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>", "<s>"),
    "smollm2": ends(byte_level, IM, "<|im_end|>", bos_token="<|im_start|>"),
    "llama2": ends(with_space, ["<s>", "</s>"], "</s>", "<s>"),
    "zephyr": ends(with_space, ["<s>", "</s>"], "</s>", "<s>"),
    "cohere": ends(byte_level, COHERE, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "lfm2": ends(byte_level, ["<|startoftext|>", *IM[1:]], "<|im_end|>", "<|startoftext|>"),
    "deepseekv3": ends(byte_level, DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", words=THINK),
    "gptoss": ends(byte_level, GPT_OSS, "<|return|>"),
    "glm4moe": ends(byte_level, GLM, "<|endoftext|>", words=THINK),
}
EMPTY = "<think>\n\n</think>\n\n"
LARK, OWL = "A lark.", "An owl."
# Template -> what we learn of both answers. The last of them is what `learn: last` takes.
LEARNT: dict[str, tuple[str, str]] = {
    "llama3": (f"{LARK}<|eot_id|>", f"{OWL}<|eot_id|>"),
    "qwen2_5": (f"{LARK}<|im_end|>\n", f"{OWL}<|im_end|>\n"),
    "qwen2_5 base": (f"{LARK}<|im_end|>\n", f"{OWL}<|im_end|>\n"),
    "qwen3": (f"{LARK}<|im_end|>\n", f"{EMPTY}{OWL}<|im_end|>\n"),
    "gemma": (f"{LARK}<end_of_turn>\n", f"{OWL}<end_of_turn>\n"),
    "gemma3": (f"{LARK}<end_of_turn>\n", f"{OWL}<end_of_turn>\n"),
    "phi3": (f"{LARK}<|end|>", f"{OWL}<|end|><|endoftext|>"),  # the token has swallowed the line break
    "mistral": (f" {LARK}</s>", f" {OWL}</s>"),
    "smollm2": (f"{LARK}<|im_end|>\n", f"{OWL}<|im_end|>\n"),
    "llama2": (f"{LARK} </s>", f"{OWL} </s>"),
    "zephyr": (f"{LARK}</s> \n", f"{OWL}</s> \n"),
    "cohere": (f"{LARK}<|END_OF_TURN_TOKEN|>", f"{OWL}<|END_OF_TURN_TOKEN|>"),
    "lfm2": (f"{LARK}<|im_end|>\n", f"{OWL}<|im_end|>\n"),
    "deepseekv3": (f"{LARK}<｜end▁of▁sentence｜>", f"{OWL}<｜end▁of▁sentence｜>"),
    "gptoss": (f"<|channel|>final<|message|>{LARK}", f"<|channel|>final<|message|>{OWL}<|return|>"),
    "glm4moe": (f"\n<think></think>\n{LARK}", f"\n<think></think>\n{OWL}"),
}
# The same where transformers' mask of TRL's training template is another one; the reasons are in the docs.
OTHERWISE_MARKED: dict[str, tuple[str, ...]] = {
    "qwen2_5": (f"\n{LARK}<|im_end|>\n", f"\n{OWL}<|im_end|>\n"),
    "qwen2_5 base": (f"\n{LARK}<|im_end|>\n", f"\n{OWL}<|im_end|>\n"),
    "qwen3": (f"{EMPTY}{LARK}<|im_end|>\n", f"{EMPTY}{OWL}<|im_end|>\n"),
    "zephyr": (f"{LARK}</s>", f"{OWL}</s>"),
    "deepseekv3": (f"<｜Assistant｜>{LARK}<｜end▁of▁sentence｜>", f"<｜Assistant｜>{OWL}<｜end▁of▁sentence｜>"),
    "gptoss": tuple(
        f"<|start|>assistant<|channel|>final<|message|>{text}" for text in (f"{LARK}<|end|>", f"{OWL}<|return|>")
    ),
    "glm4moe": (f"\n<think></think>\n{LARK}<|user|>", f"\n<think></think>\n{OWL}<|user|>"),
}


def templates(name: str) -> tuple[str, str]:
    """A model's chat template, and the same with the answers marked."""
    file = name.removesuffix(" base")
    if (OWN / f"{file}.jinja").exists():
        return ((OWN / f"{file}.jinja").read_text(),) * 2
    return (OF_TRL / f"{file}.jinja").read_text(), (OF_TRL / f"{file}_training.jinja").read_text()


def spans(tokenizer: Any, ids: Sequence[int], learnt: Sequence[int]) -> tuple[str, ...]:
    """The learnt stretches as text."""
    begins = [at for at in learnt if at - 1 not in learnt]
    ends = [at + 1 for at in learnt if at + 1 not in learnt]
    return tuple(tokenizer.decode(ids[begin:end]) for begin, end in zip(begins, ends, strict=True))


def by_transformers(tokenizer: Any, marked: str, record: Record = RECORD) -> tuple[list[int], list[int]]:
    """Token ids and learnt places of all answers, by transformers' own mask."""
    messages = [turn.message() for turn in (*record.before(), record.answer())]
    found = tokenizer.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], [at for at, on in enumerate(found["assistant_masks"]) if on]


def by_trl(tokenizer: Any, max_length: int | None = None) -> list[tuple[list[int], list[int]]]:
    """Token ids and learnt places of the last answer, as TRL's trainer prepares a prompt and its completion."""
    from datasets import Dataset
    from trl import SFTTrainer

    row = {"prompt": [turn.message() for turn in RECORD.before()], "completion": [RECORD.answer().message()]}
    trainer = SimpleNamespace(_tokenizer=tokenizer, completion_only_loss=True, chat_template=None)
    asked = SimpleNamespace(
        dataset_num_proc=None, assistant_only_loss=False, dataset_text_field="text", max_length=max_length,
        truncation_mode="keep_start", shuffle_dataset=False,
    )  # fmt: skip
    found = SFTTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer, asked, False, None, "train")
    return [(r["input_ids"], [at for at, label in enumerate(r["labels"]) if label != -100]) for r in found]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_answers_of_a_chat_beside_trl_and_transformers(name: str) -> None:
    template, marked = templates(name)
    tokenizer = TOKENIZERS[name](template)
    last, every = (Encoder(tokenizer, 999, learn=learn).encode(RECORD) for learn in ("last", "all"))
    ours = every.learnt.tolist()
    assert spans(tokenizer, every.ids, ours) == LEARNT[name]
    assert spans(tokenizer, last.ids, last.learnt.tolist()) == LEARNT[name][1:]

    [(trl_ids, trl_learnt)] = by_trl(tokenizer)
    if name == "gptoss":  # whose template says what day it is
        trl_ids = _on_our_day(tokenizer, trl_ids)
    assert (trl_ids, trl_learnt) == (list(last.ids), last.learnt.tolist())

    ids, learnt = by_transformers(tokenizer, marked)
    assert spans(tokenizer, ids, learnt) == OTHERWISE_MARKED.get(name, LEARNT[name])
    same_text = name not in ("qwen3", "gptoss", "glm4moe")
    assert (ids == list(every.ids)) == same_text
    assert (learnt == ours) == (name not in OTHERWISE_MARKED)


def _on_our_day(tokenizer: Any, ids: list[int]) -> list[int]:
    text, dates = re.subn(r"Current date: [0-9-]{10}", "Current date: 2024-07-26", tokenizer.decode(ids))
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert dates == 1 and found != ids
    return found


def test_a_prompt_keeps_its_own_tokens_where_trl_drops_its_end() -> None:
    """GPT-2's tokenizer cuts two line breaks otherwise before a word than at an end; generation starts at the end."""
    tokenizer = TOKENIZERS["llama3"](templates("llama3")[0], like_gpt2=True)
    last, every = (Encoder(tokenizer, 999, learn=learn).encode(RECORD) for learn in ("last", "all"))
    prompt = tokenizer.apply_chat_template(
        [turn.message() for turn in RECORD.before()], add_generation_prompt=True, return_dict=False
    )
    assert list(last.ids[: last.prompt_length]) == prompt
    assert spans(tokenizer, every.ids, every.learnt.tolist()) == LEARNT["llama3"]
    [(ids, learnt)] = by_trl(tokenizer)
    assert ids[: len(prompt)] != prompt and spans(tokenizer, ids, learnt) == (f"\n\n{OWL}<|eot_id|>",)


def test_where_transformers_mask_is_a_token_off() -> None:
    """It asks for the token of a character: the first of several bytes, or the control token that swallowed a space."""
    bare = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    bare += "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    asks = "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer, phi3 = with_space(["</s>"], bare + asks, space=False), TOKENIZERS["phi3"](templates("phi3")[0])
    for made, marked, answer, theirs, ours in [
        (tokenizer, bare + asks, "An owl, touché", "An owl, touch\ufffd", "An owl, touché"),
        (
            phi3,
            templates("phi3")[1],
            " An owl.",
            f"<|assistant|>{OWL}<|end|><|endoftext|>",
            f"{OWL}<|end|><|endoftext|>",
        ),
    ]:
        record = dataclasses.replace(RECORD, completion=answer)
        example = Encoder(made, 999).encode(record)
        assert spans(made, example.ids, example.learnt.tolist()) == (ours,)
        assert spans(made, *by_transformers(made, marked, record))[-1].replace("> ", ">") == theirs


def test_a_record_without_room_is_counted_here_and_dropped_by_trl() -> None:
    tokenizer = TOKENIZERS["qwen2_5"](templates("qwen2_5")[0])
    assert by_trl(tokenizer, max_length=8) == []
    assert Encoder(tokenizer, 8).encode(RECORD).completion_tokens == 0


@pytest.mark.parametrize(
    ("name", "warned"),
    [("deepseekv3", "ends a prompt with '<think>\\n'"), ("glm4moe", "writes no end behind an answer"), ("qwen3", "")],
)
def test_templates_that_do_not_fit_their_own_prompts_are_warned_of(name: str, warned: str) -> None:
    found = Encoder(TOKENIZERS[name](templates(name)[0]), 999).warnings("messages")
    assert warned in found[0] if warned else found == []
