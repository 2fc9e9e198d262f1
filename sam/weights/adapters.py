"""LoRA adapters of peft: read, and merged into the weights of the model that they were trained on.

peft writes a folder with `adapter_model.safetensors` (or `.bin`) and `adapter_config.json`. Merging is what its
`merge_and_unload` does (peft 0.21, tuners/lora/layer.py), in float32: W + s B A, where s is alpha / r, or alpha / sqrt(r) with
rsLoRA. DoRA (arXiv 2402.09353) scales each row of that to a length that it has learned.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SAMError
from .checkpoint_reader import adapter_files, read_file, read_json
from .formats.hugging_face import from_hugging_face, is_hugging_face
from .formats.sam2 import from_sam2_model, is_sam2
from .formats.search import inside_model
from .formats.tensors import to_weights
from .limits import MOST_BYTES, shortened

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"^(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?$"
)
_COPIES = re.compile(r"\.modules_to_save\.[^.]+(?=\.)|\.base_layer(?=\.)")
# What of a LoRA changes more than the weights that it names, or other ones.
_NOT_MERGED = (
    "layer_replication", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "alora_invocation_tokens",
)  # fmt: skip
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# An adapter of a part alone has names that begin within it.
_WITHIN = (
    "", "image_encoder.", "vision_encoder.", "mask_decoder.", "sam_mask_decoder.", "prompt_encoder.", "sam_prompt_encoder.",
    "image_encoder.trunk.", "vision_encoder.backbone.",
)  # fmt: skip
_MOST_PATTERNS, _LONGEST_PATTERN, _LARGEST_ALPHA = 1000, 200, 1e9
_SLOW_PATTERN = re.compile(r"\)[*+?{]|(?:[*+?{].*){3}|\\\d|\(\?")
_POSITIONS = ("positional_embedding", "positional_encoding_gaussian_matrix")
_INNER_LAYER = re.compile(r"^(?:sam_)?(mask_decoder\.[\w.]+|obj_ptr_proj)\.layers\.(\d+)\.weight$")


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
        name: folder and file, for messages.
        base: the model that it was trained on, in its own words; empty where it does not say.
        layers: for each changed layer, by its name in that model, the parts that peft has for it, float32.
        tensors: what takes the place of the model's own: biases, modules_to_save.
        scale: of a layer by its name and rank.
    """

    name: str
    base: str
    layers: Mapping[str, Mapping[str, Tensor]]
    tensors: Mapping[str, Tensor]
    scale: Callable[[str, int], float] = field(repr=False)


def named_base(path: Path) -> str | None:
    """What an adapter says that it was trained on, empty where it does not say; None for whatever is not an adapter."""
    found = adapter_files(path)
    return None if found is None else str(read_json(found[1]).get("base_model_name_or_path") or "")


def read_adapter(path: Path) -> Adapter:
    """An adapter, by its folder or its weights.

    Raises:
        SAMError: a file is missing or damaged, or holds what cannot be merged; the text says what.
    """
    found = adapter_files(path)
    if found is None:
        raise SAMError(
            f"{path.name} is not an adapter of peft: it must be a folder with adapter_model.safetensors and "
            "adapter_config.json, or that file beside its configuration."
        )
    weights, configuration = found
    name = f"{weights.parent.name}/{weights.name}"
    if not weights.is_file():
        raise SAMError(f"{name} was not loaded: it is missing from its folder, which has adapter_config.json alone.")
    config = read_json(configuration)
    _check(config, name)
    if weights.stat().st_size > MOST_BYTES:
        raise SAMError(f"{name} was not loaded: it has {weights.stat().st_size / 1e9:.0f} GB; the largest SAM has less than 6.")
    content = read_file(weights)
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) for one in content.values()):
        raise SAMError(f"{name} was not loaded: it does not hold a dict of tensors by name.")
    state = {str(key): tensor for key, tensor in content.items()}
    to_weights(state, name)
    layers: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        inside = key.removeprefix(_PREFIX)
        if match := _LORA.match(inside):
            layers.setdefault(match[1], {})[match[2]] = tensor
        elif (
            ".original_module." not in inside
            and (plain := _COPIES.sub("", inside))
            and (plain == inside or f"{_PREFIX}{plain}" not in state)
        ):
            tensors[plain] = tensor
    if not layers:
        raise SAMError(f"{name} was not loaded: it has no tensor of LoRA (lora_A, lora_B).")
    if found := next((one for one in tensors if ".lora_" in one), None):
        raise SAMError(
            f"{name} was not loaded: {shortened(found)} is not part of a LoRA or DoRA that this pack can merge. {_MERGE}"
        )
    return Adapter(name, str(config.get("base_model_name_or_path") or ""), layers, tensors, _scaling(config, name))


_MERGE = (
    "Merge it in Python: PeftModel.from_pretrained(model, folder).merge_and_unload(), and save the state_dict() of the result."
)


def _check(config: Mapping[str, Any], name: str) -> None:
    """Raise SAMError for a configuration whose adapter is not W + s B A."""
    if not config:
        raise SAMError(f"{name} was not loaded: its adapter_config.json cannot be read.")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SAMError(
            f"{name} was not loaded: it is an adapter of the type {shortened(str(kind))}, and only LORA is merged. {_MERGE}"
        )
    if used := [key for key in _NOT_MERGED if config.get(key)]:
        raise SAMError(f"{name} was not loaded: it is a LoRA with {used[0]}, which this pack cannot merge. {_MERGE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise SAMError(
            f"{name} was not loaded: it began with init_lora_weights={shortened(start)!r}, which changes the model's weights "
            "too. Save it with save_pretrained(folder, path_initial_model_for_weight_conversion=...), or merge it in Python."
        )


def _scaling(config: Mapping[str, Any], name: str) -> Callable[[str, int], float]:
    """The factor of a layer's B A, by the layer's name and its rank."""
    alpha, patterns, is_stabilised = (
        config.get("lora_alpha", 8),
        config.get("alpha_pattern") or {},
        config.get("use_rslora", False),
    )
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS or not isinstance(is_stabilised, bool):
        raise SAMError(
            f"{name} was not loaded: alpha_pattern or use_rslora in its adapter_config.json is not what peft writes."
        )
    for key, value in (("lora_alpha", alpha), *patterns.items()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_ALPHA:
            raise SAMError(
                f"{name} was not loaded: {shortened(key)} in its adapter_config.json is {value!r:.100}, not a number."
            )
    compiled = [(_pattern(key, name), value) for key, value in patterns.items()]

    def scale(layer: str, rank: int) -> float:
        own = next((value for pattern, value in compiled if pattern.match(layer)), alpha)
        return own / (math.sqrt(rank) if is_stabilised else rank)

    return scale


def _pattern(key: str, name: str) -> re.Pattern[str]:
    """peft's reading of a key of alpha_pattern: the end of a layer's name, as a regular expression."""
    try:
        if len(key) > _LONGEST_PATTERN or _SLOW_PATTERN.search(key):  # it is from the file, and could run for hours
            raise re.error("it is too complex")
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise SAMError(
            f"{name} was not loaded: {shortened(key)!r} in its alpha_pattern is not a pattern that can be used ({error})."
        ) from error


def merged(state: dict[str, Tensor], file: str, adapter: Adapter) -> dict[str, Tensor]:
    """A model's weights with an adapter's merged into them, under the model's names or Meta's.

    Args:
        state: of the model, float32, under the names that they have in its file; it may be changed.
        file: its name, for messages.
        adapter: made for it, in Meta's names or transformers', for the whole model or one part of it.

    Raises:
        SAMError: the adapter changes what the model does not have, or not in that shape.
    """
    names = [*(f"{layer}.weight" for layer in adapter.layers), *adapter.tensors]
    state, renamed = _fitting(state, names, file, adapter)
    for layer, parts in adapter.layers.items():
        weight = f"{layer}.weight"
        change = _change(adapter, layer, parts)
        for name, part in renamed({weight: change}).items():
            _check_shape(state, name, part, file, adapter)
            state[name] = state[name] + part
        if "lora_magnitude_vector" in parts:
            (name,) = renamed({weight: change})
            state[name] = _with_magnitude(state[name], parts["lora_magnitude_vector"], adapter, layer)
    for name, part in renamed(adapter.tensors).items():
        _check_shape(state, name, part, file, adapter)
        if name.endswith(_POSITIONS) and not torch.equal(state[name], part):
            raise SAMError(
                f"{adapter.name} cannot be merged into {file}: its modules_to_save trained the positions of prompts apart from "
                "those of images, and SAM has one for both. Train it without prompt_encoder in modules_to_save, or with "
                "positional_embedding frozen."
            )
        state[name] = part
    for layer, parts in adapter.layers.items():  # peft adds to the bias, which it may have trained as well
        bias = {f"{layer}.bias": parts["lora_B.bias"] * _scale(adapter, layer)} if "lora_B.bias" in parts else {}
        for name, part in renamed(bias).items():
            _check_shape(state, name, part, file, adapter)
            state[name] = state[name] + part
    return state


def _scale(adapter: Adapter, layer: str) -> float:
    parts = adapter.layers[layer]
    return adapter.scale(layer, len(parts["lora_embedding_A" if "lora_embedding_A" in parts else "lora_A.weight"]))


def _change(adapter: Adapter, layer: str, parts: Mapping[str, Tensor]) -> Tensor:
    """s B A in the shape of the layer's weight: of a linear layer, a convolution, or a table of embeddings."""
    kind = "lora_embedding_A" if "lora_embedding_A" in parts else "lora_A.weight"
    first, second = parts.get(kind), parts.get(kind.replace("_A", "_B"))
    if first is None or second is None or first.ndim < 2 or second.ndim != first.ndim:
        raise SAMError(f"{adapter.name} was not loaded: it has one half of the LoRA of {shortened(layer)} alone.")
    if first.shape[0] != second.shape[1] or second[0, 0].numel() != 1:
        raise SAMError(
            f"{adapter.name} was not loaded: A {list(first.shape)} and B {list(second.shape)} of {shortened(layer)} do not fit "
            "together."
        )
    product = second.flatten(1) @ first.flatten(1)
    product = product.T if kind == "lora_embedding_A" else product.reshape(len(second), *first.shape[1:])
    return product * _scale(adapter, layer)


def _with_magnitude(weight: Tensor, magnitude: Tensor, adapter: Adapter, layer: str) -> Tensor:
    """DoRA: each output's weights at the length that was learned; of a table, each column's."""
    of_columns = "lora_embedding_A" in adapter.layers[layer]
    lengths = weight.norm(dim=0) if of_columns else weight.flatten(1).norm(dim=1)
    if magnitude.numel() != lengths.numel():
        raise SAMError(f"{adapter.name} was not loaded: the magnitudes of {shortened(layer)} are {list(magnitude.shape)}.")
    factor = magnitude.flatten() / lengths
    return weight * (factor if of_columns else factor.reshape(-1, *[1] * (weight.ndim - 1)))


def _check_shape(state: Mapping[str, Tensor], name: str, part: Tensor, file: str, adapter: Adapter) -> None:
    if name not in state:
        raise SAMError(_misfit(adapter, file, f"{shortened(name)}, which {file} does not have"))
    if state[name].shape != part.shape:
        shapes = f"{shortened(name)} of shape {list(part.shape)}; in {file} it has shape {list(state[name].shape)}"
        raise SAMError(_misfit(adapter, file, shapes))


def _misfit(adapter: Adapter, file: str, what: str) -> str:
    base = shortened(adapter.base) if adapter.base else "a model that it does not name"
    return (
        f"{adapter.name} does not fit {file}: it changes {what}. It was trained on {base}. Choose the model that it was "
        "trained on in base_model."
    )


Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def _fitting(
    state: dict[str, Tensor], names: Collection[str], file: str, adapter: Adapter
) -> tuple[dict[str, Tensor], Renaming]:
    """The model under the names to which an adapter's can be brought, and how.

    Raises:
        SAMError: the adapter changes what the model does not have, whatever its names are.
    """
    best: tuple[int, str] | None = None
    for weights, renaming in _ways(state, file):
        found = {name: list(renaming({name: torch.empty(1, 0)})) for name in names}
        strange = [name for name, new in found.items() if not all(one in weights for one in new)]
        if not strange:
            return weights, renaming
        if best is None or len(strange) < best[0]:
            best = len(strange), strange[0]
    raise SAMError(_misfit(adapter, file, f"{shortened(best[1] if best else '')}, which {file} does not have"))


def _ways(state: dict[str, Tensor], file: str) -> Iterator[tuple[dict[str, Tensor], Renaming]]:
    """The model's own names and Meta's, each with adapters that name layers so, or as transformers does, or within a part."""
    to_meta = from_sam2_model if is_sam2(state) else from_hugging_face
    models = [state]
    if is_hugging_face(state):
        models.append(to_meta(state, file))
    for weights in models:
        beside = _inner_layers(weights)
        for start in _WITHIN:
            within = partial(_within, start)
            yield weights, within
            yield weights, lambda part, within=within, beside=beside: to_meta(within(part), file, beside)


def _within(start: str, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {inside_model(start + name): one for name, one in part.items()}


def _inner_layers(names: Collection[str]) -> list[str]:
    """What transformers calls the layers between the first and the last of a model's MLPs."""
    counts: dict[str, int] = {}
    for match in filter(None, map(_INNER_LAYER.match, names)):
        head = match[1].replace("hf_mlp", "hq_mask_mlp").replace("obj_ptr_proj", "object_pointer_proj")
        counts[head] = max(counts.get(head, 0), int(match[2]) + 1)
    return [f"{head}.layers.{index}.weight" for head, count in counts.items() for index in range(count - 2)]
