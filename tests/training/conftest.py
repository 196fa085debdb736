"""Shared by the tests of the bank: exact models, seven different members, the reference's trajectories, comparisons."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_lora.data.encoding import Encoder, Example
from adaptive_lora.data.sources import from_dicts
from adaptive_lora.demo.tasks import generate
from adaptive_lora.training.adapter import attached, trainable
from adaptive_lora.training.bank import Bank, Member
from adaptive_lora.training.base import FrozenBase, ModelOutline, find_modules, load_base
from adaptive_lora.training.checkpoint import StepRecord, read_checkpoint
from adaptive_lora.training.options import TrainingOptions, rate_factors
from adaptive_lora.training.quantised import dense_weight, quantised_layers
from adaptive_lora.training.reference import CheckpointConfig, Diverged, train
from tests.conftest import mixed_plan

CLOSE = 1e-9
"""Bank and reference, relative to a tensor's largest value, in float64."""
SAME = 1e-12
"""Tolerance between banks with different other members."""
MOMENTS = {"parameter": "parameter/", "exp_avg": "optimizer/exp_avg/", "exp_avg_sq": "optimizer/exp_avg_sq/"}


class ExactRMSNorm(nn.Module):
    """Llama's norm without its detour through float32."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def make_exact(base: FrozenBase) -> FrozenBase:
    """The base in float64 throughout."""
    base.model.double()
    for name, module in list(base.model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            base.model.set_submodule(name, ExactRMSNorm(module.weight, module.variance_epsilon).eval())
    return base


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products wait longer for one another than they take, and on a busy machine a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", params=["gpt2", "llama"])
def exact(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> FrozenBase:
    """Each tiny model in float64, shared by all tests, which leave it unchanged."""
    return make_exact(load_base(request.param, model_folders[request.param]))


@pytest.fixture(scope="package")
def exact_gpt2(model_folders: dict[str, Path]) -> FrozenBase:
    """The tiny GPT-2 in float64, one for all tests."""
    return make_exact(load_base("gpt2", model_folders["gpt2"]))


@pytest.fixture(scope="package")
def reference_runs(exact: FrozenBase) -> list[Trajectory]:
    """What the reference makes of the seven members."""
    return [by_reference(exact, member) for member in seven_members(exact)]


def tiny_config(**own: Any) -> dict[str, Any]:
    """What configurations of most architectures have in common, made tiny."""
    sizes = {"vocab_size": 768, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return {**sizes, **heads, **tokens, "initializer_range": 0.2, **own}


def in_memory(model: Any, like: FrozenBase) -> FrozenBase:
    """A model that is in no folder, as a base with another's tokenizer."""
    model = model.eval().requires_grad_(False)
    total = sum(p.numel() for p in model.parameters())
    outline = ModelOutline("in memory", find_modules(model), total, context=64)
    return replace(like, name="in memory", model=model, outline=outline)


def plain_twin(base: FrozenBase, folder: Path) -> FrozenBase:
    """A base that is not quantised, with the weights that the codes stand for, in float32."""
    twin = load_base(base.name, folder)
    for name, layer in quantised_layers(base.model):
        module = twin.model.get_submodule(name)
        weight = dense_weight(layer)
        module.weight.data.copy_(weight.t() if type(module).__name__ == "Conv1D" else weight)
    return twin


def demo_examples(base: FrozenBase, count: int = 40) -> list[Example]:
    """Encoded demo tasks of different lengths."""
    records = from_dicts(generate("fine-tuning", count), "demo").records
    return list(Encoder(base.tokenizer, 64).encode_all(records))


DIFFERENT: tuple[tuple[int, str, int, dict[str, Any]], ...] = (
    (0, "constant", 0, {"max_grad_norm": 0.05}),
    (1, "alpha-over-r", 1, {"schedule": "cosine", "warmup": 3, "weight_decay": 0.1, "dropout": 0.2, "batch_size": 3}),
    (2, "rslora", 2, {"b_multiplier": 4.0, "learning_rate": 5e-3, "batch_size": 2, "max_grad_norm": 0.1}),
    (3, "constant", 3, {"max_grad_norm": None, "weight_decay": 0.3, "schedule": "constant", "batch_size": 5}),
    (4, "rslora", 0, {"rank_exponent": 0.5, "dropout": 0.1, "warmup": 0.2}),
    (0, "alpha-over-r", 5, {"module_multipliers": {"attention": 0.5}, "epsilon": 1e-6, "betas": (0.8, 0.99)}),
    (1, "constant", 9, {"weight_decay": 0.1, "max_grad_norm": 0.3}),
)
"""Shift of the ranks, scaling rule, seed, and what is unusual about the training."""


def seven_members(base: FrozenBase, steps: int = 8, dropout: bool = True) -> list[Member]:
    """Seven members that share the base only; two of them end sooner, one has examples of its own,
    one leaves out the first module."""
    examples, members = demo_examples(base), []
    for i, (shift, rule, seed, unusual) in enumerate(DIFFERENT):
        own: dict[str, Any] = {"learning_rate": 2e-2, "steps": {3: steps * 3 // 5, 5: max(steps // 4, 1)}.get(i, steps)}
        options = TrainingOptions(**{**own, **unusual, **({} if dropout else {"dropout": 0.0})})
        modules = base.outline.modules[1:] if i == 2 else base.outline.modules
        plan = mixed_plan(modules, rule, shift)
        members.append(Member(plan=plan, options=options, seed=seed, examples=examples[:17] if i == 6 else examples))
    return members


def like(member: Member, **changes: Any) -> Member:
    """A member with other options."""
    return replace(member, options=replace(member.options, **changes))


@dataclass
class Trajectory:
    """One member's training: its records, and parameters and moments after some steps."""

    records: list[StepRecord]
    states: dict[int, dict[str, Tensor]]
    """By updates done, as `Slot.tensors` names them."""

    @property
    def last(self) -> dict[str, Tensor]:
        return self.states[max(self.states)]

    def until(self, step: int) -> Trajectory:
        """Its beginning."""
        return Trajectory(self.records[:step], {at: state for at, state in self.states.items() if at <= step})


def by_reference(base: FrozenBase, member: Member, after: Iterable[int] = (1, 4, 8)) -> Trajectory:
    """The member trained by the reference engine: PEFT and torch's AdamW."""
    wanted, states, options = set(after) | {member.options.steps}, {}, member.options
    with tempfile.TemporaryDirectory() as folder, attached(base, member.plan, member.seed, options.dropout) as model:
        path = Path(folder) / "state"

        def note(steps_done: int) -> None:
            if steps_done in wanted and (found := read_checkpoint(path, "id")):
                states[steps_done] = _renamed(found[1], member)

        seconds = 0.0 if wanted - {options.steps} else 1e9  # the last step is always saved
        saving, factors = CheckpointConfig(path, "id", seconds, note), rate_factors(member.plan, options)
        progress = train(model.to(base.model.dtype), member.examples, options, member.seed, saving, factors=factors)
    return Trajectory(list(progress.curve), states)


@contextlib.contextmanager
def with_adapter(base: FrozenBase, member: Member, state: Mapping[str, Tensor]) -> Iterator[Any]:
    """The member's adapter in PEFT, with the parameters of a state."""
    with attached(base, member.plan, member.seed, member.options.dropout) as model:
        model.to(base.model.dtype)
        for name, parameter in trainable(model).items():
            parameter.data.copy_(state[own_name(name)])
        yield model


def own_name(name: str) -> str:
    """PEFT's name of a parameter as `Slot.tensors` has it."""
    return "parameter/" + name.removeprefix("base_model.model.").replace(".lora_", "/").removesuffix(".default.weight")


def _renamed(kept: Mapping[str, Tensor], member: Member) -> dict[str, Tensor]:
    return {
        f"{ours}/{name}/{letter}": kept[f"{theirs}base_model.model.{name}.lora_{letter}.default.weight"]
        for ours, theirs in MOMENTS.items()
        for name in member.plan.ranks
        for letter in "AB"
    }


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def by_bank(
    base: FrozenBase, members: Sequence[Member], after: Iterable[int] = (1, 4, 8), steps: int = 1000, **how: Any
) -> list[Trajectory]:
    """The members trained together."""
    wanted, found = set(after), [Trajectory([], {}) for _ in members]
    with Bank(base, members, **how) as bank:
        for _ in range(steps):
            if not bank.running:
                break
            for trajectory, slot, result in zip(found, bank.slots, bank.step(), strict=True):
                if isinstance(result, Diverged):
                    raise result
                if result is None:
                    continue
                trajectory.records.append(result)
                if slot.step in wanted or slot.step == slot.member.options.steps:
                    trajectory.states[slot.step] = snapshot(slot.tensors())
    return found


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = CLOSE) -> None:
    """The same tensors, each within `tolerance` of its largest value."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        error, size = (found[name] - tensor).abs().max().item(), tensor.abs().max().item()
        assert error <= tolerance * size, f"{name}: off by {error:.3g}, largest value {size:.3g}"


def assert_same_records(found: Sequence[StepRecord], wanted: Sequence[StepRecord], tolerance: float = CLOSE) -> None:
    """The same records of the same steps."""
    assert [(r.step, r.tokens) for r in found] == [(r.step, r.tokens) for r in wanted]
    for field in ("loss", "gradient_norm", "learning_rate"):
        values = [getattr(r, field) for r in wanted]
        assert [getattr(r, field) for r in found] == pytest.approx(values, rel=tolerance, abs=0), field


def assert_parity(found: Sequence[Trajectory], wanted: Sequence[Trajectory], tolerance: float = CLOSE) -> None:
    """Every member's losses, norms, rates, parameters and moments are the reference's at all steps compared."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same_records(ours.records, theirs.records, tolerance)
        assert ours.states.keys() == theirs.states.keys()
        for step, state in theirs.states.items():
            assert_close(ours.states[step], state, tolerance)
