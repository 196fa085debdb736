"""The base model of an adapter: opened, and what an export says of it."""

from __future__ import annotations

from adaptive_lora.errors import ModelError
from adaptive_lora.export.low_rank import AdapterWeights
from adaptive_lora.export.peft_folder import BaseFacts
from adaptive_lora.models.known import KNOWN
from adaptive_lora.models.locate import model_note, portable_name
from adaptive_lora.planning.outline import DType
from adaptive_lora.study.prepare import open_base
from adaptive_lora.training.base import FrozenBase


def open_base_of(adapter: AdapterWeights, named: str | None, revision: str | None, dtype: DType) -> FrozenBase:
    """The model that was `named`, else the one that the adapter names; ModelError where there is neither."""
    name = named or adapter.base_name
    if not name:
        raise ModelError("The adapter does not say which model it is of: name its base model with --model.")
    try:
        return open_base(name, revision, dtype)
    except ModelError as error:
        if named:
            raise
        raise ModelError(f"The adapter's base model is not here; name it with --model. In full: {error}") from None


def facts_of(base: FrozenBase, revision: str | None = None) -> BaseFacts:
    """What an export says of a base model; `revision` is the hub's commit, tag or branch, where one was asked for."""
    known = KNOWN.get(base.name)
    return BaseFacts(
        named=portable_name(base.name),
        location=base.location,
        revision=revision,
        family=str(getattr(base.model.config, "model_type", "unknown")),
        modules=base.outline.modules,
        note=model_note(base.name),
        licence=known.licence if known else None,
    )
