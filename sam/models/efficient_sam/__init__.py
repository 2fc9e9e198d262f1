"""EfficientSAM (arXiv 2312.00863): a plain ViT that learned SAM's features, and a prompt encoder and decoder like SAM's."""

from .model import EfficientSAM, build_efficient_sam, is_efficient_sam

__all__ = ["EfficientSAM", "build_efficient_sam", "is_efficient_sam"]
