"""MobileSAM and Light HQ-SAM against their own modules (segment-anything-hq's), at full size: it has no other."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.embedding import GetSAMEmbedding
from samkit.nodes.predict import PredictMask
from samkit.sam import load_model
from samkit.sam.models.hq import HQMaskDecoder
from samkit.sam.models.tiny_vit import TinyViT
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

CLICK = '[{"x": 300, "y": 250}]'


@pytest.fixture(scope="module")
def light_hq():
    """sam-hq's own Light HQ-SAM with seeded weights, batch norm statistics included, and its predictor."""
    package = pytest.importorskip("segment_anything_hq", reason="sam-hq's package is not installed")
    torch.manual_seed(3)
    sam = package.sam_model_registry["vit_tiny"]()
    with torch.no_grad():
        for name, value in sam.named_parameters():
            if "attention_biases" in name:
                value.normal_(0, 0.5)
            elif name.startswith("mask_decoder") and value.ndim > 1:
                value.mul_(2)
            elif name.endswith("bn.weight"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                value.normal_(0, 0.1)
        for name, value in sam.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return sam.eval(), package.SamPredictor


def test_light_hq_answers_as_its_own_package_does(light_hq, tmp_path):
    sam, predictor_of = light_hq
    torch.save({"module." + name: value for name, value in sam.state_dict().items()}, tmp_path / "sam_vit_h_4b8939.pth")
    ours = load_model(tmp_path / "sam_vit_h_4b8939.pth", "fp32")
    assert isinstance(ours.image_encoder, TinyViT) and isinstance(ours.mask_decoder, HQMaskDecoder)
    image = make_image(480, 640)
    predictor = predictor_of(sam)
    predictor.set_image(image)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), ours)
    np.testing.assert_allclose(embedding, predictor.features.detach().numpy(), atol=1e-4)
    for multimask in (True, False):
        masks, scores, logits = predictor.predict(
            point_coords=np.array([[300.0, 250.0]]), point_labels=np.array([1]), multimask_output=multimask
        )
        found = PredictMask().execute(ours, embedding, CLICK, multimask="on" if multimask else "off")
        np.testing.assert_allclose(found[3][0], logits, atol=1e-3)
        np.testing.assert_allclose(found[2], scores, atol=1e-3)
        assert (found[0][0].numpy() == masks[0]).mean() >= 0.9999
        assert logits.std() > 0.05


def test_mobile_sam_answers_as_its_own_modules_do(light_hq, tmp_path):
    tiny = light_hq[0].image_encoder
    torch.manual_seed(4)
    rest = Sam(
        tiny,
        PromptEncoder(embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
    ).eval()
    with torch.no_grad():
        for value in rest.mask_decoder.parameters():
            value.mul_(2 if value.ndim > 1 else 1)
    torch.save(rest.state_dict(), tmp_path / "sam_vit_l_0b3195.pth")
    ours = load_model(tmp_path / "sam_vit_l_0b3195.pth", "fp32")
    image = make_image(480, 640)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(as_image(image), ours)
    found = PredictMask().execute(ours, embedding, CLICK, candidate="all")
    with torch.no_grad():
        points = torch.tensor([[[300.0, 250.0]]]) * 1.6, torch.ones(1, 1)
        sparse, dense = rest.prompt_encoder(points=points, boxes=None, masks=None)
        features, place = torch.from_numpy(np.array(embedding)), rest.prompt_encoder.get_dense_pe()
        logits, scores = rest.mask_decoder(features, place, sparse, dense, multimask_output=True)
    order = scores[0].argsort(descending=True)
    torch.testing.assert_close(found[3][:, 0], logits[0, order], atol=1e-3, rtol=0)
    assert logits.std() > 0.05
