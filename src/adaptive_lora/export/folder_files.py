"""Files of a foreign folder: which there are, opened without following them elsewhere, and JSON of bounded size."""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from adaptive_lora.errors import AdapterError

CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LARGEST_CONFIG = 8 * 1024**2
"""Bytes; a configuration that names all 18,432 expert matrices of a large model three times has half of that."""
_SHARD = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
_TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({name: t.contiguous().clone() for name, t in torch.load('adapter_model.bin', map_location='cpu', "
    "weights_only=True).items()}, 'adapter_model.safetensors')\""
)


def adapter_folder(folder: Path) -> tuple[Path, str | None]:
    """Where the adapter lies: `folder`, or the one folder in it that holds one; with a sentence where it is inside.

    Raises AdapterError where there is none, several, or only what is no adapter in PEFT's form.
    """
    if not folder.exists():
        raise AdapterError(str(folder), ["there is no such folder; give the folder that holds adapter_config.json."])
    if not folder.is_dir():
        raise AdapterError(str(folder), ["is a file; give the folder that holds adapter_config.json."])
    if (folder / CONFIG_FILE).exists():
        return folder, None
    inside = sorted(place.name for place in folder.iterdir() if (place / CONFIG_FILE).is_file())
    if len(inside) == 1:
        return folder / inside[0], f"The adapter was found in the folder {shown(inside[0])}."
    if inside:
        raise AdapterError(
            str(folder), [f"holds several adapters: {', '.join(map(shown, inside[:8]))}; name one of them."]
        )
    raise AdapterError(str(folder), ["has no adapter_config.json, so it is no adapter that PEFT saved."])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of an adapter: one, or all shards. AdapterError where they are missing or a pickle."""
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    shards = sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    numbers = [found.groups() for path in shards if (found := _SHARD.fullmatch(path.name))]
    if shards and [int(number) for number, _ in numbers] == list(range(1, int(numbers[0][1]) + 1)):
        return shards
    if shards:
        raise AdapterError(str(folder), [f"holds {len(shards)} of {int(numbers[0][1])} shards; get the others too."])
    if (folder / PICKLE_FILE).exists():
        raise AdapterError(
            str(folder),
            [
                f"{PICKLE_FILE} is a pickle, which can run code when it is loaded, and is not read. Convert it, in "
                f"that folder and with torch 2.6 or newer: {_TO_SAFETENSORS}"
            ],
        )
    raise AdapterError(str(folder), [f"has no {WEIGHTS_FILE}; the adapter was saved incompletely, or in another form."])


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file of a folder for reading, and its size; AdapterError for a device, a pipe, or a link out of the folder.

    Links of the Hugging Face cache, from `snapshots/COMMIT` into the same repository's `blobs`, are followed.
    """
    try:
        folder, real = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise AdapterError(str(path), ["is a link that leads nowhere."]) from None
    allowed = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not any(real.is_relative_to(place) for place in allowed):
        raise AdapterError(str(path), ["is a link out of its folder, which is not followed; copy the file itself."])
    try:
        # Without O_NONBLOCK opening a pipe would wait for a writer.
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise AdapterError(str(path), [f"cannot be read: {error.strerror}."]) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise AdapterError(str(path), ["is no regular file."])
    with os.fdopen(handle, "rb") as file:
        yield file, status.st_size


def read_object(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The JSON object in a file; AdapterError where it is too large, or is none."""
    with opened(path) as (file, size):
        if size > largest:
            raise AdapterError(str(path), [f"has {size:,} bytes; no configuration needs more than {largest:,}."])
        try:
            return parsed_object(file.read(largest))
        except ValueError as error:
            raise AdapterError(str(path), [f"{error}; the file may be cut short."]) from None


def parsed_object(content: bytes) -> dict[str, Any]:
    """JSON as RFC 8259 has it, keys said once; ValueError with a clause where it is something else."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except _Known as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise ValueError(f"is not valid JSON{f' in line {line}' if line else ''}") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


def shown(value: Any, longest: int = 120) -> str:
    """A value of a foreign file for a message: short, on one line, whatever it is."""
    short = reprlib.Repr()
    short.maxstring, short.maxother = longest, longest
    return short.repr(value)[:longest]


class _Known(ValueError):
    """What is wrong, in words of ours."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Known(f"says {shown(twice)} twice")
    return found


def _no_constant(name: str) -> Any:
    raise _Known(f"has the number {name}, which is none in JSON")
