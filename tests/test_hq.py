"""SAM-HQ against sam-hq's own predictor and against transformers' SamHQModel, each in its own layout."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from conftest import as_image, make_picture
from samkit.nodes.automask import AutoMask
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAMError, identity_of, load_model
from samkit.sam.models.hq import HQMaskDecoder
from test_formats import pixels_of
from test_teach import check_taught
from test_train_decoder import check_trained

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "SamHQModel"):
    pytest.skip("this transformers has no SamHQModel to compare with", allow_module_level=True)

CLICK = '[{"x": 30, "y": 25}]'
ALL = {"points_per_side": 4, "pred_iou_thresh": -1.0, "stability_score_thresh": 0.0}
BOX = {"x": 10, "y": 12, "width": 44, "height": 30}


def hugging_face_hq(**vision):
    """A small SamHQModel with seeded weights that make masks worth comparing; two global blocks, of which the first counts."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 128} | vision
    config = transformers.SamHQConfig(
        vision_config=transformers.SamHQVisionConfig(
            image_size=128, window_size=3, global_attn_indexes=[1, 3], output_channels=32, num_pos_feats=16, **shape
        ),
        prompt_encoder_config=transformers.SamHQPromptEncoderConfig(hidden_size=32, image_size=128),
        mask_decoder_config=transformers.SamHQMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, vit_dim=shape["hidden_size"], iou_head_hidden_dim=40
        ),
    )
    model = transformers.SamHQModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = "rel_pos" in name or "pos_embed" in name or "positional" in name
            scale = 0.3 if wide else 0.1 if parameter.ndim == 1 or "layer_norm" in name else 0.2
            parameter.add_(torch.randn_like(parameter) * scale)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model


def upscale_what_came_out(model):
    """transformers 5.23 upscales the image tokens that went into its two-way transformer, not those that came out.

    sam-hq's `src = src.transpose(1, 2).view(b, c, h, w)` has no counterpart there. This puts them where it takes them from.
    """

    def write(_, __, inputs, outputs):
        image = inputs["image_embeddings"]
        image.copy_(outputs[1][0].transpose(1, 2).reshape(image.shape).transpose(2, 3))

    model.mask_decoder.transformer.register_forward_hook(write, with_kwargs=True)
    return model


@pytest.fixture(scope="module")
def theirs():
    return upscale_what_came_out(hugging_face_hq())


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return load_model((tmp_path / "model.safetensors").rename(tmp_path / "sam_vit_b_plain.safetensors"), "fp32")


def expected_of(theirs, ours, picture, multimask):
    """transformers' logits and scores for a click, and for a box with a click."""
    scale = torch.tensor(128 / max(picture.shape))
    features, early = theirs.get_image_embeddings(pixels_of(ours, picture))
    point = {"input_points": torch.tensor([[[[30.0, 25.0]]]]) * scale, "input_labels": torch.ones(1, 1, 1, dtype=torch.int)}
    box = {"input_boxes": torch.tensor([[[10.0, 12.0, 54.0, 42.0]]]) * scale}
    for more in ({}, box):
        with torch.no_grad():
            found = theirs(
                image_embeddings=features, intermediate_embeddings=early, **point, **more, multimask_output=multimask
            )
        yield features, found.pred_masks[0, 0], found.iou_scores[0, 0]


@pytest.mark.parametrize("multimask", [True, False])
def test_it_answers_as_transformers_does(theirs, ours, multimask):
    picture = make_picture(60, 80)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(picture), ours)
    options = {"candidate": "all", "multimask": "on" if multimask else "off"}
    for boxes, (features, masks, scores) in zip((None, BOX), expected_of(theirs, ours, picture, multimask), strict=True):
        np.testing.assert_allclose(embedding, features.detach().numpy(), atol=1e-4)
        _, _, our_scores, logits = PredictMask().execute(ours, embedding, CLICK, bboxes=boxes, **options)
        torch.testing.assert_close(logits[:, 0], masks, atol=1e-3, rtol=0)
        np.testing.assert_allclose(our_scores, scores, atol=1e-3)
        assert logits.std() > 0.05


def sam_hq():
    """sam-hq's own Sam, small, with seeded weights that make masks worth comparing."""
    package = pytest.importorskip("segment_anything_hq", reason="sam-hq's package is not installed")
    parts = package.modeling
    torch.manual_seed(1)
    sam = parts.Sam(
        parts.ImageEncoderViT(
            img_size=128, embed_dim=32, depth=4, num_heads=2, out_chans=32, window_size=3, global_attn_indexes=(1, 3),
            use_rel_pos=True, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        parts.PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16),
        parts.MaskDecoderHQ(
            num_multimask_outputs=3, transformer_dim=32, vit_dim=32,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8),
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            wide = "rel_pos" in name or "pos_embed" in name
            parameter.add_(torch.randn_like(parameter) * (0.3 if wide else 0.1 if parameter.ndim == 1 else 0.2))
    return sam.eval(), package.SamPredictor


@pytest.mark.parametrize("size", [(60, 80), (45, 100)])
def test_it_answers_as_sam_hq_does(tmp_path, size):
    sam, predictor_of = sam_hq()
    torch.save(sam.state_dict(), tmp_path / "anything.pth")
    ours = load_model(tmp_path / "anything.pth", "fp32")
    picture = make_picture(*size)
    predictor = predictor_of(sam)
    predictor.set_image(picture)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(picture), ours)
    np.testing.assert_allclose(embedding, predictor.features.detach().numpy(), atol=1e-4)
    point = {"point_coords": np.array([[30.0, 25.0]]), "point_labels": np.array([1])}
    for multimask in (True, False):
        for boxes, box in ((None, None), (BOX, np.array([10.0, 12.0, 54.0, 42.0]))):
            masks, scores, logits = predictor.predict(**point, box=box, multimask_output=multimask)
            found = PredictMask().execute(ours, embedding, CLICK, bboxes=boxes, multimask="on" if multimask else "off")
            np.testing.assert_allclose(found[3][0], logits, atol=1e-3)
            np.testing.assert_allclose(found[2], scores, atol=1e-3)
            assert (found[0][0].numpy() == masks[0]).mean() >= 0.9999 and logits.std() > 0.05


def test_the_fine_masks_differ_from_plain_sams(ours):
    image = as_image(make_picture(60, 80))
    fine = Segment().execute(ours, image, CLICK)[3]
    plain = Segment().execute(ours, image, CLICK, hq=False)[3]
    assert (fine - plain).abs().max() > 0.1


@pytest.fixture
def plain(ours, tmp_path):
    """The plain SAM of the same weights."""
    extra = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
    state = {k: v for k, v in ours.state_dict().items() if not any(f"mask_decoder.{name}" in k for name in extra)}
    torch.save(state, tmp_path / "plain.pth")
    return load_model(tmp_path / "plain.pth", "fp32")


def test_off_it_is_the_plain_sam_of_the_same_weights(ours, plain):
    image = as_image(make_picture(60, 80))
    expected = Segment().execute(plain, image, CLICK, candidate="all")
    found = Segment().execute(ours, image, CLICK, candidate="all", hq=False)
    torch.testing.assert_close(found[3], expected[3], atol=1e-4, rtol=0)


def test_both_layouts_are_one_model(ours, tmp_path):
    torch.save({"module." + name: value for name, value in ours.state_dict().items()}, tmp_path / "sam_hq_vit_b.pth")
    again = load_model(tmp_path / "sam_hq_vit_b.pth", "fp32")
    assert isinstance(again.mask_decoder, HQMaskDecoder)
    assert identity_of(again) == identity_of(ours)


def test_the_embedding_carries_the_fine_features(ours):
    images = as_image(make_picture(60, 80), make_picture(60, 80, 1), make_picture(60, 80, 2))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(images, ours)
    assert embedding.maps["fine"].shape == (3, 4, 32, 32) and embedding.maps["fine"].dtype == np.float32
    expected = PredictMask().execute(ours, embedding[1:2], CLICK)[3]
    for same in (pickle.loads(pickle.dumps(embedding)), copy.deepcopy(embedding), embedding.copy()):
        assert torch.equal(PredictMask().execute(ours, same[1:2], CLICK)[3], expected)
    assert torch.equal(Segment().execute(ours, images, CLICK)[3][1:2], expected)


def test_an_embedding_without_them_is_explained(ours):
    image = as_image(make_picture(60, 80))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, ours)
    bare = np.array(embedding)
    with pytest.raises(SAMError, match="lacks the fine features that SAM-HQ needs. .* turn hq off"):
        PredictMask().execute(ours, bare, CLICK, image=image)
    assert len(PredictMask().execute(ours, bare, CLICK, image=image, hq=False)[0]) == 1


def test_segment_everything_runs(ours):
    assert len(AutoMask().execute(ours, as_image(make_picture(60, 80)), **ALL)[0]) >= 1


def test_segment_everything_is_plain_sams_where_hq_is_off(ours, plain):
    image = as_image(make_picture(60, 80))
    fine, expected = (AutoMask().execute(model, image, **ALL) for model in (ours, plain))
    off = AutoMask().execute(ours, image, **ALL, hq=False)
    assert len(off[0]) == len(expected[0]) and (off[0] != expected[0]).float().mean() < 1e-4
    assert len(fine[0]) != len(off[0]) or (fine[0] != off[0]).any()


def test_it_can_be_taught(ours):
    check_taught(ours)


def test_a_trained_decoder_answers_what_it_knows(ours, tmp_path):
    check_trained(ours, tmp_path)
