"""SAM 2 and 2.1 for images."""

from .model import SAM2Model, build_sam2

__all__ = ["SAM2Model", "build_sam2"]
