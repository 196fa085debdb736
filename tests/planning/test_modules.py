"""Names and shapes of what can be adapted."""

from __future__ import annotations

import pytest

from adaptive_lora.errors import ModelError
from adaptive_lora.planning.modules import ModuleShape, depth_of, kind_of, role_of, select_targets

NAMES = [
    ("transformer.h.3.attn.c_attn", "attention", 3, "attn.c_attn"),
    ("transformer.h.3.attn.c_proj", "attention", 3, "attn.c_proj"),
    ("transformer.h.11.mlp.c_proj", "mlp", 11, "mlp.c_proj"),
    ("model.layers.0.self_attn.q_proj", "attention", 0, "self_attn.q_proj"),
    ("model.layers.31.mlp.gate_proj", "mlp", 31, "mlp.gate_proj"),
    ("gpt_neox.layers.2.attention.query_key_value", "attention", 2, "attention.query_key_value"),
    ("model.decoder.layers.1.fc1", "mlp", 1, "fc1"),
    ("model.layers.7.block_sparse_moe.experts.3.w1", "mlp", 7, "block_sparse_moe.experts.3.w1"),
    ("score", "other", 0, "score"),
]


@pytest.mark.parametrize(("name", "kind", "depth", "role"), NAMES)
def test_kind_depth_and_role_come_from_the_path(name: str, kind: str, depth: int, role: str) -> None:
    assert (kind_of(name), depth_of(name), role_of(name)) == (kind, depth, role)


def modules() -> list[ModuleShape]:
    return [
        ModuleShape(name, kind_of(name), depth_of(name), 4, 4)
        for block in (0, 2, 10)
        for name in (f"h.{block}.attn.c_proj", f"h.{block}.mlp.c_proj", f"h.{block}.mlp.c_fc")
    ]


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 9),
        ("attention", 3),
        ("mlp", 6),
        ("c_proj", 6),
        (["mlp.c_proj"], 3),
        (["h.2.mlp.c_fc", "attention"], 4),
    ],
)
def test_targets_select_groups_leaves_roles_and_names(targets: str | list[str], count: int) -> None:
    assert len(select_targets(modules(), targets)) == count


def test_a_target_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"'mlp.c_prj'.*did you mean 'mlp.c_proj'"):
        select_targets(modules(), ["attention", "mlp.c_prj"])


def test_targets_keep_the_models_order_and_come_once() -> None:
    names = [m.name for m in modules()]
    assert [m.name for m in select_targets(modules(), ["mlp", "c_proj", "all-linear"])] == names
