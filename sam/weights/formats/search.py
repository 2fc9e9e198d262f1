"""Find the one model in what a file holds: wherever its tensors lie, and whatever stands before or inside their names.

A file is read as one flat list of dotted names: a key of a dict, and a prefix that a wrapper module put before its names, are
the same thing there. A model is where an image encoder, a prompt encoder and a mask decoder stand beside each other.
"""

import logging
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.text import counted
from ...errors import SAMError
from ..limits import shortened
from ..pickles import Opaque
from ..torch_file import SAVE_ALONE
from . import sam3
from .relatives import relative_in
from .sam2 import VIDEO

log = logging.getLogger("samkit")

_MOST_ITEMS, _MOST_FOUND, _DEEPEST = 5_000_000, 200_000, 16
_ENCODERS = ("image_encoder", "vision_encoder")
_PROMPTS, _DECODERS = ("prompt_encoder", "sam_prompt_encoder"), ("mask_decoder", "sam_mask_decoder")
_PARTS = frozenset((*_ENCODERS, *_PROMPTS, *_DECODERS))
# What is part of a model and of none of its three parts.
_BESIDE = re.compile(rf"shared_image_embedding\.|pixel_(?:mean|std)$|no_mem(?:ory)?_embed|{VIDEO.pattern}")
_FIRST_LAYER = re.compile(
    r"(?:image_encoder\.(?:trunk\.)?patch_embed\.(?:proj|seq\.0\.c)|vision_encoder\.(?:backbone\.)?patch_embed\.projection)\.weight"
)
_ADAPTER = re.compile(r"(?:^|[._])(?:lora|adapter)", re.IGNORECASE)
_PEFT = re.compile(r"(?:^|\.)(?:lora_[A-Z]\w*|base_layer|modules_to_save)\.")
_QUANTIZED = re.compile(r"(?:^|\.)_packed_params(?:\.|$)")
_QUANTIZERS = ("torchao.", "bitsandbytes.", "optimum.quanto.", "torch.ao.")
_DECODER_ALONE = re.compile(r"(?:^|\.)iou_token\.weight$")
# Copies of a model that trainers keep beside the one they train.
_COPY = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|teacher|momentum)(?=$|[._])", re.IGNORECASE)
_NAMED = ("state_dict", "model", "model_state")  # Lightning and MedSAM, most others, micro-sam
_MERGE = f"model = model.merge_and_unload(), then {SAVE_ALONE}"


@dataclass(frozen=True)
class FoundModel:
    """The tensors of a model, under the names that they have in it, and what lay beside them.

    Attributes:
        weights: by name; values of any type that a file may have.
        left_out: names of tensors in the file that are no part of this model.
    """

    weights: dict[str, Tensor]
    left_out: tuple[str, ...]


def find_model(content: Any, file: str) -> FoundModel:
    """The model in what a file holds. Of several, a copy that a trainer keeps (`ema`, `teacher`) comes last, and otherwise the
    first in the file is taken; a line in the log says which.

    Args:
        content: containers, tensors, and an `Opaque` for whatever is neither.
        file: its name, for messages.

    Raises:
        SAMError: there is none, and what is there instead; one of its tensors is not one, or lies there twice.
    """
    leaves = list(_leaves(content))
    _refuse_unmerged(leaves, file)
    named = [(_plain(path), leaf) for path, leaf in leaves if any(isinstance(key, str) for key in path)]
    if sam3.is_sam3(name for name, _ in named):
        return _clicks_of_sam3(named, file)
    roots: dict[str, set[str]] = {}
    for name, _ in named:
        if place := _place_of(name):
            roots.setdefault(place[0], set()).add(place[1])
    whole = [root for root, parts in roots.items() if not _missing(parts)]
    if not whole:
        raise SAMError(_what_it_is(content, leaves, named, roots, file))
    first_layers = {name for name, _ in named if _FIRST_LAYER.search(name)}
    whole.sort(key=lambda root: _rank(root, first_layers))
    root = whole[0]
    if len(whole) > 1:
        others = ", ".join(_called(other) for other in whole[1:])
        log.warning("%s holds %d models: %s is used, not %s", file, len(whole), _called(root), others)
    return _taken(named, root, file)


def _clicks_of_sam3(named: list[tuple[str, Tensor | Opaque]], file: str) -> FoundModel:
    """The part of SAM 3 that clicks need: trunk, neck and heads lie at different places of its files."""
    for name, leaf in named:
        if isinstance(leaf, Opaque) and (leaf.problem or leaf.kind.startswith(_QUANTIZERS)):
            raise SAMError(f"{file} was not loaded: its tensor {shortened(name)} {_why(leaf)}")
    tensors = [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)]
    weights = sam3.for_clicks(tensors, file)
    log.info("%s: %s of SAM 3 are for clicks, of %d in the file", file, counted(len(weights), "tensor"), len(tensors))
    return FoundModel(weights, ())


def _leaves(content: Any) -> Iterator[tuple[tuple[str | int, ...], Tensor | Opaque]]:
    """Tensors and objects with the keys that lead to them, those that lie less deep first, and what is in lists last.

    What contains itself, or the same container very often, is left at some point: a model lies near the top, and not behind a
    million losses.
    """
    waiting: deque[tuple[tuple[str | int, ...], Any]] = deque([((), content)])
    lists: deque[tuple[tuple[str | int, ...], Any]] = deque()
    looked, found = 0, 0
    while waiting or lists:
        path, value = (waiting or lists).popleft()
        if isinstance(value, Tensor | Opaque):
            yield path, value
        items = value.items if isinstance(value, Opaque) else value
        pairs = items.items() if isinstance(items, Mapping) else enumerate(items) if isinstance(items, list | tuple) else ()
        for key, inner in pairs:
            looked += 1
            if looked > _MOST_ITEMS or found > _MOST_FOUND:
                return
            if not isinstance(key, str | int):
                continue
            if isinstance(inner, Tensor):
                found += 1
                yield (*path, key), inner
            elif isinstance(inner, Opaque | Mapping | list | tuple) and len(path) < _DEEPEST:
                found += 1
                (lists if isinstance(inner, list | tuple) else waiting).append(((*path, key), inner))


def _plain(path: tuple[str | int, ...]) -> str:
    """The dotted name without the modules that torch wraps around others: `module`, `_orig_mod`, `_fsdp_wrapped_module`, ..."""
    *above, last = ".".join(map(str, path)).split(".")
    return ".".join([*(part for part in above if part != "module" and not part.startswith("_")), last])


def inside_model(name: str) -> str:
    """A name as it is within a model, without what wrappers and whatever holds the model put before it."""
    plain = _plain((name,))
    place = _place_of(plain)
    return plain if place is None else plain.removeprefix(place[0])


def _place_of(name: str) -> tuple[str, str] | None:
    """What stands before the first part of a SAM in a name, with its dot, and which part it is; None where there is none."""
    pieces = name.split(".")
    index = next((index for index, piece in enumerate(pieces) if piece in _PARTS), None)
    return None if index is None else ("".join(f"{piece}." for piece in pieces[:index]), pieces[index])


def _missing(parts: Collection[str]) -> list[str]:
    return [kinds[0] for kinds in (_ENCODERS, _PROMPTS, _DECODERS) if not any(kind in parts for kind in kinds)]


def _rank(root: str, first_layers: Collection[str]) -> tuple[bool, bool, bool]:
    """What an optimizer keeps for each weight comes after the weights, a copy after the original; then as trainers name it."""
    is_model = any(_FIRST_LAYER.fullmatch(name.removeprefix(root)) for name in first_layers if name.startswith(root))
    return not is_model, bool(_COPY.search(root)), root.split(".")[0] not in _NAMED


def _called(root: str) -> str:
    return repr(shortened(root.rstrip("."))) if root else "the one without a prefix"


def _taken(named: list[tuple[str, Tensor | Opaque]], root: str, file: str) -> FoundModel:
    inside_names = [name.removeprefix(root) for name, _ in named if name.startswith(root)]
    if relative := relative_in(inside_names, whole=True):
        raise SAMError(_relative(file, *relative))
    weights: dict[str, Tensor] = {}
    left_out = []
    for name, leaf in named:
        inside = name.removeprefix(root)
        is_own = name.startswith(root) and (inside.split(".")[0] in _PARTS or _BESIDE.match(inside))
        if not is_own and not _ADAPTER.search(name):  # an adapter changes what the model answers: the loader refuses it
            left_out += [name] * isinstance(leaf, Tensor)
        elif isinstance(leaf, Opaque):
            if not name.endswith("._extra_state"):
                raise SAMError(f"{file} was not loaded: its tensor {shortened(inside)} {_why(leaf)}")
        elif inside in weights and not _equal(weights[inside], leaf):
            raise SAMError(f"{file} was not loaded: it holds two different tensors for {shortened(inside)}.")
        else:
            weights[inside] = leaf
    if left_out:
        log.info("%s: %s beside the model ignored, such as %s", file, counted(len(left_out), "tensor"), shortened(left_out[0]))
    return FoundModel(weights, tuple(left_out))


def _relative(file: str, family: str, instead: str) -> str:
    return f"{file} is a checkpoint of {family}, which this pack does not support: use {instead}."


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _why(leaf: Opaque) -> str:
    """Why an object is not a weight, and what to do, as the rest of a sentence."""
    if leaf.problem:
        return f"{leaf.problem}. Get the checkpoint in float32, float16 or bfloat16."
    if leaf.kind.startswith(_QUANTIZERS):
        return f"is quantized ({shortened(leaf.kind)}). Save the weights of the model before it is quantized: {SAVE_ALONE}."
    return (
        f"is an object of {shortened(leaf.kind)}, and making it would run code of the file. Save the weights of the model "
        f"alone: {SAVE_ALONE}."
    )


def _refuse_unmerged(leaves: list[tuple[tuple[str | int, ...], Tensor | Opaque]], file: str) -> None:
    """Raise SAMError for what changes a model from outside of its weights."""
    names = [".".join(map(str, path)) for path, _ in leaves]
    if found := next(filter(_PEFT.search, names), None):
        raise SAMError(
            f"{file} was not loaded: it holds LoRA weights of peft ({shortened(found)}), without the adapter_config.json that "
            "says how to merge them. Put adapter_model.safetensors and adapter_config.json, as save_pretrained wrote them, "
            f"into one folder, or merge them in Python and save that: {_MERGE}."
        )
    if found := next(filter(_QUANTIZED.search, names), None):
        raise SAMError(
            f"{file} was not loaded: it is quantized ({shortened(found)}). Save the weights of the model before it is "
            f"quantized: {SAVE_ALONE}."
        )


def _what_it_is(
    content: Any,
    leaves: list[tuple[tuple[str | int, ...], Tensor | Opaque]],
    named: list[tuple[str, Tensor | Opaque]],
    roots: Mapping[str, set[str]],
    file: str,
) -> str:
    """Why a file without a model has none."""
    objects = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Opaque)]
    tensors = sorted(name for name, leaf in named if isinstance(leaf, Tensor))
    module = next((leaf for _, leaf in objects if leaf.is_module), None)
    if module is not None:
        slim = " For SlimSAM, use SlimSAM-uniform-50.safetensors or SlimSAM-uniform-77.safetensors." * ("slim" in file.lower())
        return (
            f"{file} was not loaded: it is a pickled model that includes code ({shortened(module.kind)}), and opening it would "
            f"run that. Save its weights alone: {SAVE_ALONE}.{slim}"
        )
    if relative := relative_in(tensors):
        return _relative(file, *relative)
    strange = next((leaf for _, leaf in objects if leaf.problem or leaf.kind.startswith(_QUANTIZERS)), None)
    if objects and (strange or not tensors):
        path, leaf = next((one for one in objects if one[1] is strange), objects[0])
        what = f"its tensor {shortened('.'.join(map(str, path)))}" if path else "it"
        return f"{file} was not loaded: {what} {_why(leaf)}"
    if not tensors:
        return f"{file} is not a SAM checkpoint: it does not hold a dict of tensors by name."
    if not any(part in _ENCODERS for parts in roots.values() for part in parts) and any(map(_DECODER_ALONE.search, tensors)):
        return (
            f"{file} was not loaded: it holds a mask decoder alone, without the image encoder and the prompt encoder that it "
            f"was trained with. Load it into that model and save the whole: {SAVE_ALONE}."
        )
    most = max(roots.values(), key=len, default=set())
    missing = " and no tensor ".join(f"{part}.*" for part in _missing(most)) if most else "image_encoder.*"
    first = ", ".join(shortened(name) for name in tensors[:3])
    return f"{file}: this is not a SAM checkpoint: it has no tensor {missing}. It holds {first}, ... ({len(tensors)} in total)."
