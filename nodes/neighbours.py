"""The three node ids that this pack shares with the Art Venture pack: who has them, and how to choose."""

import os
from collections.abc import Iterable, Mapping, MutableMapping

from ..utils.comfy import pack_of

SHARED_IDS = ("AV_SAMLoader", "GetSAMEmbedding", "SAMEmbeddingToImage")
CHOICE = "SAMKIT_SHARED_NODES"
"""The environment variable: `samkit` gives the ids to this pack, `other` to the other one; else the last pack has them."""

_FIRST, _OWN = "AV_SAMLoader", "SAMKit_Segment"  # whoever has the second is a copy of this pack
_LACKS = (
    "Its loader does not list bundled checkpoints or those to download, and its embeddings lack the image size: connect the "
    "image to SAM Predict Mask as well."
)


def settle(
    registered: MutableMapping[str, type], ours: Mapping[str, type], mappings: Iterable[Mapping[str, type]]
) -> str | None:
    """Give the shared ids to the pack that `CHOICE` names, and say who has them.

    Args:
        registered: ComfyUI's nodes by id; the shared ones are changed where there is a choice.
        ours: this pack's.
        mappings: those of every module that has some, other packs' among them.

    Returns:
        One line for the log; None where no other pack has one of the ids.
    """
    others: dict[str, type] = {}
    for mapping in mappings:
        found = {name: node for name in SHARED_IDS if (node := mapping.get(name)) not in (None, ours[name])}
        if _OWN not in mapping:
            others |= found
        elif found and mapping is not registered and registered.get(_FIRST) is ours[_FIRST]:
            # Of two copies, the one that is used speaks.
            here, there = (pack_of(one[_FIRST]) or "samkit" for one in (ours, mapping))
            return f"SAM Kit is installed twice, in {here} and in {there}. {here} is used: remove the other one and restart."
    if not others:
        return None
    choice = os.environ.get(CHOICE, "").strip().lower()
    registered.update({"samkit": {name: ours[name] for name in others}, "other": others}.get(choice, {}))
    return _said(registered, ours, others)


def _said(registered: Mapping[str, type], ours: Mapping[str, type], others: Mapping[str, type]) -> str:
    name = next(iter(others))
    here, there = pack_of(ours[name]) or "samkit", pack_of(others[name]) or others[name].__module__
    wins = registered.get(name) is ours[name]
    used, unused, word = (here, there, "other") if wins else (there, here, "samkit")
    line = (
        f"Both {here} and {there} have the nodes {', '.join(others)}. Those of {used} are used. For those of {unused}, set the "
        f"environment variable {CHOICE}={word} and restart ComfyUI, or disable {used}."
    )
    return line if wins else f"{line} {_LACKS}"
