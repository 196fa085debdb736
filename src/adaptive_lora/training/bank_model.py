"""The base model as a bank runs it: which layers are replaced, and how it takes its tokens."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_lora.data.encoding import Example
from adaptive_lora.errors import ModelError
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.training.activation_checkpointing import recomputed_blocks
from adaptive_lora.training.attention import NAME, NotCausalOnly, register
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.current_batch import BankBatch, current_batch
from adaptive_lora.training.fused_layers import fused_layers
from adaptive_lora.training.gathering import begin_pass, sharded_part, whole_modules
from adaptive_lora.training.head import Head
from adaptive_lora.training.kernels import TILED, attention_kernel, lora_kernel, split_kernel
from adaptive_lora.training.memory import is_out_of_memory
from adaptive_lora.training.packing import Pack, pack
from adaptive_lora.training.pointwise import fused_rotations

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation of the bank's logits from the model's own, relative to the largest logit."""

_POSITIONS = 64
"""Most positions of a text whose logits are compared."""


@dataclass
class _Comparison:
    """What was found when a way of running a base was compared with the model itself."""

    longest: int
    """Tokens of the longest text."""
    error: float
    what: str
    """What was off."""
    kernels: frozenset[str]


_COMPARED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], _Comparison]] = weakref.WeakKeyDictionary()
"""By model and way of running it: every bank of a study would find the same."""


@dataclass(frozen=True)
class BankModel:
    """How the model is run."""

    head: Head
    padded: bool
    """Whether sequences are padded to rows of equal length, for the model's own attention."""
    kernels: set[str]
    """What computed attention and LoRA so far."""
    longest: int = 0
    """Tokens of the longest text that it was compared on with the model itself."""

    def hidden(self, packed: Pack) -> Tensor:
        """Hidden states of all positions, (N, d)."""
        if self.padded:
            out = self.head.decoder(input_ids=packed.ids, attention_mask=packed.mask, use_cache=False)[0]
        else:
            out = self.head.decoder(input_ids=packed.ids, position_ids=packed.positions, use_cache=False)[0]
        return out.reshape(-1, out.shape[-1])


class OpenModel:
    """A base with a bank's layers in it, compared with the base itself on texts as long as any that it was given."""

    def __init__(
        self,
        base: FrozenBase,
        layers: Mapping[str, Callable[[nn.Module], nn.Module]],
        checkpointing: bool,
        texts: Sequence[Example],
    ) -> None:
        self.current: BankModel | None = None
        """None while closed."""
        self._open = functools.partial(bank_model, base, layers, checkpointing)
        self._texts, self._stack = shortest_and_longest(texts), contextlib.ExitStack()

    def compare(self, texts: Sequence[Example] = ()) -> None:
        """Opens it, or opens it again where one of `texts` is longer than all that it was compared on."""
        self._texts = shortest_and_longest([*self._texts, *texts])
        if self.current is None or any(len(text.ids) > self.current.longest for text in self._texts):
            self.close()
            self.current = self._stack.enter_context(self._open(self._texts))

    def close(self) -> None:
        """Restores the base."""
        self.current = None
        self._stack.close()


@contextlib.contextmanager
def bank_model(
    base: FrozenBase,
    layers: Mapping[str, Callable[[nn.Module], nn.Module]],
    checkpointing: bool,
    texts: Sequence[Example],
) -> Iterator[BankModel]:
    """The base with `layers` in place of its target modules; restored at the end.

    Sequences are packed end to end where the model allows it, otherwise padded to rows. Which, and whether
    frozen layers can be fused, is decided by comparing logits with the model's own of each text alone: the longest and
    the shortest of `texts` and three short ones, in one pass. Windows, chunks and position scaling that no text reaches
    are not seen, and not needed. ModelError where no way of running it reproduces them.
    """
    probe = _probe_texts(base, texts)
    own = functools.cache(lambda: _own_logits(base, probe))
    failures = []
    for fused, padded in ((True, False), (True, True), (False, True)):
        kernels = attention_kernel() is not None, lora_kernel(base.model.dtype) is not None
        sharded = sharded_part(base.model) is not None
        way = (fused, padded, frozenset(layers), base.model.dtype, base.device, sharded, *kernels)
        # Before anything is replaced.
        expected = None if _known(base, way, probe) else own()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_replaced(base.model, layers))
                if fused:
                    stack.enter_context(fused_layers(base.model))
                    stack.enter_context(fused_rotations(base.model))
                if not padded:
                    stack.enter_context(_packed_attention(base.model))
                model = BankModel(Head(base.model), padded, _known_kernels(base, padded))
                found = _compared(model, base, way, probe, expected)
            except (TypeError, ValueError, AttributeError, IndexError, NotCausalOnly, RuntimeError) as problem:
                begin_pass(base.model)
                if is_out_of_memory(problem):  # says nothing of the model; the bank is tried again with less in it
                    raise
                failures.append(f"{type(problem).__name__}: {problem}")
                continue
            if not found.error <= _tolerance(base):
                failures.append(f"{found.what} {found.error:.2g}")
                continue
            if checkpointing:
                stack.enter_context(recomputed_blocks(base.model))
            yield replace(model, longest=found.longest)
            return
    raise ModelError(
        f"{base.name} cannot be run by the bank ({'; '.join(dict.fromkeys(failures))}). Set `engine: reference` in the "
        "study file: it trains one adapter at a time through the model as it is."
    )


def _tolerance(base: FrozenBase) -> float:
    return 5e-2 if base.coarse else _TOLERANCE[base.model.dtype]


def probe_examples(base: FrozenBase) -> list[Example]:
    """Three short sequences of unequal length, over the whole vocabulary."""
    vocabulary = base.model.config.get_text_config().vocab_size
    lengths = [base.outline.within(n) for n in (9, 5, 12)]
    return [
        Example(tuple((7 * i + 31 * k + 1) % vocabulary for i in range(n)), 1, False) for k, n in enumerate(lengths)
    ]


def _known_kernels(base: FrozenBase, padded: bool) -> set[str]:
    """What a bank computes with whatever it computes."""
    return {*(["the model's attention"] if padded else []), *([TILED] if uses_tiles(base) else [])}


def uses_tiles(base: FrozenBase) -> bool:
    """Whether a bank multiplies frozen float32 weights on bfloat16 tiles here."""
    plain = base.device.type == "cpu" and base.model.dtype == torch.float32 and base.products is None
    return plain and split_kernel() is not None


def _probe_texts(base: FrozenBase, texts: Sequence[Example]) -> list[Example]:
    """What is compared; the longest text is not the first, so that positions in the pass are not those in the text."""
    ends = [Example(text.ids, 1, False) for text in shortest_and_longest(texts)]
    return [*probe_examples(base), *ends]


def shortest_and_longest(texts: Sequence[Example]) -> list[Example]:
    """Both, or the same twice; the first of several of one length."""
    return [choose(texts, key=lambda text: len(text.ids)) for choose in (min, max)] if texts else []


def _known(base: FrozenBase, way: tuple[object, ...], probe: Sequence[Example]) -> _Comparison | None:
    """The comparison of an earlier bank, if its texts were as long."""
    before = _COMPARED.setdefault(base.model, {}).get(way)
    return before if before and before.longest >= max(len(text.ids) for text in probe) else None


def _compared(
    model: BankModel, base: FrozenBase, way: tuple[object, ...], probe: Sequence[Example], expected: Tensor | None
) -> _Comparison:
    """Compares a way of running the base with the `expected` logits, unless an earlier bank did."""
    if expected is not None:
        error, what = _deviation(model, base, probe, expected), "logits differ by"
        if error <= _tolerance(base):
            error, what = _mixing(model, base), "one adapter's layers change the logits of another's texts by"
        longest = max(len(text.ids) for text in probe)
        _COMPARED[base.model][way] = _Comparison(longest, error, what, frozenset(model.kernels))
    found = _COMPARED[base.model][way]
    model.kernels.update(found.kernels)
    return found


def _rows(text: Example) -> Tensor:
    """Positions of a text whose logits are compared: all but the last, or an even spread that holds both ends."""
    count = len(text.ids) - 1
    return torch.linspace(0, count - 1, min(count, _POSITIONS)).round().long()


@torch.no_grad()
def _own_logits(base: FrozenBase, probe: Sequence[Example]) -> Tensor:
    """The model's own logits of the probe's texts, computed one by one; (C, V)."""
    parts = []
    for text in probe:
        ids = torch.tensor([text.ids], device=base.device)
        parts.append(base.model(input_ids=ids, use_cache=False).logits[0, _rows(text)])
    return torch.cat(parts)


@torch.no_grad()
def _deviation(model: BankModel, base: FrozenBase, probe: Sequence[Example], expected: Tensor) -> float:
    packed = pack([probe], base.device, model.padded)
    begins = itertools.accumulate((len(text.ids) - 1 for text in probe), initial=0)
    rows = torch.cat([begin + _rows(text) for begin, text in zip(begins, probe, strict=False)])
    with current_batch(BankBatch(packed, kernels=model.kernels)):
        found = model.head.logits(model.hidden(packed)[packed.keep[rows.to(base.device)]])
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def _mixing(model: BankModel, base: FrozenBase) -> float:
    """How far one adapter's layers reach into another's texts, relative to the largest logit; 0 where they do not.

    A model that reorders positions before a layer would give them to the wrong adapters (XLNet puts texts second), with
    the right logits as long as no adapter does anything.
    """
    first, *rest = probe_examples(base)
    packed = pack([[first], rest], base.device, model.padded)

    def logits(marked: tuple[int, int] | None) -> Tensor:
        with current_batch(BankBatch(packed, marked=marked)):
            return model.head.logits(model.hidden(packed)[packed.keep])

    own = torch.tensor(packed.owners, device=base.device)[packed.sequence] == 0
    plain, every = logits(None), logits((0, packed.size))
    apart = [plain - logits(packed.segments[1]), every - logits(packed.segments[0])]
    return float(torch.stack(apart)[:, own].abs().max() / plain.abs().max())


@contextlib.contextmanager
def _replaced(model: nn.Module, layers: Mapping[str, Callable[[nn.Module], nn.Module]]) -> Iterator[None]:
    before: dict[str, nn.Module] = {}
    try:
        for name, module in whole_modules(model):
            if name in layers:
                before[name] = module
                model.set_submodule(name, layers[name](module))
        if missing := sorted(layers.keys() - before.keys()):
            raise AttributeError(f"the model has no module {missing[0]}")
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


@contextlib.contextmanager
def _packed_attention(model: Any) -> Iterator[None]:
    """Our attention instead of the model's."""
    register()
    before = model.config._attn_implementation
    try:
        with quiet_libraries():
            model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ValueError("the model's attention cannot be replaced")
        yield
    finally:
        with quiet_libraries():
            model.set_attn_implementation(before)
