"""Other layouts of the same weights: wrapped, prefixed, Hugging Face's, split attention; transformers is the reference."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference import content_id, random_sam
from safetensors.torch import save_file
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask
from samkit.sam import SAMError, load_model
from samkit.sam.weights.formats import to_sam_names

transformers = pytest.importorskip("transformers")


def hugging_face_sam(width=32, **vision):
    """A small SamModel with seeded weights that make masks worth comparing; `vision` as in SamVisionConfig.

    With a decoder as wide as SAM's, 256, ours takes its way of few tokens and many channels.
    """
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 128} | vision
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            image_size=128, window_size=3, global_attn_indexes=[1], output_channels=width, num_pos_feats=width // 2, **shape
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(hidden_size=width, image_size=128),
        mask_decoder_config=transformers.SamMaskDecoderConfig(hidden_size=width, mlp_dim=64),
    )
    model = transformers.SamModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = "rel_pos" in name or "pos_embed" in name or "positional" in name
            scale = 0.3 if wide else 0.1 if parameter.ndim == 1 or "layer_norm" in name else 0.2 * (32 / width) ** 0.5
            parameter.add_(torch.randn_like(parameter) * scale)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model


SHAPES = pytest.mark.parametrize(
    "vision", [{}, {"hidden_size": 28, "mlp_dim": 115}, {"num_hidden_layers": 5}], ids=["plain", "pruned", "deeper"]
)


@SHAPES
def test_a_hugging_face_sam_answers_as_transformers_does(tmp_path, vision):
    theirs = hugging_face_sam(**vision)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path / "model.safetensors", "fp32")
    image = make_image(60, 80)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), ours)
    box = {"x": 10, "y": 12, "width": 44, "height": 30}
    clicks = '[{"x": 30, "y": 25}, {"x": 50, "y": 40}]'
    _, _, scores, logits = PredictMask().execute(ours, embedding, clicks, bboxes=box, candidate="all", multimask="on")
    scale = torch.tensor(128 / 80)
    with torch.no_grad():
        features = theirs.get_image_embeddings(pixels_of(ours, image))
        expected = theirs(
            image_embeddings=features,
            input_points=torch.tensor([[[[30.0, 25.0], [50.0, 40.0]]]]) * scale,
            input_labels=torch.ones(1, 1, 2, dtype=torch.int),
            input_boxes=torch.tensor([[[10.0, 12.0, 54.0, 42.0]]]) * scale,
            multimask_output=True,
        )
    np.testing.assert_allclose(embedding, features.numpy(), atol=1e-4)
    order = expected.iou_scores[0, 0].argsort(descending=True)
    torch.testing.assert_close(logits[:, 0], expected.pred_masks[0, 0, order], atol=1e-3, rtol=0)
    np.testing.assert_allclose(scores, expected.iou_scores[0, 0, order], atol=1e-3)
    assert logits.std() > 0.05


FULL_SIZE = {
    "base": {},
    "SlimSAM-uniform-50": {"hidden_size": 384, "mlp_dim": 1536},
    "SlimSAM-uniform-77": {"hidden_size": 168, "mlp_dim": 696},
}


@pytest.mark.slow
@pytest.mark.parametrize("vision", FULL_SIZE.values(), ids=FULL_SIZE)
def test_at_full_size_it_answers_as_transformers_does(tmp_path, vision):
    torch.manual_seed(0)
    config = transformers.SamConfig(vision_config=transformers.SamVisionConfig(**vision).to_dict())
    theirs = transformers.SamModel(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(0, 0.3)
            elif parameter.ndim > 1 and not name.startswith(("prompt_encoder", "shared")):
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
        theirs.prompt_encoder.shared_embedding.positional_embedding.copy_(theirs.shared_image_embedding.positional_embedding)
    theirs.save_pretrained(tmp_path, max_shard_size="150MB")
    ours = load_model(tmp_path, "fp32")
    for width, height in ((640, 480), (500, 750)):
        image = make_image(height, width)
        (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), ours)
        box = {"x": 100, "y": 120, "width": 300, "height": 250}
        masks, _, scores, logits = PredictMask().execute(
            ours, embedding, '[{"x": 200, "y": 225}]', bboxes=box, candidate="all", multimask="on"
        )
        scale = torch.tensor([embedding.input_size[1] / width, embedding.input_size[0] / height])
        with torch.no_grad():
            features = theirs.get_image_embeddings(pixels_of(ours, image))
            expected = theirs(
                image_embeddings=features,
                input_points=torch.tensor([[[[200.0, 225.0]]]]) * scale,
                input_labels=torch.ones(1, 1, 1, dtype=torch.int),
                input_boxes=torch.tensor([[[100.0, 120.0, 400.0, 370.0]]]) * scale.repeat(2),
            )
        np.testing.assert_allclose(embedding, features.numpy(), atol=1e-4)
        order = expected.iou_scores[0, 0].argsort(descending=True)
        torch.testing.assert_close(logits[:, 0], expected.pred_masks[0, 0, order], atol=1e-3, rtol=0)
        np.testing.assert_allclose(scores, expected.iou_scores[0, 0, order], atol=1e-3)
        upscaled = ours.postprocess_masks(expected.pred_masks[0, 0, order, None], embedding.input_size, (height, width))
        assert (masks.bool() == (upscaled[:, 0] > 0)).float().mean() >= 0.9999
        assert logits.std() > 0.05 and features.std() > 0.5


def pixels_of(model, image):
    """What SamProcessor (PIL) gives: the long side at the model's size, normalised, padded with zeros."""
    from samkit.utils.images import resize_pil

    resized = torch.from_numpy(resize_pil(image, model.geometry(image.shape[:2]).resized)).permute(2, 0, 1)[None]
    return model.preprocess(resized.float())


def test_every_weight_of_a_hugging_face_sam_arrives(tmp_path):
    theirs = hugging_face_sam()
    names = to_sam_names(theirs.state_dict(), "model.safetensors")
    reference = random_sam(32, 3, 2, (1,), grid=8, window=3, out_chans=32, mlp_dim=64).state_dict()
    assert {name: value.shape for name, value in names.items()} == {name: value.shape for name, value in reference.items()}


def test_one_copy_of_the_shared_positions_is_enough(tmp_path):
    state = hugging_face_sam().state_dict()
    whole = to_sam_names(state, "a")
    for gone in ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"):
        part = to_sam_names({name: value for name, value in state.items() if name != gone}, "a")
        assert part.keys() == whole.keys()
    state["shared_image_embedding.positional_embedding"] = torch.zeros_like(
        state["shared_image_embedding.positional_embedding"]
    )
    with pytest.raises(SAMError, match="two different tensors for prompt_encoder.pe_layer"):
        to_sam_names(state, "a")


@pytest.mark.parametrize("prefix", ["", "module.", "sam.", "module.sam.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state"])
def test_wrapped_and_prefixed_fine_tunes_are_the_same_model(tiny_sam, tmp_path, prefix, wrapper):
    state = {prefix + name: value for name, value in tiny_sam.state_dict().items()}
    content = state if wrapper is None else {wrapper: state, "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(content, tmp_path / "tuned.pth")
    assert load_model(tmp_path / "tuned.pth").identity == content_id(tiny_sam)


def test_split_attention_weights_are_joined(tiny_sam, tmp_path):
    state = {}
    for name, value in tiny_sam.state_dict().items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("qkv", part)] = piece.clone()
        else:
            state[name] = value
    save_file(state, tmp_path / "split.safetensors")
    assert load_model(tmp_path / "split.safetensors").identity == content_id(tiny_sam)


def test_saved_pixel_constants_are_checked_and_dropped(tiny_sam, tmp_path):
    state = dict(tiny_sam.state_dict())
    state |= {"pixel_mean": tiny_sam.pixel_mean.clone(), "pixel_std": tiny_sam.pixel_std.clone()}
    torch.save(state, tmp_path / "saved.pth")
    assert load_model(tmp_path / "saved.pth").identity == content_id(tiny_sam)
    torch.save(state | {"pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(SAMError, match="other.pth normalizes pixels with pixel_mean"):
        load_model(tmp_path / "other.pth")


def test_an_adapter_beside_a_prefix_is_not_ignored(tiny_sam, tmp_path):
    state = {"sam." + name: value for name, value in tiny_sam.state_dict().items()} | {"adapter.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "adapted.pth")
    with pytest.raises(SAMError, match=r"unknown: 1; .*adapter.weight"):
        load_model(tmp_path / "adapted.pth")


def test_a_pickled_model_is_refused_with_what_to_use(tiny_sam, tmp_path):
    torch.save(tiny_sam, tmp_path / "SlimSAM-50.pth")
    with pytest.raises(
        SAMError, match=r"SlimSAM-50.pth was not loaded: it is a pickled model .*SlimSAM-uniform-50.safetensors"
    ):
        load_model(tmp_path / "SlimSAM-50.pth")


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("image_encoder.backbone.input_stem.op_list.0.conv.weight", "EfficientViT-SAM"),
        ("detector.backbone.vision_backbone.trunk.pos_embed", "a part of SAM 3 without the tracker"),
    ],
)
def test_relatives_are_named_with_what_to_use(tiny_sam, tmp_path, key, family):
    torch.save(dict(tiny_sam.state_dict()) | {key: torch.zeros(1, 32)}, tmp_path / "other.pth")
    with pytest.raises(SAMError, match=f"other.pth is a checkpoint of {family}, which this pack does not support: use "):
        load_model(tmp_path / "other.pth")
