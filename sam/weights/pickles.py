"""Read the data in a pickle without making anything that it names: an interpreter of the format that calls nothing.

Python's unpickler imports and calls what a file tells it to. This one knows the containers, numbers and texts of the format,
and those functions of torch that make a tensor of a storage, which it replaces by its own. Everything else (a NumPy number, a
path, the options of a script, a data set, a module) becomes an `Opaque`, which knows its name and nothing more.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import SAMError
from .limits import MOST_TENSORS

_MOST_STEPS = 10_000_000  # an empty dict takes one byte of a file and 64 of memory; a million file names take some 5 steps each
_VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_KEYS = (str, int, float, bytes, type(None))


@dataclass(eq=False)
class Opaque:
    """What stands for an object that is not read: nothing of it was imported, called or made.

    Attributes:
        kind: its class or function, as the file names it, such as `argparse.Namespace`.
        problem: of a tensor that no model can use, why; empty for what is no tensor.
        items: what a mapping contains, such as a dict of a class of its own.
        is_module: whether it has the parts of a `torch.nn.Module`.
    """

    kind: str
    problem: str = ""
    items: dict[Any, Any] = field(default_factory=dict)
    is_module: bool = False


@dataclass(frozen=True)
class Global:
    """A name that a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module.replace('__builtin__', 'builtins')}.{self.name}"


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory that tensors of a file are parts of: `values` is one-dimensional, and None where their type is quantized."""

    values: Tensor | None
    kind: str
    start: int = 0


FindStorage = Callable[[Global, str, int, Any], Storage]
"""From the type of a storage, its key, its number of elements and, in old files, the part of it, the memory."""


def read_pickle(file: BinaryIO, name: str, find_storage: FindStorage) -> Any:
    """The content of the pickle that begins where `file` stands; the file then stands after it.

    Args:
        file: a regular file or memory: a read is never longer than what is left.
        name: of the file, for messages.
        find_storage: gives tensors their memory; what it raises ends the reading.

    Raises:
        SAMError: it has too many tensors or objects.
        ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError and others: it is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    tensors = 0

    def popped() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step >= _MOST_STEPS:
            raise SAMError(f"{name} was not loaded: its pickle has more than {_MOST_STEPS} steps; a checkpoint has thousands.")
        match opcode.name:
            case code if code in _VALUES:
                stack.append(argument)
            case code if code in _CONSTANTS:
                stack.append(_CONSTANTS[code])
            case code if code in _CONTAINERS:
                stack.append(_CONTAINERS[code]())
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                popped()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(popped()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as code:
                count = int(code[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "LIST":
                stack.append(popped())
            case "DICT":
                items = popped()
                stack.append(_with_items({}, items))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = popped()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _with_items(stack[-1], [key, value])
            case "SETITEMS":
                items = popped()
                _with_items(stack[-1], items)
            case "GLOBAL":
                stack.append(Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                inner, module = stack.pop(), stack.pop()
                stack.append(Global(str(module), str(inner)))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_made(called, arguments))
            case "NEWOBJ_EX":
                del stack[-2:]
                stack.append(Opaque(_kind(stack.pop())))
            case "OBJ":
                stack.append(Opaque(_kind(popped()[0])))
            case "INST":
                popped()
                stack.append(Opaque(argument.replace(" ", ".")))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Opaque):
                    stack[-1].is_module |= isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
            case "BINPERSID":
                tensors += 1
                if tensors > MOST_TENSORS:
                    raise SAMError(f"{name} was not loaded: it has more than {MOST_TENSORS} tensors; a SAM has a few hundred.")
                stack.append(_persistent(stack.pop(), find_storage))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case code:
                stack.append(Opaque(f"the extension {code}"))
    return stack.pop()


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _with_items(target: Any, items: list[Any]) -> Any:
    """Keys and values in turn. A key that is a container is none here: hashing what nests a million deep ends the process."""
    into = target.items if isinstance(target, Opaque) else target
    if isinstance(into, dict):
        keys = (key if isinstance(key, _KEYS) else Opaque(type(key).__name__) for key in items[::2])
        into.update(zip(keys, items[1::2], strict=True))
    return target


def _kind(called: Any) -> str:
    return str(called) if isinstance(called, Global) else called.kind if isinstance(called, Opaque) else type(called).__name__


def _made(called: Any, arguments: Any) -> Any:
    """What a call in the file makes: a tensor of a storage, a plain container, or an `Opaque`."""
    make = _MAKERS.get((called.module, called.name)) if isinstance(called, Global) else None
    return make(*arguments) if make else Opaque(_kind(called))


def _tensor(storage: Storage | Opaque, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor | Opaque:
    if isinstance(storage, Opaque):  # of a plain pickle, whose storages are files of torch.save inside it
        return Opaque("a tensor", problem="is in a plain pickle")
    values = storage.values
    if values is None:
        return Opaque("a tensor", problem=f"is quantized ({storage.kind})")
    whole = [*size, *stride, offset]
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in whole):
        raise ValueError(f"a tensor of shape {size!r:.80} and stride {stride!r:.80}")
    start = offset + storage.start
    last = start + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and last >= values.numel():
        raise ValueError(f"a tensor that ends at {last}, in a storage of {values.numel()}")
    return values.as_strided(size, stride, start)


def _typed_tensor(
    storage: Storage | Opaque,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: Any,
    hooks: Any,
    dtype: Any,
    *_: Any,
) -> Tensor | Opaque:
    """The form of types that have no class of storage: the storage is of bytes, and offset and stride are in elements."""
    if isinstance(storage, Opaque):
        return _tensor(storage, offset, size, stride)
    found = getattr(torch, dtype.name, None) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if not isinstance(found, torch.dtype) or storage.values is None:
        raise ValueError(f"a tensor of type {dtype!s:.80}")
    return _tensor(Storage(storage.values.view(found), storage.kind), offset, size, stride)


def _of_subclass(make: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a class of its own, or with attributes: the data, where they are those of a plain tensor."""
    made = _made(make, arguments)
    return made if isinstance(made, Tensor) or (isinstance(made, Opaque) and made.problem) else Opaque(_kind(kind))


def _sparse(layout: Any, *_: Any) -> Opaque:
    return Opaque("a tensor", problem=f"is not dense ({layout})" if isinstance(layout, str) else "is not dense")


def _ordered(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict; Python 2 gave it its items as a list of pairs."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return _with_items({}, [part for pair in pairs for part in pair])


# What a file of torch.save calls to make a tensor.
_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): lambda *arguments: tuple(arguments[0]) if arguments else (),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._utils", "_rebuild_qtensor"): _tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_nested_tensor"): lambda *_: Opaque("a tensor", problem="is not dense (nested)"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): lambda *_: Opaque(
        "a tensor", problem="has no values (it is on the meta device)"
    ),
    ("torch.serialization", "_get_layout"): lambda text, *_: str(text).removeprefix("torch."),
    ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
}


def _persistent(what: Any, find_storage: FindStorage) -> Storage | Opaque:
    """The storage that a tensor is a part of; in old files also a class, with its source code, which nobody reads."""
    if not isinstance(what, tuple) or len(what) < 5 or what[0] != "storage" or not isinstance(what[1], Global):
        return Opaque(_kind(what[1]) if isinstance(what, tuple) and len(what) > 1 else "an object outside of the pickle")
    _, kind, key, _, count = what[:5]
    if type(count) is not int or count < 0:
        raise ValueError(f"a storage of {count!r:.80} elements")
    return find_storage(kind, str(key), count, what[5] if len(what) > 5 else None)
