"""Whole weights with the update added: W + scaling · B A, saved as a model folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import ModelError
from adaptive_lora.export.low_rank import LowRank
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.models.older_keys import add_older_keys

if TYPE_CHECKING:
    from adaptive_lora.training.base import FrozenBase


def write_merged(modules: Mapping[str, LowRank], base: FrozenBase, folder: Path) -> None:
    """Writes weights, configuration and tokenizer; the base in memory is afterwards as it was.

    A GPT-2 gets the names of OpenAI's own file, without `transformer.`: every reader knows them, mlx-lm no others.
    Raises ModelError where its weights are quantised: the update would be rounded away.
    """
    with merged(base.model, modules), quiet_libraries():
        base.model.save_pretrained(str(folder), state_dict=_named_as_published(base.model))
    with quiet_libraries():
        base.tokenizer.save_pretrained(str(folder))
    add_older_keys(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # written for its owner alone


@contextlib.contextmanager
def merged(model: Any, modules: Mapping[str, LowRank]) -> Iterator[None]:
    """The model with the updates added to its weights; afterwards with the weights that it had, to the bit."""
    check_plain(model, modules)
    kept = {}
    try:
        for name, update in modules.items():
            weight = model.get_submodule(name).weight
            delta = update.delta().to(weight.device)
            kept[name] = weight.data
            weight.data = (weight.data.float() + (delta.t() if _transposed(model, name) else delta)).to(weight.dtype)
        yield
    finally:
        for name, before in kept.items():
            model.get_submodule(name).weight.data = before


def check_plain(model: Any, modules: Mapping[str, LowRank]) -> None:
    """ModelError where a weight to add to is not one of plain numbers."""
    odd = [name for name in modules if not model.get_submodule(name).weight.is_floating_point()]
    if odd or getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"The weights of {odd[0] if odd else 'the base model'} are quantised, and a small update that is added to "
            "them is rounded away. Name the model that is not quantised with --model, or export an adapter instead."
        )


def _named_as_published(model: Any) -> dict[str, Any] | None:
    """The weights by other names than the model's own; None where these will do."""
    if model.config.model_type != "gpt2":
        return None
    return {name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}


def _transposed(model: Any, name: str) -> bool:
    return type(model.get_submodule(name)).__name__ == "Conv1D"
