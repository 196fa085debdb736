"""safetensors of foreign files: the header is checked whole before a byte of a tensor is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_lora.errors import AdapterError
from adaptive_lora.export.folder_files import opened, parsed_object, shown

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEADER = 16 * 1024**2
"""Bytes; about 150 a tensor."""
MOST_TENSORS = 200_000
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element, by type; adapters have no other."""
_LARGEST_SIDE = 2**31


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: where it lies, and what it is."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Position in the file of its first byte."""
    end: int


def read_header(path: Path) -> list[TensorEntry]:
    """All tensors of a file, checked against its size; AdapterError with all that is wrong with the header."""
    with opened(path) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise AdapterError(str(path), ["is cut short: its header would end after the file does; get it again."])
        if length > LARGEST_HEADER:
            raise AdapterError(str(path), [f"has a header of {length:,} bytes; {LARGEST_HEADER:,} are the limit."])
        try:
            header = parsed_object(file.read(length))
        except ValueError as error:
            raise AdapterError(str(path), [f"is no safetensors file: its header {error}."]) from None
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise AdapterError(str(path), [f"has {len(header):,} tensors; {MOST_TENSORS:,} are the limit."])
    entries, complaints = [], []
    for name, value in header.items():
        found = _entry(path, name, value, 8 + length)
        if isinstance(found, str):
            complaints.append(f"the tensor {shown(name)} {found}.")
        else:
            entries.append(found)
    complaints += [] if complaints else _gaps(entries, 8 + length, size)
    if complaints:
        raise AdapterError(str(path), summed_up(complaints))
    return entries


def summed_up(complaints: list[str], most: int = 12) -> list[str]:
    """The first of many complaints, and how many more there are."""
    rest = len(complaints) - most
    return complaints if rest <= 0 else [*complaints[:most], f"and {rest:,} more of this kind."]


def _entry(path: Path, name: str, value: Any, start: int) -> TensorEntry | str:
    """A tensor by its words in the header, or what is wrong with them."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        return "lacks its type, shape or place"
    dtype, shape, place = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        return f"is of type {shown(dtype)}; adapters are of {', '.join(SIZES)}"
    if not _whole(shape) or len(shape) > 8 or any(side > _LARGEST_SIDE for side in shape):
        return f"has the shape {shown(shape)}, which is none"
    if not _whole(place) or len(place) != 2:
        return f"lies at {shown(place)}, which is no place"
    count = 1
    for side in shape:
        count *= side
    if count * SIZES[dtype] != place[1] - place[0]:
        return f"has {place[1] - place[0]:,} bytes, but {tuple(shape)} of {dtype} are {count * SIZES[dtype]:,}"
    return TensorEntry(path, name, dtype, tuple(shape), start + place[0], start + place[1])


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _gaps(entries: list[TensorEntry], start: int, size: int) -> list[str]:
    """Complaints unless tensors lie one after another up to the end of the file."""
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != start:
            return [f"the tensor {shown(entry.name)} does not begin where the one before it ends; the file is damaged."]
        start = entry.end
    if start != size:
        return [f"has {size:,} bytes where its header says {start:,}; it was copied incompletely, get it again."]
    return []


def load_tensors(entries: list[TensorEntry]) -> dict[str, Tensor]:
    """Tensors by name in float32, on the CPU: what PEFT makes of adapters in any type."""
    import torch

    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(entry.file for entry in entries):
        with opened(path) as (file, _):
            for entry in (entry for entry in entries if entry.file == path):
                file.seek(entry.begin)
                data = bytearray(file.read(entry.end - entry.begin))
                if len(data) < entry.end - entry.begin:
                    raise AdapterError(str(path), ["became shorter while it was read; try again."])
                flat = torch.frombuffer(data, dtype=types[entry.dtype]) if data else torch.empty(0)
                found[entry.name] = flat.reshape(entry.shape).to(torch.float32)
    return found
