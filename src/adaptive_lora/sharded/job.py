"""What is trained on a sharded base: every plan at every rate from every seed, each adapter on one of the ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from adaptive_lora.data.encoding import Example, Learn
from adaptive_lora.errors import DataError, PlanError, UsageError
from adaptive_lora.planning.outline import DType
from adaptive_lora.planning.plan import RankPlan
from adaptive_lora.study.prepare import check_with_peft, open_records
from adaptive_lora.study.targets import encoder_of
from adaptive_lora.training.base import FrozenBase
from adaptive_lora.training.checkpoint import DamagedCheckpoint, Progress, StepRecord, read_checkpoint, write_checkpoint
from adaptive_lora.training.options import TrainingOptions
from adaptive_lora.training.slots import Member, Slot


@dataclass(frozen=True, kw_only=True)
class Job:
    """Plans, data and training; the adapters are all combinations of plan, rate and seed."""

    model: str
    """A folder, a hub name, or `demo`."""
    data: str
    """Training records: a file, a hub data set, or `demo:fine-tuning`."""
    out: Path
    """Where adapters, checkpoints and `results.json` go; one folder that all machines see."""
    plans: Mapping[str, RankPlan]
    """By the name that their adapters have."""
    options: TrainingOptions
    """Of every adapter, but for the rate."""
    rates: Sequence[float]
    seeds: Sequence[int] = (0,)
    test: str | None = None
    """Records that every adapter is evaluated on; None: no evaluation."""
    max_length: int = 512
    template: str = "auto"
    learn: Learn = "last"
    revision: str | None = None
    dtype: DType = "float32"
    chunk_tokens: int | None = None
    """Most positions of one pass; None: as many as memory allows."""
    checkpointing: bool = False
    """Recompute activations in the backward part."""
    checkpoint_seconds: float = 300.0

    @property
    def results(self) -> Path:
        """The file that is written last."""
        return self.out / "results.json"


@dataclass
class Adapter:
    """One adapter of a job, and how far it has come."""

    name: str
    """Of its folder."""
    run_id: str
    """A hash of all that determines it."""
    member: Member
    curve: list[StepRecord] = field(default_factory=list)
    seconds: float = 0.0
    """Of its bank's updates, all of them: ranks wait for one another."""
    diverged_at: int | None = None

    def save(self, folder: Path, slot: Slot) -> None:
        """Writes its checkpoint."""
        progress = Progress(len(self.curve), self.seconds, tuple(self.curve))
        write_checkpoint(folder / f"{self.name}.safetensors", self.run_id, progress, slot.tensors())

    def resume(self, folder: Path, slot: Slot, say: Callable[[str], None]) -> None:
        """Goes on from its checkpoint, whichever rank wrote it; from the beginning where none can be used."""
        try:
            found = read_checkpoint(folder / f"{self.name}.safetensors", self.run_id)
        except DamagedCheckpoint as error:
            say(f"warning: the checkpoint of {self.name} is damaged ({error}); starting it over")
            return
        if found is None:
            return
        progress, tensors = found
        try:
            slot.restore(tensors)
        except (KeyError, RuntimeError):
            slot.reset()
            return
        slot.step, self.curve, self.seconds = progress.steps_done, list(progress.curve), progress.train_seconds


def adapters_of(job: Job, base: FrozenBase) -> list[Adapter]:
    """The job's adapters in their order, with their data; the same list on every rank. PlanError, DataError, ModelError
    where a plan does not fit the model, or no record can be used."""
    for name, plan in job.plans.items():
        if missing := [m for m in plan.modules if m not in base.outline.modules]:
            raise PlanError(
                f"The plan {name} is of another model: {base.name} has no module {missing[0].name} of size "
                f"{missing[0].d_in} × {missing[0].d_out}."
            )
        check_with_peft(plan, job.model, job.revision)
    examples = encoded(job, base, job.data)
    data = hashlib.sha256(json.dumps([[e.ids, e.prompt_length] for e in examples]).encode()).hexdigest()
    found = []
    for name, plan in job.plans.items():
        for rate in job.rates:
            options = replace(job.options, learning_rate=rate)
            for seed in job.seeds:
                what = [plan.to_json(), asdict(options), seed, base.revision, str(base.model.dtype), data]
                run_id = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
                member = Member(plan=plan, options=options, seed=seed, examples=examples)
                found.append(Adapter(f"{name}-{rate:g}-seed-{seed}", run_id, member))
    if len({adapter.name for adapter in found}) < len(found):
        raise UsageError("Two adapters would have one name: give every rate and every seed once.")
    return found


def encoded(job: Job, base: FrozenBase, source: str) -> list[Example]:
    """All usable records of a source, as the job encodes them."""
    encoder = encoder_of(base.outline, base.tokenizer, job.max_length, job.template, job.learn)
    records = [record for record in open_records(source).records if not record.is_empty]
    found = [example for example in encoder.encode_all(records) if example.completion_tokens > 0]
    if not found:
        raise DataError(f"No record of {source} has room for a completion within {encoder.max_length} tokens.")
    return found
