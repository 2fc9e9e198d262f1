"""PerSAM-F: its equations, re-derived from the paper and from what Personalize-SAM does, and segment_anything's predictor."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.personalize import Personalize
from samkit.sam import PersonalizeOptions, PredictOptions, SAMError, as_segmenter, encode
from samkit.sam.tasks.mixture import learn_mixture, mix, mixture_loss
from samkit.sam.tasks.personalize import _segment_mixed
from samkit.sam.tasks.predict import ImagePredictor, features_of
from segment_anything import SamPredictor

CPU = torch.device("cpu")


def loss_by_hand(logits, target, weights):
    """numpy, float64: mixture, dice loss with 1 added above and below, focal loss with alpha 0.25 and gamma 2."""
    first, second, third = logits
    mixed = (1 - weights[0] - weights[1]) * first + weights[0] * second + weights[1] * third
    p = 1 / (1 + np.exp(-mixed))
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    right = np.where(target == 1, p, 1 - p)
    focal = np.where(target == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    return dice + focal.mean()


def case(seed=0, size=24):
    numbers = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    target = ((rows - 12) ** 2 + (columns - 10) ** 2 < 60).astype(np.float64)
    part, whole = (columns < 10) * target, np.minimum(target + (rows > 18), 1)
    logits = [4 * (2 * mask - 1) + numbers.normal(0, 0.5, target.shape) for mask in (part, target, whole)]
    return np.stack(logits), target


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3), (0.9, -0.2), (0.0, 0.0)])
def test_the_loss_is_that_of_the_paper(weights):
    logits, target = case()
    ours = mixture_loss(mix(torch.from_numpy(logits), torch.tensor(weights, dtype=torch.float64)), torch.from_numpy(target))
    assert abs(float(ours) - loss_by_hand(logits, target, weights)) < 1e-9


def descent_by_hand(logits, target, epochs=1000):
    """AdamW (1e-3, eps 1e-4, decay 0.01) with a cosine from the first epoch to the last, gradients by differences."""
    weights, mean, square = np.full(2, 1 / 3), np.zeros(2), np.zeros(2)
    for epoch in range(epochs):
        rate = 1e-3 * (1 + np.cos(np.pi * epoch / epochs)) / 2
        steps = np.eye(2) * 1e-5
        gradient = np.array(
            [(loss_by_hand(logits, target, weights + s) - loss_by_hand(logits, target, weights - s)) / 2e-5 for s in steps]
        )
        weights = weights * (1 - rate * 0.01)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9 ** (epoch + 1)), square / (1 - 0.999 ** (epoch + 1))
        weights = weights - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-4)
    return weights


def test_the_weights_are_those_of_the_papers_descent():
    logits, target = case()
    ours = learn_mixture([(torch.from_numpy(logits).float(), torch.from_numpy(target).float())])
    expected = descent_by_hand(logits, target)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)
    assert expected[0] > 0.5, "the second candidate is the mask"


def test_several_examples_share_the_weights():
    (one, target), (two, _) = case(0), case(1)
    pairs = [(torch.from_numpy(logits).float(), torch.from_numpy(target).float()) for logits in (one, two)]
    both, alone = learn_mixture(pairs), learn_mixture(pairs[:1])
    again = learn_mixture([pairs[0], pairs[0]])
    assert torch.equal(again, alone) or (again - alone).abs().max() < 1e-4
    assert not torch.equal(both, alone)


def refined_by_predictor(sam, pixels, point, weights):
    """Personalize-SAM's inference: mixed logits give mask, box and mask prompt; twice the best of three."""
    predictor = SamPredictor(sam)
    predictor.set_image(pixels)
    coords, label, first = point[None], np.array([1]), 1 - sum(weights)
    high, _, low = predictor.predict(coords, label, multimask_output=True, return_logits=True)
    shares = np.array([first, *weights])[:, None, None]
    mask, logit = (high * shares).sum(0) > 0, (low * shares).sum(0)[None]
    for _ in range(2):
        rows, columns = np.nonzero(mask)
        box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        masks, scores, low = predictor.predict(coords, label, box=box[None], mask_input=logit, multimask_output=True)
        mask, logit = masks[scores.argmax()], low[scores.argmax()][None]
    return mask


@pytest.mark.parametrize("weights", [(0.2, 0.5), (1.0, 0.0), (-0.3, 0.9)])
def test_the_mask_is_that_of_segment_anythings_predictor(tiny_sam, tiny_model, weights):
    pixels, point = make_image(60, 80), np.array([30.0, 25.0])
    embedding = encode(tiny_model, [pixels])
    image = ImagePredictor(as_segmenter(tiny_model), features_of(embedding, 0, CPU), (60, 80), PredictOptions(multimask="on"))
    with torch.no_grad():
        ours = _segment_mixed(image, point, torch.tensor(weights)).numpy()
    theirs = refined_by_predictor(tiny_sam, pixels, point, weights)
    assert 0 < theirs.sum() < theirs.size and (ours != theirs).mean() < 1e-3


def test_the_node_takes_the_method(tiny_model):
    image, mask = as_image(make_image(60, 80)), torch.zeros(1, 60, 80)
    mask[:, 15:35, 20:45] = 1
    found = Personalize().execute(tiny_model, image, mask, image, method="persam-f")
    several = Personalize().execute(tiny_model, image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1), image, method="persam-f")
    assert found[0].shape == several[0].shape == (1, 60, 80)
    with pytest.raises(SAMError, match="method is 'other': choose one of persam, persam-f, parts, parts and color"):
        PersonalizeOptions(method="other")
