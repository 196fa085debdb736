"""The frozen base model, from the hub or a folder: safetensors only, no remote code."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from adaptive_lora.errors import ModelError, UsageError
from adaptive_lora.files import expanded
from adaptive_lora.models.cache import revision_of
from adaptive_lora.models.libraries import quiet_libraries
from adaptive_lora.planning.modules import ExpertStack, ModuleShape, depth_of, kind_of
from adaptive_lora.planning.outline import DType, ModelOutline, Products, Quantise, context_of
from adaptive_lora.training.fused_layers import use_rounded_products
from adaptive_lora.training.positions import decoder_of, scale_each_text
from adaptive_lora.training.quantised import (
    check_quantisation,
    parameter_count,
    quantisation_config,
    quantisation_of,
    use_dense_products,
)
from adaptive_lora.training.text_pass import called_in_text, outside_towers

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class FrozenBase:
    """A loaded model with frozen weights, and its tokenizer."""

    name: str
    """As the user wrote it."""
    model: Any
    tokenizer: Any
    outline: ModelOutline
    revision: str
    """The hub's commit, `sha256:` and a hash of a folder's configuration and weights, or the hash of a GGUF file."""
    location: str
    """The folder or hub name it was loaded from."""
    device: torch.device
    quantised: str | None = None
    """How bitsandbytes keeps the weights of its linear layers: `nf4`, `fp4` or `int8`."""
    products: Products | None = None
    """What its linear layers multiply in, where that is not the dtype of their weights (`rounded.py`)."""

    @property
    def coarse(self) -> bool:
        """Whether its logits are rounded as those of half precision are."""
        return self.products is not None or self.model.dtype in (torch.float16, torch.bfloat16)


def outline_of(name: str, location: str | Path, revision: str | None = None) -> ModelOutline:
    """Modules and sizes from a model's configuration, without its weights; takes milliseconds.

    `location` is a folder or a hub name; `name` is used in messages. Raises ModelError.
    """
    model = meta_model(name, location, revision)
    return outline_of_model(name, model, (str(location), revision))


def meta_model(name: str, location: str | Path, revision: str | None = None) -> Any:
    """The model on the meta device: all modules and shapes, no weights. Raises ModelError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _explained(name, location), quiet_libraries():
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def load_base(
    name: str,
    location: str | Path,
    revision: str | None = None,
    dtype: DType = "float32",
    device: str | torch.device = "cpu",
    quantise: Quantise | None = None,
    products: Products | None = None,
) -> FrozenBase:
    """Loads model and tokenizer, frozen and in evaluation mode (its own dropout is off).

    Where position scaling depends on length, each text has that of its own (`positions.py`).
    Only safetensors are read, `trust_remote_code` is off. Raises ModelError with the remedy.

    `quantise` keeps linear layers in 4 or 8 bits (`quantised.py`), `products` is what they multiply in (`rounded.py`).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(name, location, revision)
    local = Path(location).is_dir()
    with _explained(name, location), quiet_libraries():
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    quantised = check_quantisation(name, config, dtype, quantise)
    with ThreadPoolExecutor(1) as beside, _explained(name, location), quiet_libraries():
        hashing = beside.submit(revision_of, Path(location)) if local else None  # reads every byte of the weights
        model = AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            **({"device_map": {"": str(device)}} if quantised else {}),  # those in 8 bits cannot be moved later
            **({"quantization_config": quantisation_config(quantise, dtype)} if quantise else {}),
        )
    model = (model if quantised else model.to(device)).eval().requires_grad_(False)
    scale_each_text(model)
    use_dense_products(model)
    if products:
        use_rounded_products(decoder_of(model))
    return FrozenBase(
        name=name,
        model=model,
        tokenizer=tokenizer,
        outline=outline_of_model(name, model, (str(location), revision)),
        revision=hashing.result() if hashing else getattr(model.config, "_commit_hash", None) or "unknown",
        location=str(location),
        device=torch.device(device),
        quantised=quantised,
        products=products,
    )


@contextlib.contextmanager
def frozen(model: Any, tokenizer: Any) -> Iterator[FrozenBase]:
    """A `transformers` model that the caller has loaded: frozen and in evaluation mode, afterwards as it was.

    It stays on its device and in its dtype. Raises ModelError where it carries an adapter or is no such model.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ModelError(f"A model is a name, a folder or a loaded transformers model, got a {type(model).__name__}.")
    if hasattr(model, "peft_config"):
        raise ModelError("The model carries an adapter already; give the base model, for example `model.unload()`.")
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    name = getattr(model, "name_or_path", "") or type(model).__name__
    revision = getattr(model.config, "_commit_hash", None) or "unknown"
    undo = [use_dense_products(model), scale_each_text(model)]
    try:
        model.eval().requires_grad_(False)
        outline, device = outline_of_model(name, model), gradients[0][0].device
        yield FrozenBase(name, model, tokenizer, outline, revision, name, device, quantisation_of(model.config))
    finally:
        for restore in undo:
            restore()
        for module, training in modes:
            module.training = training
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)


def load_tokenizer(name: str, location: str | Path, revision: str | None = None) -> Any:
    """A model's tokenizer; ModelError with the remedy."""
    from transformers import AutoTokenizer

    with _explained(name, location), quiet_libraries():
        return AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)


def default_device() -> str:
    """The accelerator where there is one, else the CPU: `cuda`, `mps` or `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _other_class(model: Any) -> str | None:
    named = getattr(model.config, "architectures", None) or [type(model).__name__]
    return None if type(model).__name__ in named else str(named[0])


def check_device(device: str | torch.device) -> torch.device:
    """The device if it is available; otherwise UsageError with those that are."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available += ["mps"]
    if str(device) not in available:
        raise UsageError(f"There is no device {str(device)!r} here; there is: {', '.join(available)}.")
    return torch.device(device)


def find_modules(model: Any) -> tuple[ModuleShape, ...]:
    """Every `nn.Linear` and GPT-2 `Conv1D` but the output layer, in the model's order."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    shapes = []
    for name, module in model.named_modules():
        if module is output or name.split(".")[-1] == "lm_head":
            continue
        if isinstance(module, nn.Linear):
            d_in, d_out = module.in_features, module.out_features
            # A `Conv1D` that was quantised is as a target what it was before.
            transposed = getattr(getattr(module, "source_cls", None), "__name__", None) == "Conv1D"
        elif type(module).__name__ == "Conv1D":
            d_in, d_out = module.weight.shape
            transposed = True
        else:
            continue
        shapes.append(ModuleShape(name, kind_of(name), depth_of(name), int(d_in), int(d_out), transposed))
    return tuple(shapes)


def outline_of_model(name: str, model: Any, origin: tuple[str, str | None] | None = None) -> ModelOutline:
    """Modules and sizes of a model in memory, with its weights or on the meta device, in evaluation mode.

    One short text-only pass decides which linear layers count; where it fails, names do, and `pass_failed` says why.
    """
    text = model.config.get_text_config()
    linear = find_modules(model)
    failed = None
    try:
        with quiet_libraries():
            used = called_in_text(model, {m.name: m.d_out for m in linear})
    except Exception as error:
        # Whatever an architecture's own code cannot do without values; names must do then.
        failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        used = outside_towers(m.name for m in linear)
    return ModelOutline(
        name=name,
        modules=tuple(m for m in linear if m.name in used),
        total_parameters=parameter_count(model),
        context=context_of(lambda key: getattr(text, key, None)),
        fused_parameters=_fused_parameters(model),
        uncalled=tuple(m for m in linear if m.name not in used),
        experts=_expert_stacks(model),
        embedding_rows=_embedding_rows(model),
        pass_failed=failed,
        other_class=_other_class(model),
        origin=origin,
    )


def _fused_parameters(model: Any) -> int:
    """Parameters of matrices in stacks: the kernel of a convolution has three dimensions too, and is none."""
    stacks = {
        f"{name}.{own}": parameter.numel()
        for name, module in model.named_modules()
        if "Conv" not in type(module).__name__
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 3
    }
    return sum(stacks[name] for name in outside_towers(stacks))


def _embedding_rows(model: Any) -> int | None:
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # an embedding in pieces
        return None


def _expert_stacks(model: Any) -> tuple[ExpertStack, ...]:
    """Three-dimensional parameters of modules that are called experts."""
    return tuple(
        ExpertStack(name, int(p.shape[0]), int(p.shape[2]), int(p.shape[1]))
        for name, p in model.named_parameters()
        if p.ndim == 3 and "experts" in name.split(".")
    )


@contextlib.contextmanager
def _explained(name: str, location: str | Path) -> Iterator[None]:
    """Turns errors of the hub libraries into one ModelError with a remedy."""
    folder = expanded(str(location))
    if not folder.exists():
        if str(location).startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(str(location)):
            raise ModelError(
                f"The model folder {location} does not exist. Give a folder, a hub name owner/name, or `demo`."
            )
    elif not (folder / "config.json").is_file():
        raise ModelError(f"{location} has no config.json, so it is not a Hugging Face model folder.")
    try:
        yield
    except Exception as error:
        # Configurations, tokenizers and weights fail with a dozen unrelated classes; all mean "cannot be read".
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "safetensors" in str(error) and not isinstance(error, SafetensorError):
            remedy = (
                "Only safetensors are read; convert the weights with `model.save_pretrained(folder)` and name that "
                "folder, or name a revision that has them."
            )
        elif "Unrecognized configuration class" in str(error):
            reason = "transformers has no causal language model of this kind (AutoModelForCausalLM)."
            remedy = "Models of pictures and text are loaded where it has one, such as Gemma 3; name a text model."
        elif folder.exists():
            remedy = "Check that config.json, tokenizer.json and model.safetensors are complete and belong together."
        else:
            remedy = "Check the name and the network (`adaptive-lora doctor`), or name a local folder."
        raise ModelError(f"The model {name} could not be loaded: {reason} {remedy}") from error
