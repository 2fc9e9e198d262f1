"""The check at the door of every node: each value that comes in is of the kind that the node's own declaration says.

ComfyUI checks the values of widgets, but not what comes through a link, and nobody checks a call from Python.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from ..sam import Concept, GroundingModel, MatteModel, SAMError, Segmenter, as_segmenter, checked_embedding
from ..utils.checks import is_number, one_of
from ..utils.crops import Crops
from ..utils.images import FLOATS, as_image, checked_mask, checked_tensor, without_gradients
from ..utils.text import shown

Node = TypeVar("Node", bound=type)
Check: TypeAlias = Callable[[Any, str], Any]
"""Takes a value and the name that messages call it by; returns it as the node takes it, or raises SAMError."""

_MOST_CHARACTERS = 1000  # of a text in one line: a name, a label
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


def guarded(node: Node) -> Node:
    """Put the check before the methods that run a node: `FUNCTION`, which ComfyUI calls, and `execute`.

    A value of the wrong kind is refused by the input's name. The others arrive as the declaration has them: whole numbers as
    `int`, numbers as `float`, images and masks without gradients. The default of the method is what an optional input has
    that is connected and carries None; only None for boxes is a value: a detector that found nothing.

    A node says in `LOOKED_UP` for which of its lists the check takes any name: the node looks it up itself, also one that
    the list does not show (an alias), and says where to put what is missing.
    """
    for name in {node.FUNCTION, "execute"}:
        if hasattr(node, name):
            setattr(node, name, _with_check(node, inspect.unwrap(getattr(node, name))))
    return node


def _with_check(node: type, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, declared = signature.bind(self, *args, **kwargs), _inputs(node)
        for name, value in given.arguments.items():
            if name in declared and value is not defaults[name]:
                given.arguments[name] = declared[name].take(value, name, defaults[name])
        return method(*given.args, **given.kwargs)

    return checked


@dataclass(frozen=True)
class _Input:
    """One input of a node.

    Attributes:
        check: of a value.
        may_be_none: whether it has no value where None arrives.
        is_optional: whether the method has a default for it.
        comes_in_lists: whether ComfyUI hands over a list of values (INPUT_IS_LIST).
    """

    check: Check
    may_be_none: bool
    is_optional: bool
    comes_in_lists: bool

    def take(self, value: Any, name: str, default: Any) -> Any:
        """The value as the node takes it."""
        if value is None and self.may_be_none:
            return default
        if not self.comes_in_lists or not isinstance(value, (list, tuple)):
            return self.check(value, name)
        if all(item is None for item in value) and self.is_optional:
            return default
        if not value:
            raise SAMError(f"{name} is an empty list: the node that is connected to it must give at least one value.")
        places = [name] if len(value) == 1 else [f"{name}[{index}]" for index in range(len(value))]
        return type(value)(map(self.check, value, places))


@functools.cache
def _inputs(node: type) -> Mapping[str, _Input]:
    """What a node declares. It is read at the first call, and once: the lists that change with the files are looked up."""
    groups, looked_up = node.INPUT_TYPES(), getattr(node, "LOOKED_UP", ())
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in groups.get(group, {}).items():
            more = options[0] if options else {}
            check = _name if name in looked_up else _check_of(kind, more)
            is_socket = isinstance(kind, str) and (kind not in _WIDGETS or more.get("forceInput", False))
            is_optional = group == "optional"
            may_be_none = is_optional and is_socket and check is not _anything
            found[name] = _Input(check, may_be_none, is_optional, getattr(node, "INPUT_IS_LIST", False))
    return found


def _check_of(kind: str | Sequence[str], options: Mapping[str, Any]) -> Check:
    """The check of a declaration `(kind, options)`, as `INPUT_TYPES` has it; what nobody here knows is left to the node."""
    if not isinstance(kind, str):
        choices = tuple(kind)
        return lambda value, name: one_of(value, choices, name)
    if kind in ("INT", "FLOAT"):
        return functools.partial(_number, kind == "INT", options.get("min", -math.inf), options.get("max", math.inf))
    if kind == "BOOLEAN":
        return _switch
    if kind == "STRING":
        is_long = any(options.get(name) for name in ("multiline", "forceInput", "widgetType"))
        return _text if is_long else _line
    return next((_SOCKETS[one] for one in kind.split(",") if one in _SOCKETS), _anything)


def _number(is_whole: bool, low: float, high: float, value: Any, name: str) -> float:
    if is_number(value) and low <= value <= high:
        if not is_whole:
            return float(value)
        if value == int(value):
            return int(value)
    kind = "whole number" if is_whole else "finite number" if low == -math.inf else "number"
    limits = f" from {_plain(low)} to {_plain(high)}" if math.isfinite(low) and math.isfinite(high) else ""
    raise SAMError(f"{name} is {shown(value)}: it must be a {kind}{limits}.")


def _plain(limit: float) -> float:
    return int(limit) if limit == int(limit) else limit


def _switch(value: Any, name: str) -> bool:
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Integral) and value in (0, 1)):
        return bool(value)
    raise SAMError(f"{name} is {shown(value)}: it must be true or false.")


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise SAMError(f"{name} is {shown(value)}: it must be text.")
    if len(value) > _MOST_CHARACTERS:
        raise SAMError(f"{name} has {len(value)} characters ({shown(value)}): the limit is {_MOST_CHARACTERS}.")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise SAMError(f"{name} is {shown(value)}: it must be text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SAMError(f"{name} is {shown(value)}: character {error.start} is half of a surrogate pair.") from error
    return value


def _line(value: Any, name: str) -> str:
    return _text(_name(value, name), name)


def _image(value: Any, name: str) -> Tensor:
    return without_gradients(as_image(value, name))


def _mask(value: Any, name: str) -> Tensor:
    return without_gradients(checked_mask(value, name))


def _logits(value: Any, name: str) -> Tensor:
    return without_gradients(checked_tensor(value, name, FLOATS, "it must be the logits of a prediction"))


def _model(value: Any, _: str) -> Segmenter:
    return as_segmenter(value)


def _made_by(kind: type, where: str) -> Check:
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, kind):
            raise SAMError(f"{name} is {shown(value)}: connect {where}.")
        return value

    return check


def _anything(value: Any, _: str) -> Any:
    return value


_SOCKETS: dict[str, Check] = {
    "IMAGE": _image,
    "MASK": _mask,
    "SAMKIT_LOGITS": _logits,
    "SAM_EMBEDDING": checked_embedding,
    "AV_SAM_MODEL": _model,
    "SAMKIT_CONCEPT": _made_by(Concept, "SAM Teach or Load SAM Concept"),
    "SAMKIT_GROUNDING_MODEL": _made_by(GroundingModel, "Load Grounding DINO"),
    "SAMKIT_MATTE_MODEL": _made_by(MatteModel, "Load ViTMatte"),
    "SAMKIT_CROP": _made_by(Crops, "SAM Crop to Mask"),
}
"""The check of each type of socket. Boxes have many forms: they are left to `utils.boxes`, which says what is wrong."""
