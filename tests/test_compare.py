"""SAM Personalize's comparison by parts: clusters and matches against scipy, and what it finds."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from samkit.nodes.personalize import Personalize
from samkit.sam import METHODS, PersonalizeOptions, personalize
from samkit.sam.kernels.resemblance import color_distance, match, mean_color, parts_of
from scenes import make_pair
from scipy.spatial.distance import cdist
from train_demo_checkpoint import mask_iou


def unit(count, width=16, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_parts_are_the_clusters():
    centres = unit(4)
    local = torch.nn.functional.normalize(centres.repeat_interleave(20, 0) + 0.05 * unit(80, seed=1), dim=1)
    parts = parts_of(local, 4)
    nearest = (centres @ parts.T).amax(1)
    assert parts.shape == (4, 16) and bool((nearest > 0.99).all()), "every cluster is a part"
    assert parts_of(local[:2], 4).shape == (2, 16)


def test_a_match_is_the_mean_of_the_best_both_ways():
    one, other = unit(30, seed=2), unit(20, seed=3)
    similar = 1 - cdist(one.numpy(), other.numpy(), "cosine")
    assert match(one, other) == pytest.approx((similar.max(1).mean() + similar.max(0).mean()) / 2, abs=1e-5)
    assert match(one, one) == pytest.approx(1, abs=1e-5)
    assert match(one, one[:10]) < 0.9, "a part is not the whole"


def test_colors_are_compared_from_0_to_1():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 255
    top = np.arange(4)[:, None].repeat(4, 1) < 2
    assert color_distance(mean_color(image, top), mean_color(image, ~top)) == pytest.approx(1)
    assert color_distance(mean_color(image, top), mean_color(image, top)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_as_many_masks_as_frames(tiny_model, method):
    image, mask = as_image(make_image(60, 80)), torch.zeros(1, 60, 80)
    mask[:, 15:35, 20:45] = 1
    masks, scores, similarity, _ = Personalize().execute(tiny_model, image, mask, image.repeat(2, 1, 1, 1), method=method)
    assert masks.shape == similarity.shape == (2, 60, 80) and len(scores) == 2
    several = personalize(tiny_model, image, mask, image, PersonalizeOptions(max_objects=3, method=method))
    for i, one in enumerate(several.masks[0]):
        assert all((one & other).sum() <= 0.5 * min(one.sum(), other.sum()) for other in several.masks[0][:i])


def test_parts_and_color_find_what_the_most_similar_place_does_not(demo_model):
    """A pair that no figure was chosen by."""
    shown, other = make_pair(1_800_000_000)
    found = {}
    for method in ("persam", "parts and color"):
        mask = torch.from_numpy(shown.masks[-1:]).float()
        result = personalize(demo_model, [shown.image], mask, [other.image], PersonalizeOptions(method=method))
        found[method] = mask_iou(result.masks[0].any(0).numpy(), other.masks[-1])
    assert found["parts and color"] > 0.8, found
