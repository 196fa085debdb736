"""Greedy answers of a model, with or without an adapter, whatever its own generation settings say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import TrainingError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.training.adapter import ADAPTER, WEIGHTS_FILE, attached, lora_layers, tensor_name
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.positions import depends_on_length

_TRIED = 4
"""Tokens of an answer that show whether a batch changes it."""


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    ids: tuple[int, ...]
    """New token ids, without the one that ended it."""
    ended: bool
    """Whether it ended by itself; otherwise it was cut at the limit."""


@dataclass(frozen=True)
class Question:
    """What of an example is asked, and what its reference answer is: the first stretch that is learnt of it."""

    prompt: tuple[int, ...]
    """At least one token: the first of a text without a prompt, which is never predicted."""
    reference: tuple[int, ...]
    """May have been cut with its text."""


def question_of(example: Example) -> Question:
    """An example as a question.

    >>> question_of(Example((5, 6, 7, 8), prompt_length=2, truncated=False))
    Question(prompt=(5, 6), reference=(7, 8))
    """
    begin = max(example.prompt_length, 1)
    end = example.unlearnt[0][0] if example.unlearnt else len(example.ids)
    return Question(example.ids[:begin], example.ids[begin:end])


def stop_tokens(base: FrozenBase, questions: Sequence[Question]) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's and the model's own, and what closes the reference answers.

    A chat's turns may end in another token than its texts, which only its template knows.
    """
    model_ends = getattr(base.model.generation_config, "eos_token_id", None)
    found = {base.tokenizer.eos_token_id, *(model_ends if isinstance(model_ends, list) else [model_ends])}
    special = set(base.tokenizer.all_special_ids)
    for question in questions:
        found |= set([token for token in question.reference if token in special][-1:])
    return tuple(sorted(token for token in found if token is not None))


def greedy(
    base: FrozenBase, prompt: Sequence[int], limit: int, stops: Sequence[int], should_stop: Callable[[], bool]
) -> Answer:
    """At most `limit` new tokens behind `prompt`, each the most likely one; by the base as it is, adapter and all.

    `should_stop` is asked before every token; True raises KeyboardInterrupt.
    """
    return greedy_together(base, [prompt], limit, stops, should_stop)[0]


def greedy_together(
    base: FrozenBase,
    prompts: Sequence[Sequence[int]],
    limit: int,
    stops: Sequence[int],
    should_stop: Callable[[], bool],
) -> list[Answer]:
    """`greedy` for several prompts in one batch, padded on the left: up to rounding what each is answered alone.

    Models that cannot be batched so (`can_answer_together`) are asked one prompt at a time.
    """
    longest, fill = max(map(len, prompts)), stops[0] if stops else 0
    ids = torch.tensor([[fill] * (longest - len(p)) + list(p) for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    with quiet_libraries(), _settings(base, limit, stops) as settings:
        found = base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=_interrupting(should_stop),
        )
    return [_answer(new, stops) for new in found[:, longest:].tolist()]


def _answer(new: Sequence[int], stops: Sequence[int]) -> Answer:
    """Up to the first token that ends it: behind it there is filling, as long as others go on."""
    end = next((i for i, token in enumerate(new) if token in stops), None)
    return Answer(tuple(new[:end]), end is not None)


def can_answer_together(base: FrozenBase, prompts: Sequence[Sequence[int]], stops: Sequence[int]) -> bool:
    """Whether these prompts begin their answers in a batch as they do alone.

    Some models reckon with a text's length, some remember what stands before it, padding too.
    """
    if any(depends_on_length(module) for module in base.model.modules()):
        return False
    together = greedy_together(base, prompts, _TRIED, stops, lambda: False)
    return all(
        greedy(base, prompt, _TRIED, stops, lambda: False) == own for prompt, own in zip(prompts, together, strict=True)
    )


@contextlib.contextmanager
def attached_from(base: FrozenBase, folder: Path) -> Iterator[Any]:
    """The base with a saved adapter, as a study keeps it (`plan.json` beside its weights); removed at the end.

    TrainingError where the weights are not those of the plan.
    """
    plan = RankPlan.load(folder / "plan.json")
    saved = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    expected = {tensor_name(name, letter) for name in plan.ranks for letter in "AB"}
    if saved.keys() != expected:
        differ = ", ".join(sorted(saved.keys() ^ expected)[:3])
        raise TrainingError(f"The weights in {folder} are not those of its plan: {differ}. Train the run again.")
    with attached(base, plan, seed=0) as model, torch.no_grad():
        for name, layer in lora_layers(model).items():
            for letter, part in (("A", layer.lora_A), ("B", layer.lora_B)):
                weight, kept = part[ADAPTER].weight, saved[tensor_name(name, letter)]
                if weight.shape != kept.shape:
                    raise TrainingError(
                        f"{name} in {folder} has {letter} of {tuple(kept.shape)}, its plan says {tuple(weight.shape)}."
                    )
                weight.copy_(kept)
        yield model


@contextlib.contextmanager
def _settings(base: FrozenBase, limit: int, stops: Sequence[int]) -> Iterator[Any]:
    """Greedy and nothing else: a model's own settings (a repetition penalty, say) would fill in what is left open."""
    from transformers import GenerationConfig

    # Where scaling depends on length, a cache holds what shorter texts were given.
    scaled = any(depends_on_length(module) for module in base.model.modules())
    model, before = base.model, base.model.generation_config
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,  # one text at a time is never padded
        use_cache=not scaled,
    )
    model.generation_config = settings
    try:
        yield settings
    finally:
        model.generation_config = before


def _interrupting(should_stop: Callable[[], bool]) -> Any:
    from transformers import StoppingCriteriaList

    def never(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if should_stop():
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([never])
