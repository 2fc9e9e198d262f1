"""Whether the fast forwards are right on a device, found out by a small model where it is not known.

On CUDA GPUs they are. On CPUs oneDNN's layers, and threads of the pack's own, depend on the processor and the build of torch.
Elsewhere (Apple's MPS, Intel's XPU, DirectML) views with overlapping strides, in-place products and tensors of many dimensions
work in some versions of torch and are silently wrong in others.
"""

import copy
import functools
import logging
from collections.abc import Callable

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from .attention import attend_in_pieces, attend_with_bias
from .decoder import FastDecoder
from .encoder import FastEncoder
from .linear import AtenLinear, LinearKind, cpu_linear

log = logging.getLogger("samkit")

_KNOWN = ("cuda",)
_TOLERANCE = 1e-3  # of values about 1


def encoder_works_on(device: torch.device) -> bool:
    """Whether `FastEncoder` is right there."""
    return works_on(device, _encoder_error)


def decoder_works_on(device: torch.device) -> bool:
    """Whether `FastDecoder` is right there."""
    return works_on(device, _decoder_error)


def works_on(device: torch.device, error_on: Callable[[torch.device], float]) -> bool:
    """Whether a fast forward is right on a device, tried out once in a process.

    Args:
        device: where it is to run.
        error_on: its largest difference from the plain forward on the CPU, with random weights of a small model (`difference`).
    """
    return device.type in _KNOWN or _passes(error_on, str(device))


def linear_on(device: torch.device) -> LinearKind:
    """The layers that a fast forward in float32 has on a device."""
    return cpu_linear(torch.float32) if device.type == "cpu" else AtenLinear


@functools.cache
def _passes(error_on: Callable[[torch.device], float], device: str) -> bool:
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            error = error_on(torch.device(device))
    except (RuntimeError, TypeError, AttributeError) as reason:  # an operator that the device lacks
        log.info("SAM runs the plain forward on %s: %s", device, reason)
        return False
    if not error < _TOLERANCE:
        log.info("SAM runs the plain forward on %s: the fast one is wrong by %g there", device, error)
    return error < _TOLERANCE


def _encoder_error(device: torch.device) -> float:
    """The largest difference between the fast forward on the device and segment_anything's own on the CPU."""
    shape = {"img_size": 88, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "out_chans": 8}
    encoder = ImageEncoderViT(**shape, use_rel_pos=True, window_size=4, global_attn_indexes=(1,)).eval()
    images = torch.randn(2, 3, 88, 88)
    attend = attend_in_pieces if device.type == "cpu" else attend_with_bias
    fast = FastEncoder(moved(livelier(encoder), device), torch.float32, linear_on(device), attend)
    return difference(fast(images.to(device))[0], encoder(images))


def _decoder_error(device: torch.device) -> float:
    """The same of the decoder, with and without mask prompts."""
    prompts = PromptEncoder(32, (8, 8), (128, 128), 4)
    decoder = MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, 8, 64)).eval()
    features, sparse, dense = torch.randn(1, 32, 8, 8), torch.randn(3, 2, 32), torch.randn(3, 32, 8, 8)
    fast = FastDecoder(moved(livelier(decoder), device), moved(livelier(prompts), device), linear_on(device))
    shared, errors = fast.share(features[0].to(device)), []
    no_mask = prompts.no_mask_embed.weight.view(1, -1, 1, 1).expand(3, -1, 8, 8)
    for given in (None, dense):
        logits, _ = decoder.predict_masks(features, prompts.get_dense_pe(), sparse, no_mask if given is None else given)
        ours = fast(shared, sparse.to(device), None if given is None else given.to(device), slice(1, None))
        errors.append(difference(ours.logits, logits[:, 1:]))
    return max(errors)


def livelier(module: nn.Module) -> nn.Module:
    """With random values in all parameters: some begin as zeros, on which any arithmetic is right."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a module with its tensors on a device."""
    return copy.deepcopy(module).to(device)


def difference(ours: Tensor, expected: Tensor) -> float:
    """The largest difference of values from the expected ones, as a share of these' deviation."""
    return float((ours.cpu() - expected).abs().max() / expected.std())
