"""What a model's outline means for a study: which modules can be targets, how long its texts and tokens may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_lora.data.encoding import Encoder, Example, Learn
from adaptive_lora.data.records import Record
from adaptive_lora.errors import ModelError
from adaptive_lora.planning.modules import ModuleShape, matches, role_of, select_targets
from adaptive_lora.planning.outline import ModelOutline
from adaptive_lora.planning.strategies import coverage_warnings

EXPERTS = "experts"
"""The word for a mixture's fused experts where targets are named."""


def targets_of(outline: ModelOutline, targets: str | Sequence[str]) -> tuple[ModuleShape, ...]:
    """The target modules of a model; ModelError where there are none, or where they could not be trained."""
    if not outline.modules:
        raise ModelError(f"The model {outline.name} has no linear modules to adapt.")
    entries = [targets] if isinstance(targets, str) else targets
    if EXPERTS in entries and outline.experts:
        raise ModelError(_experts_refused(outline))
    for entry in entries:
        found = [m for m in outline.uncalled if matches(m, entry)]
        if found and not any(matches(m, entry) for m in outline.modules):
            raise ModelError(
                f"`targets` names {entry!r}, but text does not pass through it: {_roles(found)} of {outline.name} "
                f"{'is' if len(found) == 1 else 'are'} not called in a text-only pass, so that an adapter there would "
                f"never be trained. Name others; there are: {_roles(outline.modules, 12)}."
            )
    return select_targets(outline.modules, targets)


def check_called(outline: ModelOutline, modules: Iterable[ModuleShape]) -> None:
    """ModelError where a loaded model does not call modules that its configuration promised."""
    if missing := [m for m in modules if m not in outline.modules]:
        raise ModelError(
            f"Text does not pass through {len(missing)} target modules of {outline.name} ({_roles(missing)}), so that "
            f"adapters there would never be trained. Name others as `targets`: {_roles(outline.modules, 12)}."
        )


def warnings_of(outline: ModelOutline, modules: Sequence[ModuleShape], strategies: Iterable[str]) -> list[str]:
    """What a user should know before trusting plans on these modules."""
    found = coverage_warnings(modules, strategies)
    share = 100 * outline.fused_parameters / outline.total_parameters
    if share >= 0.5:
        what = "fused stacks (experts of a mixture)" if outline.experts else "parameters of three dimensions"
        found.append(
            f"{share:.0f} % of the parameters of {outline.name} lie in {what}, which get no adapter: plans speak of "
            "the rest alone."
        )
    if outline.other_class:
        found.append(
            f"{outline.name} is an {outline.other_class}, of which AutoModelForCausalLM reads a part: plans and "
            "adapters fit that part alone, and on the whole model PEFT may build others without a word."
        )
    if count := len(outline.uncalled):
        share = 100 * sum(m.d_in * m.d_out for m in outline.uncalled) / outline.total_parameters
        layers = "1 linear layer" if count == 1 else f"{count} linear layers"
        found.append(
            f"`all-linear` leaves out {layers} of {outline.name} not called in a text-only pass, "
            f"{share:.2g} % of its parameters: {_roles(outline.uncalled)}."
        )
    if outline.pass_failed:
        found.append(
            f"which layers of {outline.name} text passes through could not be tried ({outline.pass_failed}); all but "
            "those named after pictures or sound are taken."
        )
    return found


def context_warnings(outline: ModelOutline, asked: int) -> list[str]:
    """A warning where the model takes fewer tokens than `data.max_length` asks for."""
    allowed = outline.within(asked)
    if allowed == asked:
        return []
    return [
        f"{outline.name} takes {allowed:,} tokens at most and `data.max_length` asks for {asked:,}: longer texts are "
        f"cut at {allowed:,}."
    ]


def encoder_of(outline: ModelOutline, tokenizer: Any, max_length: int, template: str, learn: Learn = "last") -> Encoder:
    """An encoder for a model: within its context, and with tokens that it knows."""
    limit = outline.within(max_length)
    return CheckedEncoder(tokenizer, limit, template, learn, embedding_rows=outline.embedding_rows, model=outline.name)


@dataclass(frozen=True)
class CheckedEncoder(Encoder):
    """An encoder that refuses a token beyond the model's embedding where one occurs; ModelError with the first."""

    embedding_rows: int | None = None
    """How many tokens the model knows; None where nobody said."""
    model: str = ""
    """What to call the model."""

    def encode_all(self, records: Iterable[Record]) -> Iterator[Example]:
        """As `Encoder.encode_all`."""
        for example in super().encode_all(records):
            if self.embedding_rows is not None and max(example.ids, default=0) >= self.embedding_rows:
                first = next(token for token in example.ids if token >= self.embedding_rows)
                raise ModelError(
                    f"The tokenizer of {self.model} has {len(self.tokenizer):,} tokens and the model's embedding "
                    f"{self.embedding_rows:,} rows: token {first:,}, {self.tokenizer.decode([first])!r}, occurs in the "
                    "data and has no row. Take the tokenizer that the model was trained with, or save the model after "
                    "`model.resize_token_embeddings(len(tokenizer))`."
                )
            yield example


def _experts_refused(outline: ModelOutline) -> str:
    """Why adapters on fused experts are refused, what they would cost, and what was tried instead."""
    unit = sum(stack.params_per_rank for stack in outline.experts)
    return (
        f"`targets: experts` asks for adapters on {len(outline.experts)} fused stacks of {outline.name} (such as "
        f"{outline.experts[0].name}, {outline.experts[0].experts} experts). A unit of rank there costs {unit:,} "
        f"parameters, Σ experts · (d_in + d_out), rank 8 {8 * unit:,}. Neither engine trains stacks of experts. "
        f"{_tried(outline)}"
    )


def _tried(outline: ModelOutline) -> str:
    if outline.origin is None:
        return "Name linear modules as `targets`."
    from adaptive_lora.training.base import meta_model
    from adaptive_lora.training.peft_check import remedy

    return remedy(meta_model(outline.name, *outline.origin), outline.modules)


def _roles(modules: Sequence[ModuleShape], most: int = 4) -> str:
    """Short names of what modules are in their blocks, each once."""
    roles = list(dict.fromkeys(role_of(m.name) for m in modules))
    return ", ".join(roles[:most]) + (f" and {len(roles) - most} more" if len(roles) > most else "")
