"""One example, the same thing elsewhere: PerSAM against transformers' guided SamModel and against a direct computation."""

import pytest
import torch
from samkit.sam.decoders import decoder_for
from samkit.sam.fast_decoder import FastDecoder, Guidance
from samkit.sam.linear import AtenLinear
from test_formats import hugging_face_sam
from samkit.sam import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def theirs():
    return hugging_face_sam()


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return load_model(tmp_path / "model.safetensors")


def guidance_for(count, numbers):
    """Lively guidance: attention [count, 64], target [count, 32]."""
    attention = torch.rand(count, 64, generator=numbers) * 6
    return Guidance(attention, torch.randn(count, 32, generator=numbers))


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("masks", [False, True], ids=["points", "points and masks"])
@pytest.mark.parametrize(("count", "points"), [(1, 2), (5, 2), (3, 40)])
def test_guided_logits_are_transformers(theirs, ours, count, points, masks, multimask):
    numbers = torch.Generator().manual_seed(count)
    features = torch.randn(1, 32, 8, 8, generator=numbers)
    coords = torch.rand(count, points, 2, generator=numbers) * 128
    labels = torch.randint(0, 2, (count, points), generator=numbers)
    logits = torch.randn(1, 1, 32, 32, generator=numbers) * 5 if masks else None
    guidance = guidance_for(count, numbers)
    with torch.no_grad():
        expected = theirs(
            image_embeddings=features,
            input_points=coords[None],
            input_labels=labels[None],
            input_masks=logits,
            multimask_output=multimask,
            attention_similarity=guidance.attention[:, None, None],
            target_embedding=guidance.target[None, :, None],
        )
        sparse, dense = ours.prompt_encoder(points=(coords, labels), boxes=None, masks=logits)
        fast = decoder_for(ours, CPU)
        wanted = slice(1, None) if multimask else slice(0, 1)
        dense = dense.expand(count, -1, -1, -1) if masks else None
        picture = fast.look_at(features[0])
        found, scores, _ = fast(picture, sparse, dense, wanted, guidance=guidance)
        plain, _, _ = fast(picture, sparse, dense, wanted)
    torch.testing.assert_close(found, expected.pred_masks[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected.iou_scores[0], atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.1 and found.std() > 0.05, "guidance that changes nothing compares nothing"
