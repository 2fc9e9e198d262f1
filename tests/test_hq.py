"""SAM-HQ against sam-hq's own predictor and against transformers' SamHQModel, each in its own layout."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference import content_id
from reference_hq import hugging_face_hq, sam_hq, upscale_what_came_out
from samkit.nodes.automask import AutoMask
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAMError, load_model
from samkit.sam.models.hq import HQMaskDecoder
from test_formats import pixels_of
from test_teach import check_taught
from test_train_decoder import check_trained

CLICK = '[{"x": 30, "y": 25}]'
ALL = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
BOX = {"x": 10, "y": 12, "width": 44, "height": 30}


@pytest.fixture(scope="module")
def theirs():
    return upscale_what_came_out(hugging_face_hq())


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return load_model((tmp_path / "model.safetensors").rename(tmp_path / "sam_vit_b_plain.safetensors"), "fp32")


def expected_of(theirs, ours, pixels, multimask):
    """transformers' logits and scores for a click, and for a box with a click."""
    scale = torch.tensor(128 / max(pixels.shape))
    features, early = theirs.get_image_embeddings(pixels_of(ours, pixels))
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
    pixels = make_image(60, 80)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(pixels), ours)
    options = {"candidate": "all", "multimask": "on" if multimask else "off"}
    for boxes, (features, masks, scores) in zip((None, BOX), expected_of(theirs, ours, pixels, multimask), strict=True):
        np.testing.assert_allclose(embedding, features.detach().numpy(), atol=1e-4)
        _, _, our_scores, logits = PredictMask().execute(ours, embedding, CLICK, bboxes=boxes, **options)
        torch.testing.assert_close(logits[:, 0], masks, atol=1e-3, rtol=0)
        np.testing.assert_allclose(our_scores, scores, atol=1e-3)
        assert logits.std() > 0.05


@pytest.mark.parametrize("size", [(60, 80), (45, 100)])
def test_it_answers_as_sam_hq_does(tmp_path, size):
    sam, predictor_of = sam_hq()
    torch.save(sam.state_dict(), tmp_path / "anything.pth")
    ours = load_model(tmp_path / "anything.pth", "fp32")
    pixels = make_image(*size)
    predictor = predictor_of(sam)
    predictor.set_image(pixels)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(pixels), ours)
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
    image = as_image(make_image(60, 80))
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
    image = as_image(make_image(60, 80))
    expected = Segment().execute(plain, image, CLICK, candidate="all")
    found = Segment().execute(ours, image, CLICK, candidate="all", hq=False)
    torch.testing.assert_close(found[3], expected[3], atol=1e-4, rtol=0)


def test_both_layouts_are_one_model(ours, tmp_path):
    torch.save({"module." + name: value for name, value in ours.state_dict().items()}, tmp_path / "sam_hq_vit_b.pth")
    again = load_model(tmp_path / "sam_hq_vit_b.pth", "fp32")
    assert isinstance(again.mask_decoder, HQMaskDecoder)
    assert content_id(again) == content_id(ours)


def test_the_embedding_carries_the_fine_features(ours):
    images = as_image(make_image(60, 80), make_image(60, 80, 1), make_image(60, 80, 2))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(images, ours)
    assert embedding.maps["fine"].shape == (3, 4, 32, 32) and embedding.maps["fine"].dtype == np.float32
    expected = PredictMask().execute(ours, embedding[1:2], CLICK)[3]
    for same in (pickle.loads(pickle.dumps(embedding)), copy.deepcopy(embedding), embedding.copy()):
        assert torch.equal(PredictMask().execute(ours, same[1:2], CLICK)[3], expected)
    assert torch.equal(Segment().execute(ours, images, CLICK)[3][1:2], expected)


def test_an_embedding_without_them_is_explained(ours):
    image = as_image(make_image(60, 80))
    (embedding,) = GetSAMEmbedding().get_sam_embedding(image, ours)
    bare = np.array(embedding)
    with pytest.raises(SAMError, match="lacks the fine features that SAM-HQ needs. .* turn hq off"):
        PredictMask().execute(ours, bare, CLICK, image=image)
    assert len(PredictMask().execute(ours, bare, CLICK, image=image, hq=False)[0]) == 1


def test_segment_everything_runs(ours):
    assert len(AutoMask().execute(ours, as_image(make_image(60, 80)), **ALL)[0]) >= 1


def test_segment_everything_is_plain_sams_where_hq_is_off(ours, plain):
    image = as_image(make_image(60, 80))
    fine, expected = (AutoMask().execute(model, image, **ALL) for model in (ours, plain))
    off = AutoMask().execute(ours, image, **ALL, hq=False)
    assert len(off[0]) == len(expected[0]) and (off[0] != expected[0]).float().mean() < 1e-4
    assert len(fine[0]) != len(off[0]) or (fine[0] != off[0]).any()


def test_it_can_be_taught(ours):
    check_taught(ours)


def test_a_trained_decoder_answers_what_it_knows(ours, tmp_path):
    check_trained(ours, tmp_path)
