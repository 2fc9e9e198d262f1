"""What a checkpoint may cost before it is known to be a SAM's."""

MOST_TENSORS = 10_000
"""Tensors in one checkpoint. SAM ViT-H has 594, and a trainer's file with the optimizer's state some three times as many."""

MOST_BYTES = 16 << 30
"""Bytes of one checkpoint, all its files. SAM ViT-H in float64, the largest there is, has 5.1 GB."""


def shortened(name: str) -> str:
    """A tensor's name for a message: a hostile one may have megabytes, or line breaks."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name[:100])
    return plain if len(name) <= 100 else f"{plain}..."
