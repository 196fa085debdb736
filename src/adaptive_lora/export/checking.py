"""Whether what was written is the adapter: logits of real prompts, from the weights and from the written files.

The wanted logits come from a plain pass with W x + scaling · B (A x) in every module, and from no library of adapters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import ExportError
from adaptive_lora.export.low_rank import AdapterWeights, LowRank

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive_lora.training.base import FrozenBase

PROMPTS = (
    "Give three tips for staying healthy.",
    "The capital of France is Paris. The capital of Italy is",
    "Translate into German: Where is the next railway station, please?",
    "def fibonacci(n):\n    ",
)
TOLERANCE = 1e-5
"""Largest difference of a logit in float32, times the largest logit where that is over 1."""
HALF = {"float16": 0.1, "bfloat16": 0.5}
"""Where the base model has fewer digits, and merged weights round the update: a share of the adapter's effect. In
bfloat16 the check says no more than that what was written is nearer to the adapter than to the base model; export in
float32 to know more."""
LOOSEST = 5e-3
"""The same for a tool whose own numbers, without an adapter, are further off than that."""
_LONGEST = 64
_SHOWN = 5


@dataclass(frozen=True)
class Probe:
    """A prompt, and what base and adapter say to it."""

    text: str
    ids: tuple[int, ...]
    base: Tensor
    """Logits of the base model alone, (tokens, vocabulary)."""
    wanted: Tensor
    """With the adapter."""

    def next_tokens(self) -> list[dict[str, Any]]:
        """The most probable next tokens, with their log-probabilities with the adapter and without: for a look at what
        a server says."""
        import torch

        own, before = (torch.log_softmax(logits[-1].double(), -1) for logits in (self.wanted, self.base))
        best = own.topk(min(_SHOWN, len(own)))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            {"id": i, "log_probability": round(value, 5), "base_model": round(float(before[i]), 5)} for i, value in rows
        ]


@dataclass(frozen=True)
class Check:
    """How far what was written is from what was to be written."""

    by: str
    """What read the files back."""
    largest: float
    """Largest difference of a logit."""
    limit: float
    effect: float
    """Largest difference that the adapter makes to the base model's logits."""
    prompts: int
    differing: tuple[str, ...] = field(default=())
    """Where there is one: what differs."""

    @property
    def line(self) -> str:
        """A sentence for a terminal."""
        return (
            f"read back by {self.by}: logits of {self.prompts} prompts differ by at most {self.largest:.2g}, where the "
            f"adapter changes them by up to {self.effect:.2g}"
        )

    @property
    def paragraph(self) -> str:
        """The same for a model card."""
        result = "within" if self.passed else "**not within**"
        return (
            f"Read back by {self.by}: logits of {self.prompts} prompts differ by at most {self.largest:.2g}, {result} "
            f"{self.limit:.1g}; the adapter changes them by up to {self.effect:.2g}. `compat.json` has the prompts and "
            "the most probable next tokens: compare one after loading, as some servers fall back to the base model "
            "without a word."
        )

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit; one that is no number is not."""
        return self.largest <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "passed": self.passed}

    def require(self, where: object) -> None:
        """ExportError with what differs, unless it passed."""
        if not self.passed:
            told = "".join(f"\n  - {line}" for line in self.differing)
            raise ExportError(
                f"{where} is written, and is not the adapter: read back by {self.by}, logits differ by up to "
                f"{self.largest:.3g} (allowed: {self.limit:.1g}; the adapter itself changes them by "
                f"{self.effect:.3g}). Do not serve it; the files stay for a look.{told}"
            )


@dataclass(frozen=True)
class Built:
    """That an adapter at step 0 is its plan. Logits say nothing of it: they are the base model's."""

    by: str
    """What built it and read it back."""
    modules: int
    parameters: int

    passed = True
    """One that is not its plan is an error before its folder appears."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "untrained": True, "passed": True}

    def require(self, where: object) -> None:
        """Nothing: see `passed`."""

    @property
    def line(self) -> str:
        """A sentence for a terminal."""
        return (
            f"built and read back by {self.by}: {self.modules} modules with the plan's ranks and scalings; untrained: "
            "B is zero, and the adapted model is the base model"
        )

    @property
    def paragraph(self) -> str:
        """The same for a model card."""
        return (
            f"Built and read back by {self.by}: {self.modules} modules with the ranks and scalings of the plan. A is "
            "drawn, B is zero, so that the adapted model is the base model: there is nothing to serve before it was "
            "trained."
        )


def probes(base: FrozenBase, adapter: AdapterWeights, prompts: Sequence[str] = PROMPTS) -> list[Probe]:
    """Base and wanted logits of each prompt; prompts are cut at 64 tokens or what the model has room for."""
    longest = min(_LONGEST, base.outline.context or _LONGEST)
    encoded = [tuple(base.tokenizer(text)["input_ids"][:longest]) for text in prompts]
    texts = [(text, ids) for text, ids in zip(prompts, encoded, strict=True) if ids]
    before = [logits(base.model, ids) for _, ids in texts]
    with applied(base.model, adapter.modules):
        after = [logits(base.model, ids) for _, ids in texts]
    return [Probe(text, ids, *pair) for (text, ids), *pair in zip(texts, before, after, strict=True)]


def logits(model: Any, ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) in float32 on the CPU, of one text."""
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), use_cache=False)
    return torch.Tensor.float(found.logits[0]).cpu()


@contextlib.contextmanager
def applied(model: Any, modules: Mapping[str, LowRank]) -> Iterator[None]:
    """The model with W x + scaling · B (A x) in these modules; afterwards as it was."""
    import torch

    handles = []
    try:
        for name, update in modules.items():
            layer = model.get_submodule(name)
            place = {"device": layer.weight.device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
            a, b = update.a.to(**place), update.b.to(**place)

            def hook(_: Any, given: Any, out: Any, a: Any = a, b: Any = b, scaling: float = update.scaling) -> Any:
                return (out + scaling * ((given[0].to(a.dtype) @ a.t()) @ b.t())).to(out.dtype)

            handles.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def compared(
    by: str, asked: Sequence[Probe], found: Sequence[Tensor], noise: float = 0.0, dtype: str = "float32"
) -> Check:
    """The check of logits that something read back from the written files gave; `dtype` is that of the base model.

    `noise`: the largest difference of its logits from ours without an adapter, for tools with arithmetic of their own;
    ten times that is allowed, up to `LOOSEST`.
    """
    differences = [float((own - p.wanted).abs().max()) for own, p in zip(found, asked, strict=True)]
    # A maximum passes over what is no number.
    largest = max(differences) if all(d == d for d in differences) else float("nan")
    size = max(float(p.wanted.abs().max()) for p in asked)
    effect = max(float((p.wanted - p.base).abs().max()) for p in asked)
    told = [
        f"{p.text!r}: logits differ by up to {difference:.3g} at token {_where(own, p.wanted)} of {len(p.ids)}"
        for p, own, difference in zip(asked, found, differences, strict=True)
    ]
    limit = max(HALF.get(dtype, 0.0) * effect, TOLERANCE * max(1.0, size), min(10 * noise, LOOSEST * max(1.0, size)))
    return Check(by, largest, limit, effect, len(asked), () if largest <= limit else tuple(told))


def _where(one: Tensor, other: Tensor) -> int:
    return int((one - other).abs().amax(-1).argmax()) + 1


def updates_differing(wanted: Mapping[str, LowRank], found: Mapping[str, LowRank], most: int = 5) -> tuple[str, ...]:
    """The modules whose ΔW differs most, relative to its own size; what is missing or too much comes first."""
    lines = [f"{name}: missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name}: has an update that was not asked for" for name in sorted(found.keys() - wanted.keys())
              if bool(found[name].delta().any())]  # fmt: skip
    sizes = []
    for name in wanted.keys() & found.keys():
        own, other = wanted[name].delta(), found[name].delta()
        norm = float(own.norm())
        difference = float((own - other).norm())
        if not difference <= 1e-6 * norm:
            sizes.append((difference / norm if norm else difference, name))
    lines += [f"{name}: its update differs by {100 * size:.3g} %" for size, name in sorted(sizes, reverse=True)]
    return tuple(lines[:most])
