"""A checkpoint is what was written, or it is as good as none: whatever byte is changed, whatever its metadata says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from adaptive_lora.streams import numpy_stream
from adaptive_lora.training.checkpoint import DamagedCheckpoint, Progress, StepRecord, read_checkpoint, write_checkpoint

PROGRESS = Progress(1, 2.5, (StepRecord(0, 3.0, 1.0, 1e-3, 7),))
TENSORS = {"parameter/h/A": torch.arange(6.0).view(2, 3), "exp_avg/h/A": torch.ones(2, 3, dtype=torch.bfloat16),
           "step": torch.tensor(4.0), "none": torch.zeros(0)}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "a.safetensors", "a", PROGRESS, TENSORS)
    return tmp_path / "a.safetensors"


def test_it_comes_back_as_it_went_in(path: Path) -> None:
    found = read_checkpoint(path, "a")
    assert found is not None and found[0] == PROGRESS and found[1].keys() == TENSORS.keys()
    assert all(torch.equal(found[1][name], TENSORS[name]) for name in TENSORS)
    assert read_checkpoint(path, "b") is None and read_checkpoint(path.with_name("none"), "a") is None


def test_whatever_bit_is_flipped_it_is_refused(path: Path) -> None:
    whole, random = path.read_bytes(), numpy_stream(0, "flips")
    for at in random.permutation(len(whole))[:150]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path, "a")
    for end in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path, "a")


def mutated(text: str, count: int) -> list[str]:
    """A bit flipped, a piece cut out, a piece doubled: of JSON as of any text."""
    random, found = numpy_stream(1, "metadata"), []
    for _ in range(count):
        at, end = sorted(int(i) for i in random.integers(0, len(text), 2))
        kind = int(random.integers(3))
        other = chr(ord(text[at]) ^ 1)
        found.append([text[:at] + other + text[at + 1 :], text[:at] + text[end + 1 :], text[:end] + text[at:]][kind])
    return found


@pytest.mark.parametrize("digest", [False, True])
def test_damaged_metadata_is_refused_and_never_raises_anything_else(path: Path, digest: bool) -> None:
    """Without a digest, as versions before wrote it, what reads as a progress may be one, and all else is refused."""
    content = {"steps_done": 1, "train_seconds": 2.5, "curve": [vars(PROGRESS.curve[0])]}
    bad: list[Any] = ["", "[]", "{}", "null", "1e999", "[" * 5000, {**content, "steps_done": -1}]
    bad += [{**content, "steps_done": "one"}, {**content, "train_seconds": None}, {**content, "curve": [{"step": 0}]}]
    texts = [b if isinstance(b, str) else json.dumps(b) for b in bad]
    own = {"digest": "0" * 64} if digest else {}
    for number, text in enumerate([*texts, *mutated(json.dumps(content), 60)]):
        path.write_bytes(safetensors.torch.save(TENSORS, {"run_id": "a", "progress": text, **own}))
        if digest or number < len(texts):
            with pytest.raises(DamagedCheckpoint):
                read_checkpoint(path, "a")
            continue
        try:
            found = read_checkpoint(path, "a")
        except DamagedCheckpoint:
            continue
        assert found is not None and found[0].steps_done >= len(found[0].curve)
    path.write_bytes(safetensors.torch.save(TENSORS, {"run_id": "a", "progress": json.dumps(content), **own}))
    if not digest:
        assert (read_checkpoint(path, "a") or [None])[0] == PROGRESS
