"""Adapters from elsewhere, read as data: nothing in a folder is executed, and no path that it names is followed.

Read are folders in PEFT's form, whoever wrote them: LoRA with any patterns, `convert_to_lora`'s, mergekit's with its
modules of rank 0, AdaLoRA's. What B A cannot say (DoRA, whole modules, biases ...) is refused with what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.adapter_config import AdapterConfig, read_config
from adaptive_lora.export.automaton import ALPHABET, Unmatchable, Work
from adaptive_lora.export.folder_files import CONFIG_FILE, adapter_folder, shown, weight_files
from adaptive_lora.export.low_rank import AdapterWeights, LowRank
from adaptive_lora.export.tensor_file import TensorEntry, load_tensors, read_header, summed_up
from adaptive_lora.export.variants import Beyond, beyond_tensors, refusals

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

STEPS = 2_000_000
"""Steps of matching that one folder may cost: some seconds."""
LONGEST_NAME = 256
_OUTPUT_LAYERS = ("lm_head", "embed_out")
"""What PEFT's all-linear leaves out, by the names that causal language models have for it."""
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ABE])(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Adapted:
    """One adapted module as configuration and headers have it; no tensor is loaded."""

    rank: int
    scaling: float
    d_in: int
    d_out: int
    entries: Mapping[str, TensorEntry]
    """By `A`, `B` and, for AdaLoRA, `E`."""


@dataclass(frozen=True)
class AdapterOutline:
    """What an adapter folder holds, without its tensors; needs no torch."""

    modules: Mapping[str, Adapted]
    """By full module name in the base model, in the order of the names."""
    untouched: tuple[str, ...]
    """Modules of rank 0."""
    base_name: str | None
    revision: str | None
    beyond: tuple[Beyond, ...]
    """What the adapter does beside B A; where there is any, `read_adapter` refuses it."""
    notes: tuple[str, ...]


def read_adapter(folder: Path) -> AdapterWeights:
    """The updates of the adapter in `folder`, as PEFT has them when it loads the folder; in float32.

    Ranks are those of the tensors; scalings are resolved from alpha, its pattern and rsLoRA's flag. AdapterError with
    all that is wrong, or with what the adapter does beside B A and what to do then.
    """
    outline = read_outline(folder)
    if outline.beyond:
        raise AdapterError(str(folder), refusals(outline.beyond))
    tensors = load_tensors([entry for module in outline.modules.values() for entry in module.entries.values()])
    modules = {name: _low_rank(module, tensors) for name, module in outline.modules.items()}
    if wrong := [name for name, update in modules.items() if not (_finite(update.a) and _finite(update.b))]:
        raise AdapterError(str(folder), summed_up([f"{name} has values that are not numbers." for name in wrong]))
    return AdapterWeights(modules, outline.base_name, outline.revision, outline.notes)


def read_outline(folder: Path) -> AdapterOutline:
    """Ranks, scalings and sizes of the adapter in `folder`, by its configuration and its tensors' headers alone."""
    place, note = adapter_folder(folder)
    complaints: list[str] = []
    config = _or_complain(lambda: read_config(place), complaints)
    entries = _or_complain(lambda: [e for path in weight_files(place) for e in read_header(path)], complaints)
    if config is None or entries is None:
        raise AdapterError(str(folder), complaints)
    found = _Gathered(notes=[*([note] if note else []), *config.notes])
    for entry in entries:
        _sort_in(entry, found)
    try:
        modules, untouched = _resolve(config, found)
    except Unmatchable as error:
        raise AdapterError(str(place / CONFIG_FILE), [f"a pattern {error}."]) from None
    if not modules and not found.complaints and not found.beyond:
        found.complaints.append("holds no adapted module that its configuration targets.")
    said = {b.key for b in config.beyond}
    said |= {"modules_to_save"} if "bias" in said else set()
    beyond = (*config.beyond, *(b for b in beyond_tensors(found.beyond) if b.key not in said))
    if found.complaints:
        raise AdapterError(str(folder), summed_up(found.complaints) + refusals(beyond))
    return AdapterOutline(modules, untouched, config.base_name, config.revision, beyond, tuple(found.notes))


@dataclass
class _Gathered:
    """Tensors by module and part, and what was met on the way."""

    parts: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    beyond: list[str] = field(default_factory=list)
    adapters: set[str] = field(default_factory=set)
    unprefixed: int = 0
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _or_complain(make: Callable[[], T], complaints: list[str]) -> T | None:
    """What `make` makes; of an error its complaints, with the name of the file."""
    try:
        return make()
    except AdapterError as error:
        complaints += [f"{Path(error.path).name} {line}" for line in error.complaints]
        return None


def _sort_in(entry: TensorEntry, found: _Gathered) -> None:
    """A tensor under its module and part, or among what is beside B A."""
    if len(entry.name) > LONGEST_NAME or not ALPHABET.issuperset(entry.name):
        found.complaints.append(f"the tensor {shown(entry.name)} has no module's name.")
        return
    match = _PART.fullmatch(entry.name)
    if match is None:
        found.beyond.append(entry.name)
        return
    name = match["module"]
    found.unprefixed += not name.startswith(_PREFIX)
    found.adapters.add(match["adapter"] or "default")
    parts = found.parts.setdefault(_WRAPPERS.sub("", name.removeprefix(_PREFIX)), {})
    if match["part"] in parts:
        found.complaints.append(f"the tensor {shown(entry.name)} is another lora_{match['part']} of one module.")
    parts[match["part"]] = entry


def _resolve(config: AdapterConfig, found: _Gathered) -> tuple[dict[str, Adapted], tuple[str, ...]]:
    """Modules with their ranks and scalings, and those of rank 0; complaints and notes go into `found`."""
    if len(found.adapters) > 1:
        found.complaints.append(f"holds several adapters in one file: {shown(sorted(found.adapters))}.")
    if found.unprefixed:
        found.notes.append(
            f"{found.unprefixed:,} tensors lack `{_PREFIX}` before their names; PEFT itself ignores such."
        )
    work = Work(STEPS)
    modules: dict[str, Adapted] = {}
    untouched, ignored, used = [], [], set[str | None]()
    for name, parts in sorted(found.parts.items()):
        if not _is_target(config, name, work):
            ignored.append(name)
        elif problem := _shape_problem(config, parts):
            found.complaints.append(f"{name} {problem}.")
        else:
            rank = parts["A"].shape[0]
            said = _said(config, name, rank, work)
            used |= {said.rank_key, said.alpha_key}
            if rank == 0:
                untouched.append(name)
                continue
            if said.rank != rank:
                found.complaints.append(f"{name} has rank {rank} in its tensors, {said.otherwise()}.")
            modules[name] = Adapted(rank, said.scaling, parts["A"].shape[1], parts["B"].shape[0], parts)
    if ignored:
        found.notes.append(
            f"{_listed(ignored)}: tensors of no target of the configuration; left out, as PEFT ignores them."
        )
    if untouched:
        found.notes.append(f"{_listed(untouched)}: rank 0, left as in the base model.")
    for pattern, keys in (("rank_pattern", config.ranks.keys), ("alpha_pattern", config.alphas.keys)):
        if idle := [key for key in keys if key not in used]:
            found.notes.append(f"{_listed([shown(key) for key in idle])}: in {pattern}, but counts for no module.")
    return modules, tuple(untouched)


@dataclass(frozen=True)
class _Said:
    """What the configuration says of a module, and by which keys."""

    rank: int
    scaling: float
    rank_key: str | None = None
    alpha_key: str | None = None

    def otherwise(self) -> str:
        where = "r" if self.rank_key is None else f"rank_pattern {shown(self.rank_key)}"
        return (
            f"the configuration says {self.rank} ({where}), and PEFT refuses it too; correct the configuration. Of "
            "several keys that match, the first in the file counts"
        )


def _is_target(config: AdapterConfig, name: str, work: Work) -> bool:
    if config.excluded and config.excluded.has(name, work):
        return False
    if config.targets and not config.targets.has(name, work):
        return False
    if config.all_linear and name in _OUTPUT_LAYERS:
        return False
    return config.blocks is None or config.blocks.has(name)


def _shape_problem(config: AdapterConfig, parts: Mapping[str, TensorEntry]) -> str | None:
    """Why the tensors of a module are no update; None where they are one."""
    wanted = {"A", "B", "E"} if config.method == "ADALORA" else {"A", "B"}
    if parts.keys() != wanted:
        return f"has lora_{', lora_'.join(sorted(parts))}, where lora_{', lora_'.join(sorted(wanted))} belong together"
    shapes = {part: entry.shape for part, entry in parts.items()}
    a, b = shapes["A"], shapes["B"]
    fits = len(a) == len(b) == 2 and a[0] == b[1] and a[1] > 0 and b[0] > 0
    if fits and shapes.get("E", (a[0], 1)) == (a[0], 1):
        return None
    if len(a) > 2:
        return (
            f"is a convolution or a stack of experts (lora_A {a}), which is not carried; use the tool that it is from"
        )
    return f"has tensors that do not fit each other: {', '.join(f'lora_{part} {s}' for part, s in shapes.items())}"


def _said(config: AdapterConfig, name: str, rank: int, work: Work) -> _Said:
    """What the configuration says of a module whose tensors have that rank."""
    if config.method == "ADALORA":
        # PEFT divides by the rank that training began with, whatever is left of it, and guards against 0.
        factor = config.alpha if config.alpha > 0 else float(rank)
        return _Said(config.masks.get(name, config.rank), factor / (config.rank + 1e-5), name if config.masks else None)
    by_rank, by_alpha = config.ranks.find(name, work), config.alphas.find(name, work)
    alpha = config.alpha if by_alpha is None else by_alpha[1]
    scaling = alpha / (math.sqrt(rank) if config.rslora else rank) if rank else 0.0
    rank_key, said = (None, config.rank) if by_rank is None else by_rank
    return _Said(said, scaling, rank_key, None if by_alpha is None else by_alpha[0])


def _low_rank(module: Adapted, tensors: Mapping[str, Tensor]) -> LowRank:
    parts = {part: tensors[entry.name] for part, entry in module.entries.items()}
    a = parts["A"] * parts["E"] if "E" in parts else parts["A"]
    return LowRank(a, parts["B"], module.scaling)


def _finite(tensor: Tensor) -> bool:
    import torch

    return bool(torch.isfinite(tensor).all())


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(f'{name:.100}' for name in names[:3])}{rest}"
