"""What one arm is trained with: the study's settings, and the arm's own where it has some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptive_lora.study.schema import ArmPart, ScalingPart
from adaptive_lora.study.schema_training import TrainPart
from adaptive_lora.study.yaml import Location

if TYPE_CHECKING:
    from adaptive_lora.study.schema import StudySpec


def scaling_of(spec: StudySpec, arm: ArmPart) -> ScalingPart:
    """The study's scaling with the arm's own settings; an arm that names a rule alone keeps the study's reference."""
    own = arm.scaling.model_dump(exclude_unset=True) if arm.scaling else {}
    return spec.scaling.model_copy(update=own)


def training_of(spec: StudySpec, arm: ArmPart) -> TrainPart:
    """The study's training with the arm's own settings, all but `longer`."""
    own = own_training(arm)
    return spec.train.model_copy(
        update={
            **({"warmup": own["warmup"]} if "warmup" in own else {}),
            **({"max_grad_norm": None} if own.get("clip") is False else {}),
            "multipliers": spec.train.multipliers.model_copy(update=own.get("multipliers", {})),
        }
    )


def steps_of(spec: StudySpec, arm: ArmPart) -> int:
    """Updates of a run of this arm: the study's, times what the arm's `longer` says."""
    train = spec.train
    per_epoch = -(-spec.data.train // train.batch_size)
    steps = train.steps if train.steps is not None else (train.epochs or 1) * per_epoch
    return max(1, round(steps * (arm.train.longer if arm.train else 1.0)))


def warmup_complaints(spec: StudySpec) -> dict[Location, str]:
    """Warm-ups, counted in steps, that the updates of an arm do not reach the end of; the first arm for each place."""
    found: dict[Location, str] = {}
    for index, arm in enumerate(spec.arms):
        warmup, steps = training_of(spec, arm).warmup, steps_of(spec, arm)
        if warmup >= 1 and warmup >= steps:
            at: Location = ("arms", index, "train", "warmup") if "warmup" in own_training(arm) else ("train", "warmup")
            message = f"`warmup` of {warmup:g} steps leaves none of the {steps} steps that {arm.name!r} is trained for"
            found.setdefault(at, f"{message}; give fewer, or a share of all such as 0.03")
    return found


def own_training(arm: ArmPart) -> dict[str, Any]:
    """What the arm itself says of its training."""
    return arm.train.model_dump(mode="json", exclude_unset=True, exclude_none=True) if arm.train else {}
