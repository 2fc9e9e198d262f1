"""Content hashes of a model's parts, computed once and again when their weights have changed."""

import threading
import weakref
from collections.abc import Mapping

from torch import nn

from .weights import content_hash, original_of, state_of


class Identities:
    """Hashes by the module that stands for them; a module that is gone takes its hash with it."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def of(self, module: nn.Module, parts: Mapping[str, nn.Module], where: str) -> str:
        """The content hash of `parts`, wherever they are and whatever file they came from.

        Args:
            module: the part under which the hash is cached.
            parts: name to module; `module` is among them.
            where: what the weights belong to, for messages.

        Raises:
            SAMError: a weight is NaN or infinite.
        """
        state = tuple(state_of(part).content for part in parts.values())
        known = self._known.get(module)
        if known is None or known[0] != state:
            with self._lock:
                named = {
                    f"{name}.{key}": original_of(tensor)
                    for name, part in parts.items()
                    for key, tensor in part.state_dict(keep_vars=True).items()
                }
                known = self._known[module] = state, content_hash(named, where)
        return known[1]
