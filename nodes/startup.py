"""What the pack tells ComfyUI's server at start: which old nodes ours replace, and who has the ids that two packs share."""

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..utils.comfy import inside_comfyui
from .neighbours import settle
from .replacements import REPLACEMENTS

log = logging.getLogger("samkit")


def at_start(ours: Mapping[str, type]) -> None:
    """Register what has to be, in a ComfyUI whose server exists; elsewhere nothing.

    Args:
        ours: the pack's nodes by id.
    """
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is None or not inside_comfyui():
        return
    manager = getattr(instance, "node_replace_manager", None)
    if manager is not None:  # 0.3.64 has none
        register_replacements(manager)
    signal = getattr(getattr(instance, "app", None), "on_startup", None)
    if signal is not None and not signal.frozen:  # frozen where the pack is loaded into a server that runs already
        signal.append(_when_started(ours))  # by then every pack has been loaded


def register_replacements(manager: Any) -> None:
    """Hand all `REPLACEMENTS` to ComfyUI's manager."""
    from comfy_api.latest import io

    make = getattr(io, "NodeReplace", None)
    for one in REPLACEMENTS if make else ():
        manager.register(
            make(
                new_node_id=one.new,
                old_node_id=one.old,
                old_widget_ids=list(one.widgets),
                input_mapping=one.input_mapping,
                output_mapping=one.output_mapping,
            )
        )


def _when_started(ours: Mapping[str, type]) -> Any:
    async def started(_: Any) -> None:
        import nodes

        line = settle(nodes.NODE_CLASS_MAPPINGS, ours, _mappings())
        if line:
            log.warning("%s", line)

    return started


def _mappings() -> Iterator[Mapping[str, type]]:
    """The node mappings of every module; those that would be made by a lazy module are not touched."""
    for module in list(sys.modules.values()):
        mapping = getattr(module, "__dict__", {}).get("NODE_CLASS_MAPPINGS")
        if isinstance(mapping, Mapping):
            yield mapping
