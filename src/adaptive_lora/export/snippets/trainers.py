"""What training tools take of a plan, as it was read in a version of each: `trainers.json`."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adaptive_lora.errors import UsageError, nearest_hint

Expresses = Literal["any ranks", "one rank, modules by name", "one rank, modules by part", "one rank, modules by role"]
"""What a tool can say of ranks: one for every module by itself; or one for all modules, and these by their names, by
parts of a block that it knows, or by their names in a block."""


@dataclass(frozen=True)
class Trainer:
    """A tool that trains adapters, and what of a plan its configuration can say."""

    name: str
    """As `plan --for` knows it."""
    title: str
    version: str
    """The version in which all of this was read."""
    package: str
    """Its name in the package index."""
    language: Literal["python", "yaml"]
    """Of the fragment."""
    expresses: Expresses
    whole_alphas: bool
    """Whether alphas must be whole numbers."""
    continues: str | None
    """The key that names an adapter to train on from, where there is one: ranks are then that adapter's."""
    paste: str
    """Where the fragment goes."""
    evidence: str
    """Where in the tool's source it says so."""
    seen: Literal["read", "built", "trained"]
    """How it is known: read in the source, a model built by the tool itself and read back, or also trained."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For tools that name parts of a block: part -> roles of its modules."""

    @property
    def installed(self) -> str | None:
        """The version that is installed here; None where none is."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def _read() -> dict[str, Trainer]:
    entries = json.loads(Path(__file__).with_name("trainers.json").read_text(encoding="utf-8"))
    return {
        name: Trainer(name, **{**entry, "parts": {k: tuple(v) for k, v in entry.get("parts", {}).items()}})
        for name, entry in entries.items()
    }


TRAINERS: Mapping[str, Trainer] = _read()
"""By name, in the order of the documentation."""


def find_trainer(name: str) -> Trainer:
    """The tool of this name; UsageError with those that are known.

    >>> find_trainer("axolotl").expresses
    'any ranks'
    """
    if name not in TRAINERS:
        raise UsageError(
            f"`--for` names {name!r}, which is no known training tool{nearest_hint(name, TRAINERS)}. Write one of "
            f"{', '.join(TRAINERS)}."
        )
    return TRAINERS[name]
