"""Checkpoints: the state of a run between two updates, in one safetensors file that is replaced atomically.

The file holds a digest of all that is in it: one that is not what was written is as good as none, and the run goes on
from the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adaptive_lora.files import write_atomically

_WITHOUT_DIGEST = {"run_id", "progress"}
"""Metadata of checkpoints of before; a damaged name of `digest` is not among them."""


@dataclass(frozen=True)
class StepRecord:
    """One update."""

    step: int
    """From 0."""
    loss: float
    """Mean over the batch's completion tokens before the update, nats."""
    gradient_norm: float
    """2-norm of the adapter's gradient before clipping."""
    learning_rate: float
    tokens: int
    """Completion tokens in the batch."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come. All randomness is a function of the step, so no generator is saved."""

    steps_done: int = 0
    train_seconds: float = 0.0
    curve: tuple[StepRecord, ...] = field(default=())


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there and is not what was written; the message says what is wrong, without the path."""


def write_checkpoint(path: Path, run_id: str, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Writes a run's tensors and progress; the old checkpoint is replaced only once the new one is complete."""
    told = json.dumps(asdict(progress))
    metadata = {"run_id": run_id, "progress": told, "digest": _digest(run_id, told, tensors)}
    write_atomically(path, safetensors.torch.save(dict(tensors), metadata))


def read_checkpoint(path: Path, run_id: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """What `write_checkpoint` wrote; None if the file is missing or another run's: the run then starts over.

    DamagedCheckpoint where it is this run's, or may be, and is not as it was written.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:  # also a name that is no UTF-8
        raise DamagedCheckpoint(f"it cannot be read: {error}") from None
    if metadata.keys() != _WITHOUT_DIGEST:
        own = [metadata.get(name, "") for name in ("run_id", "progress")]
        if metadata.get("digest") != _digest(own[0], own[1], tensors):
            raise DamagedCheckpoint("its digest is another")
    return (_progress(metadata["progress"]), tensors) if metadata["run_id"] == run_id else None


def _digest(run_id: str, progress: str, tensors: Mapping[str, Tensor]) -> str:
    """Of everything that a checkpoint holds, whatever the order of the tensors."""
    found = hashlib.sha256(json.dumps([run_id, progress]).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _progress(text: str) -> Progress:
    try:
        content = json.loads(text)
        curve = tuple(StepRecord(**record) for record in content["curve"])
        found = Progress(content["steps_done"], content["train_seconds"], curve)
        if found.steps_done < len(curve) or not found.train_seconds >= 0:
            raise ValueError("it has more losses than updates")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"its progress is no progress: {error!r}") from None
    return found


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.name}.before")


def remove_checkpoints(path: Path) -> None:
    """Deletes a run's checkpoint and the one before it."""
    for place in (path, previous(path)):
        place.unlink(missing_ok=True)


def save_checkpoint(
    path: Path,
    run_id: str,
    progress: Progress,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """`write_checkpoint` of parameters and a torch optimizer's moments; the checkpoint before is kept beside it."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, previous(path))
    write_checkpoint(path, run_id, progress, tensors)


def load_checkpoint(
    path: Path,
    run_id: str,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None] = lambda text: None,
) -> Progress:
    """Restores a run into its parameters and optimizer; a fresh `Progress` where there is no usable checkpoint.

    `say` is told of a damaged one, in whose place the one before is taken.
    """
    for place, then in ((path, "going on from the one before, if there is one"), (previous(path), "starting over")):
        try:
            found = read_checkpoint(place, run_id)
        except DamagedCheckpoint as error:
            say(f"warning: checkpoint {place.name} is damaged ({error}); {then}")
            continue
        if found is not None:
            return _restore(found, parameters, optimizer)
    return Progress()


def _restore(
    found: tuple[Progress, dict[str, Tensor]], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress:
    progress, tensors = found
    if any(
        tensors.get(f"parameter/{name}", torch.empty(0)).shape != parameter.shape
        for name, parameter in parameters.items()
    ):
        return Progress()  # the plan has changed since (its scores were measured again): the run starts over
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter/{name}"])
        state = {
            key.split("/")[1]: value.to(parameter.device if value.dim() else "cpu")
            for key, value in tensors.items()
            if key.startswith("optimizer/") and key.split("/", 2)[2] == name
        }
        if state:
            optimizer.state[parameter] = state
    return progress
