"""A model's name -> the folder or hub name it is read from, and what must be said of its weights."""

from __future__ import annotations

import re
from pathlib import Path

from adaptive_lora import demo
from adaptive_lora.errors import ModelError
from adaptive_lora.files import expanded, parse_json
from adaptive_lora.models.cache import provenance_of
from adaptive_lora.models.gguf import gguf_folder
from adaptive_lora.models.known import KNOWN

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def is_named(name: str) -> bool:
    """Whether a name stands for a model by itself, wherever it is written: the embedded one, or one to be fetched."""
    return name == demo.MODEL or name in KNOWN


def locate_model(name: str, revision: str | None = None) -> str | Path:
    """Where the model `name` is read from: a folder, or a hub name as it stands.

    `name` is `demo`, a model that `fetch` brings, a .gguf file (converted once into the cache), a folder, or a hub
    name; a folder that is called as one of the first two is `./demo`. Raises ModelError with the command to run where
    a known model was not fetched yet, and where a `revision` is asked of what has none.
    """
    found = _locate(name)
    if revision is not None and isinstance(found, Path):
        raise ModelError(
            f"The model {name} has no revisions, got {revision!r}: commits, tags and branches are those of hub names. "
            "Leave `revision` out."
        )
    return found


def _locate(name: str) -> str | Path:
    if name == demo.MODEL:
        return demo.model_folder()
    path = expanded(name)
    if name in KNOWN:
        model = KNOWN[name]
        if not model.is_fetched:
            raise ModelError(
                f"The model `{name}` ({model.title}, {model.parameters:,} parameters, {model.licence}) was not fetched "
                f"yet. Run `adaptive-lora fetch {name}` once: it downloads {model.megabytes} MB."
            )
        return model.folder
    if path.suffix.lower() == ".gguf":
        return gguf_folder(path)
    return path if path.exists() else name


def model_note(name: str, quantised: str | None = None, products: str | None = None) -> str | None:
    """What must be said of the model's weights wherever it is named, such as `weights dequantised from Q4_1`.

    `quantised`: how bitsandbytes keeps them, if it does; `products`: what they are multiplied in, if not as they are.
    """
    found = provenance_of(Path(locate_model(name)))
    said = [KNOWN[name].title] if found and name in KNOWN else []
    said += [found.note] if found else []
    said += [f"linear layers in {quantised.upper()} by bitsandbytes"] if quantised else []
    said += [f"products of its frozen linear layers in {products}"] if products else []
    return ", ".join(said) or None


def portable_name(name: str) -> str:
    """What a file that goes elsewhere calls the model `name`: its hub name where one is known, else as it was named.

    A folder may say in its configuration which hub name it was saved from, and a converted one of which file it was.

    >>> portable_name("smollm2"), portable_name("microsoft/DialoGPT-medium")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'microsoft/DialoGPT-medium')
    """
    if name in KNOWN:
        return KNOWN[name].hub or name
    folder = expanded(name)
    config = folder / "config.json"
    if name == demo.MODEL or not config.is_file():
        return name
    if (origin := provenance_of(folder)) is not None:
        return origin.source
    try:
        said = parse_json(config.read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return name
    is_hub_name = isinstance(said, str) and _HUB_NAME.fullmatch(said) and not Path(said).exists()
    return str(said) if is_hub_name else name
