"""One short text-only pass through a model, watched by hooks: which linear layers does text pass through?

On the meta device nothing is computed, only shapes, so that a configuration is enough and the pass takes milliseconds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_TOKENS = 8
_EXPERT = re.compile(r"(.*\.\d+\..*\.)\d+(?=\.|$)(.*)")
"""A module in a numbered list inside a numbered block: one expert of a mixture."""
_TOWER = re.compile(r"(^|[._])(vision|visual|image|video|audio|speech|multi_modal|multimodal)", re.IGNORECASE)


def called_in_text(model: Any, widths: Mapping[str, int]) -> set[str]:
    """Names of those layers of `widths` (name -> d_out) that a pass of a few tokens calls, and that answer with one
    tensor (..., d_out).

    A weight that is read without calling its layer counts as not called: an adapter there would never be used. Of the
    experts of a mixture a few tokens reach some only; one of them stands for all. Raises what the model raises.
    """
    called: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.shape[-1] == widths[name]:
                called.add(name)

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in widths]
    try:
        _pass(model)
    finally:
        for handle in handles:
            handle.remove()
    families = {_family(name) for name in called}
    return called | {name for name in widths if _family(name) in families}


def outside_towers(names: Iterable[str]) -> set[str]:
    """Those names that do not speak of pictures or sound: what is left to go by where no pass can be run."""
    return {name for name in names if not _TOWER.search(name)}


def _family(name: str) -> str:
    """The name without the number of the expert.

    >>> _family("model.layers.3.mlp.experts.7.up_proj"), _family("model.layers.3.mlp.up_proj")
    ('model.layers.3.mlp.experts.*.up_proj', 'model.layers.3.mlp.up_proj')
    """
    return _EXPERT.sub(r"\1*\2", name)


@torch.no_grad()
def _pass(model: Any) -> None:
    embedding = model.get_input_embeddings().weight
    ids = (torch.arange(_TOKENS, device=embedding.device) % embedding.shape[0])[None]
    if embedding.device.type != "meta":
        model(input_ids=ids, use_cache=False)
        return
    # The usual kernels for experts sort tokens by value, which a tensor without values cannot.
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        model.set_experts_implementation("batched_mm")
    with torch.device("meta"), _nonzero_is_all(), _AnyValue():
        model(input_ids=ids, use_cache=False)


class _AnyValue(TorchDispatchMode):
    """Answers questions for the value of a tensor that has none, so that code which branches on it goes on.

    Yes, or 1: most questions are whether something is as it should be. Tensors that a model makes on the CPU whatever
    its device is are taken for ones without values.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # seldom: asking every operation for its devices takes longer than the pass
            args, kwargs = tree_map_only(Tensor, lambda x: x if x.is_meta else x.to("meta"), (args, kwargs))
            return func(*args, **kwargs)


@contextlib.contextmanager
def _nonzero_is_all() -> Iterator[None]:
    """Without values every element counts as nonzero, as far as this torch knows the setting."""
    from torch.fx.experimental import _config

    config: Any = _config  # its settings and methods are put there by torch as it loads
    if not hasattr(config, "meta_nonzero_assume_all_nonzero"):
        yield
        return
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        yield
