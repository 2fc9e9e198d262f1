"""Every kind of checkpoint loads under a name that says something else, and is what its weights say."""

import pytest
import reference_hq
import torch
from reference import random_sam
from safetensors.torch import save_file
from samkit.sam import load_model
from samkit.sam.models.hq import HQMaskDecoder
from samkit.sam.models.tiny_vit import TinyViT
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from test_formats import hugging_face_sam

SMALL = {"embed_dim": 32, "depth": 3, "heads": 2, "global_blocks": (1,), "grid": 8, "window": 3, "out_chans": 32, "mlp_dim": 64}
PRUNED = SMALL | {"embed_dim": 28, "mlp_ratio": 115.5 / 28}


def meta():
    return random_sam(**SMALL).state_dict()


def slim_with_split_attention():
    state = {}
    for name, value in random_sam(**PRUNED).state_dict().items():
        if ".attn.qkv." in name:
            state |= {name.replace("qkv", part): piece.clone() for part, piece in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[name] = value
    return state


def sam_model():
    return hugging_face_sam().state_dict()


def slim_sam_model():
    return hugging_face_sam(hidden_size=28, mlp_dim=115).state_dict()


def hugging_face_hq():
    return reference_hq.hugging_face_hq().state_dict()


def sam_hq():
    return reference_hq.sam_hq()[0].state_dict()


def light_hq():
    package = pytest.importorskip("segment_anything_hq", reason="sam-hq's package is not installed")
    return package.sam_model_registry["vit_tiny"]().state_dict()


def mobile_sam():
    encoder = {name: value for name, value in light_hq().items() if name.startswith("image_encoder.")}
    rest = Sam(
        torch.nn.Identity(),
        PromptEncoder(embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
    )
    return encoder | rest.state_dict()


# name of the kind: its state dict, how it is saved, the file's misleading name, and what it must turn out to be
FORMATS = {
    "Meta's": (meta, "torch", "mobile_sam.pt", (ImageEncoderViT, MaskDecoder, 32)),
    "Meta's as safetensors": (meta, "safetensors", "sam_hq_vit_h.safetensors", (ImageEncoderViT, MaskDecoder, 32)),
    "a wrapped, prefixed fine-tune": (meta, "wrapped", "sam2_hiera_large.pt", (ImageEncoderViT, MaskDecoder, 32)),
    "SlimSAM, split attention": (
        slim_with_split_attention,
        "torch",
        "sam_vit_h_4b8939.pth",
        (ImageEncoderViT, MaskDecoder, 28),
    ),
    "SamModel": (
        lambda: hugging_face_sam().state_dict(),
        "safetensors",
        "vit_l.safetensors",
        (ImageEncoderViT, MaskDecoder, 32),
    ),
    "SamModel, pruned": (
        lambda: hugging_face_sam(hidden_size=28, mlp_dim=115).state_dict(),
        "safetensors",
        "sam-vit-huge.safetensors",
        (ImageEncoderViT, MaskDecoder, 28),
    ),
    "SamHQModel": (hugging_face_hq, "safetensors", "sam_vit_b_01ec64.safetensors", (ImageEncoderViT, HQMaskDecoder, 32)),
    "SAM-HQ": (sam_hq, "wrapped", "medsam.pth", (ImageEncoderViT, HQMaskDecoder, 32)),
    "MobileSAM": (mobile_sam, "torch", "sam_vit_l_0b3195.pth", (TinyViT, MaskDecoder, None)),
    "Light HQ-SAM": (light_hq, "torch", "SlimSAM-uniform-77.pth", (TinyViT, HQMaskDecoder, None)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_what_its_weights_say(kind, tmp_path):
    make, how, name, (encoder, decoder, width) = FORMATS[kind]
    state = {key: value.contiguous() for key, value in make().items()}
    if how == "safetensors":
        save_file({key: value.clone() for key, value in state.items()}, tmp_path / name)
    else:
        prefixed = {"module." + key: value for key, value in state.items()}
        torch.save({"state_dict": prefixed, "epoch": 7} if how == "wrapped" else state, tmp_path / name)
    model = load_model(tmp_path / name, "fp32")
    assert type(model.image_encoder) is encoder and type(model.mask_decoder) is decoder
    if width is not None:
        assert model.image_encoder.pos_embed.shape[-1] == width
    assert not any(value.is_meta for value in model.state_dict().values())
