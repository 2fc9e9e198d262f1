"""Whether SAM 2's fast forwards are right on a device, by small models; see `kernels/self_test.py`."""

import torch
from segment_anything.modeling import TwoWayTransformer

from ...kernels.hiera import FastHiera
from ...kernels.memory_attention import FastMemoryAttention, Memories
from ...kernels.repvit import FastRepViT
from ...kernels.self_test import difference, linear_on, livelier, moved
from ...kernels.vit_det import FastViTDet
from .hiera import BlockShape, HieraShape, HieraSize, ImageEncoder
from .mask_decoder import FastSAM2Decoder, SAM2MaskDecoder, SAM2PromptEncoder
from .memory import MemoryAttention, rotations
from .repvit import RepViTEncoder, RepViTShape
from .vit_det import ViTDetEncoder, ViTDetShape, ViTDetSize


def encoder_error(device: torch.device) -> float:
    """The largest difference between `FastHiera` on a device and the encoder's own forward on the CPU.

    The windows of the third stage do not fit the grid, and its second block sees the whole image: all that the plan knows.
    """
    size = HieraSize("self-test", 1, (4, 2, 6, 3), (3,), 128)
    widths, blocks = (8, 16, 32, 32, 64), []
    for index, width in enumerate(widths):
        before, stage = widths[max(0, index - 1)], (0, 1, 2, 2, 3)[index]
        pools = index in (1, 2, 4)
        window = 0 if index == 3 else size.windows[stage - pools]
        blocks.append(BlockShape(before, width, 2 * width, 2, window, pools))
    shape = HieraShape(size, tuple(blocks), (0, 1, 3, 4), 2, 16)
    encoder, convolutions = livelier(ImageEncoder(shape).eval()), [torch.nn.Conv2d(16, width, 1) for width in (2, 4)]
    pixels, no_memory = torch.randn(2, 3, size.side, size.side), torch.randn(16)
    there = [moved(one, device) for one in convolutions]
    fast = FastHiera(moved(encoder, device), there, no_memory.to(device), torch.float32, linear_on(device))(pixels.to(device))
    fine, middle, image = encoder(pixels)
    plain = convolutions[0](fine), convolutions[1](middle), image + no_memory.view(1, -1, 1, 1)
    return max(difference(one, other) for one, other in zip(fast, plain, strict=True))


def repvit_error(device: torch.device) -> float:
    """The same of EdgeTAM's encoder, `FastRepViT`."""
    encoder = livelier(RepViTEncoder(RepViTShape((8, 8, 16, 16), (2, 2, 2, 1), (4, 4, 4, 4), 2, 16, 64)).eval())
    convolutions = [torch.nn.Conv2d(16, width, 1) for width in (2, 4)]
    pixels, no_memory = torch.randn(2, 3, 64, 64), torch.randn(16)
    there = [moved(one, device) for one in convolutions]
    fast = FastRepViT(moved(encoder, device), there, no_memory.to(device), torch.float32, linear_on(device))(pixels.to(device))
    fine, middle, image = encoder(pixels)
    plain = convolutions[0](fine), convolutions[1](middle), image + no_memory.view(1, -1, 1, 1)
    return max(difference(one, other) for one, other in zip(fast, plain, strict=True))


def vit_det_error(device: torch.device) -> float:
    """The same of SAM 3's encoder, `FastViTDet`: windows, then the whole image."""
    shape = ViTDetShape(ViTDetSize(2, 3, (1,), 6), width=16, depth=2, hidden=24, patch=4, places=5, channels=16)
    encoder = livelier(ViTDetEncoder(shape).eval())
    convolutions = [torch.nn.Conv2d(16, width, 1) for width in (2, 4)]
    pixels, no_memory = torch.randn(2, 3, shape.side, shape.side), torch.randn(16)
    there = [moved(one, device) for one in convolutions]
    fast = FastViTDet(moved(encoder, device), there, no_memory.to(device), torch.float32, linear_on(device))(pixels.to(device))
    fine, middle, image = encoder(pixels)
    plain = convolutions[0](fine), convolutions[1](middle), image + no_memory.view(1, -1, 1, 1)
    return max(difference(one, other) for one, other in zip(fast, plain, strict=True))


def decoder_error(device: torch.device) -> float:
    """The same of the decoder: `FastSAM2Decoder` beside `SAM2MaskDecoder.plainly`, with and without mask prompts."""
    prompts = livelier(SAM2PromptEncoder(32, (8, 8), (128, 128), 4))
    options = {"num_multimask_outputs": 3, "iou_head_depth": 3, "iou_head_hidden_dim": 32}
    transformer = TwoWayTransformer(2, 32, 8, 1)
    decoder = livelier(SAM2MaskDecoder(mlp_dim=64, transformer_dim=32, transformer=transformer, **options)).eval()
    features, finer = torch.randn(32, 8, 8), (torch.randn(4, 32, 32), torch.randn(8, 16, 16))
    sparse, dense, errors = torch.randn(3, 2, 32), torch.randn(3, 32, 8, 8), []
    fast = FastSAM2Decoder(moved(decoder, device), moved(prompts, device), linear_on(device))
    shared = fast.share(features.to(device), tuple(one.to(device) for one in finer))
    no_mask = prompts.no_mask_embed.weight.view(1, -1, 1, 1)
    for given in (None, dense):
        plain = decoder.plainly(features, finer, prompts.get_dense_pe(), sparse, no_mask if given is None else given)
        ours = fast.decode(shared, sparse.to(device), None if given is None else given.to(device), several=True)
        errors += [difference(ours.logits, plain[0][:, 1:]), difference(ours.scores, plain[1][:, 1:])]
        errors.append(difference(ours.object_scores, plain[2]))
    return max(errors)


def memory_error(device: torch.device) -> float:
    """The same of the memory attention, `FastMemoryAttention`: two objects, tokens that are turned and others."""
    attention, grid = livelier(MemoryAttention(16, 4, 2, 24).eval()), (6, 8)
    turns, tokens, memories = rotations(16, grid, torch.device("cpu")), torch.randn(48, 16), []
    for maps, pointers in ((1, 0), (2, 3)):
        values, places = torch.randn(2, 48 * maps + pointers, 4)
        memories.append(Memories(values, places, 48 * maps, *turns))
    there = [Memories(*(part.to(device) if isinstance(part, torch.Tensor) else part for part in one)) for one in memories]
    fast = FastMemoryAttention(moved(attention, device), linear_on(device))
    found = fast(tokens.to(device), there, *(values.to(device) for values in turns))
    plain = attention(tokens, memories, *turns)
    return max(difference(one, other) for one, other in zip(found, plain, strict=True))
