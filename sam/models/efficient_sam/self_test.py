"""Whether EfficientSAM's fast forwards are right on a device, by small models; see `kernels/self_test.py`."""

import torch

from ...kernels.plain_vit import FastPlainViT
from ...kernels.self_test import difference, linear_on, livelier, moved
from .decoder import DecoderShape, EfficientMaskDecoder, EfficientPromptEncoder, FastEfficientDecoder
from .encoder import PlainViT, PlainViTShape


def encoder_error(device: torch.device) -> float:
    """The largest difference between `FastPlainViT` on a device and the encoder's own forward on the CPU."""
    encoder = livelier(PlainViT(PlainViTShape(24, 2, 3, 48, 8, 11, 17, 8)).eval())
    pixels = torch.randn(2, 3, 88, 88)
    fast = FastPlainViT(moved(encoder, device), torch.float32, linear_on(device))
    return difference(fast(pixels.to(device)), encoder(pixels))


def decoder_error(device: torch.device) -> float:
    """The same of the decoder: `FastEfficientDecoder` beside `EfficientMaskDecoder.plainly`."""
    prompts = livelier(EfficientPromptEncoder(32, (8, 8), 128))
    decoder = livelier(EfficientMaskDecoder(DecoderShape(32, 2, 64, 2, 4, 8, 4, 2, 32, 2)).eval())
    features, sparse = torch.randn(32, 8, 8), torch.randn(3, 6, 32)
    logits, scores = decoder.plainly(features, prompts.get_dense_pe(), sparse)
    fast = FastEfficientDecoder(moved(decoder, device), moved(prompts, device), linear_on(device))
    ours = fast(fast.share(features.to(device)), sparse.to(device), None, slice(None))
    return max(difference(ours.logits, logits), difference(ours.scores, scores))
