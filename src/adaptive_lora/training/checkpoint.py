"""Checkpoints: the state of a run between two updates, in one safetensors file that is replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adaptive_lora.files import write_atomically


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


def write_checkpoint(path: Path, run_id: str, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Writes a run's tensors and progress; the old checkpoint is replaced only once the new one is complete."""
    metadata = {"run_id": run_id, "progress": json.dumps(asdict(progress))}
    write_atomically(path, safetensors.torch.save(dict(tensors), metadata))


def read_checkpoint(path: Path, run_id: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """What `write_checkpoint` wrote; None if the file is missing, unreadable or another run's: the run then starts
    over."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("run_id") != run_id:
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (FileNotFoundError, SafetensorError, OSError):
        return None
    content = json.loads(metadata["progress"])
    curve = tuple(StepRecord(**record) for record in content["curve"])
    return Progress(content["steps_done"], content["train_seconds"], curve), tensors


def save_checkpoint(
    path: Path,
    run_id: str,
    progress: Progress,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """`write_checkpoint` of parameters and a torch optimizer's moments."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    write_checkpoint(path, run_id, progress, tensors)


def load_checkpoint(
    path: Path, run_id: str, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress:
    """Restores a run into its parameters and optimizer; a fresh `Progress` where there is no usable checkpoint."""
    found = read_checkpoint(path, run_id)
    if found is None:
        return Progress()
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
