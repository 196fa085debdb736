"""Whether an adapter from elsewhere fits a base model: names and sizes of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptive_lora.errors import AdapterError, nearest_hint
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.export.reading import AdapterOutline
from adaptive_lora.export.tensor_file import summed_up
from adaptive_lora.planning.modules import ModuleShape


def fitted_weights(weights: AdapterWeights, modules: Sequence[ModuleShape], where: str) -> AdapterWeights:
    """`weights` under the names of the base's `modules`, sizes checked; AdapterError with all that does not fit.

    `where` is the folder, for errors.
    """
    names, note = base_names({n: (u.d_in, u.d_out) for n, u in weights.modules.items()}, modules, where)
    named = {names[name]: update for name, update in weights.modules.items()}
    return replace(weights, modules=dict(sorted(named.items())), notes=(*weights.notes, *note))


def fitted_outline(outline: AdapterOutline, modules: Sequence[ModuleShape], where: str) -> AdapterOutline:
    """As `fitted_weights`, for an adapter of which no tensors were loaded."""
    names, note = base_names({n: (m.d_in, m.d_out) for n, m in outline.modules.items()}, modules, where)
    named = {names[name]: module for name, module in outline.modules.items()}
    return replace(outline, modules=dict(sorted(named.items())), notes=(*outline.notes, *note))


def base_names(
    sizes: Mapping[str, tuple[int, int]], modules: Sequence[ModuleShape], where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The base's name of every module of an adapter, whose (d_in, d_out) is given, and what to say of it.

    An adapter that was made on another class of the same model can lack the start of every name (`layers.0...` for
    `model.layers.0...`), or have one too many; one start for all modules is put right.
    """
    known = {module.name: module for module in modules}
    names, note = _renamed(sizes, known)
    complaints = [
        f"its module {name} is none of the base model's{nearest_hint(name, known)}."
        for name in sizes
        if names[name] not in known
    ]
    for name, (d_in, d_out) in sizes.items():
        module = known.get(names[name])
        if module and (module.d_in, module.d_out) != (d_in, d_out):
            complaints.append(
                f"its module {name} has the size {d_in} × {d_out}, in the base model {module.d_in} × {module.d_out}."
            )
    if complaints:
        raise AdapterError(where, [*summed_up(complaints, 6), "Give the base model that it was trained on."])
    return names, note


def _renamed(sizes: Mapping[str, object], known: Mapping[str, object]) -> tuple[dict[str, str], tuple[str, ...]]:
    same = {name: name for name in sizes}
    if not sizes or known.keys() >= sizes.keys():
        return same, ()
    first = next(iter(sizes))
    missing = {name.removesuffix(first) for name in known if name.endswith(f".{first}")}
    extra = {first.removesuffix(name) for name in known if first.endswith(f".{name}")}
    ways = [
        *(({name: start + name for name in sizes}, f"without {start!r}") for start in missing),
        *(({name: name.removeprefix(start) for name in sizes}, f"with {start!r}") for start in extra),
    ]
    fitting = [(names, how) for names, how in ways if known.keys() >= set(names.values())]
    if len(fitting) != 1:
        return same, ()
    names, how = fitting[0]
    return names, (f"Its modules are named {how} before the base model's names; PEFT itself would ignore them.",)
