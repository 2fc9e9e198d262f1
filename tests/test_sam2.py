"""SAM 2 against transformers' `Sam2Model` with the same weights, on its own processor's pixels."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_picture
from reference_sam2 import BASE_PLUS, SMALL, SMALL_SIDE, TINY, processor, random_sam2
from safetensors.torch import save_file
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import Prompt, decode, encode, load_model
from samkit.sam.kernels.decoder import Guidance
from samkit.sam.kernels.linear import AtenLinear
from samkit.sam.models import hiera
from samkit.sam.models.base import Features, Wanted
from samkit.sam.models.sam2 import SAM2Model
from samkit.sam.models.sam2_decoder import is_stable
from samkit.sam.prompts import to_model_frame
from samkit.sam.tasks.predict import PredictOptions

SMALL_SIZE = hiera.HieraSize("small test", 1, (8, 4, 6, 3), (4,), SMALL_SIDE)
SIZES = [(480, 640), (333, 1000), (1024, 1024)]
NOTHING = np.zeros((0, 2)), np.zeros(0, np.int32)


@pytest.fixture(scope="module", autouse=True)
def small_size():
    """The small configuration joins the table of sizes, whose windows and global blocks are in no weight's shape."""
    hiera.SIZES[16, 8] = SMALL_SIZE
    yield
    del hiera.SIZES[16, 8]


class Pair:
    """The same weights in transformers' class and in the pack's, and transformers' answers."""

    def __init__(self, folder, config, side=1024, channels=256):
        self.theirs, self.side = random_sam2(config, side, channels), side
        self.state = self.theirs.state_dict()
        self.path = folder / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in self.state.items()}, self.path)
        self.ours = load_model(self.path)

    def maps(self, picture):
        pixels = processor(self.side)(picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return self.theirs.get_image_embeddings(pixels)

    def answers(self, maps, prompts, multimask):
        """Logits [n, W, 4h, 4w] and scores [n, W] of prompts of one shape, given in pixels of the source."""
        scaled = {}
        scale = torch.tensor([self.side / prompts["size"][1], self.side / prompts["size"][0]])
        if "points" in prompts:
            scaled["input_points"] = (torch.tensor(prompts["points"]) * scale).float()[None]
            scaled["input_labels"] = torch.tensor(prompts["labels"])[None]
        if "boxes" in prompts:
            boxes = torch.tensor(prompts["boxes"]).view(-1, 2, 2) * scale
            scaled["input_boxes"] = boxes.view(1, -1, 4).float()
        if "masks" in prompts:
            scaled["input_masks"] = prompts["masks"]
        with torch.no_grad():
            found = self.theirs(image_embeddings=maps, multimask_output=multimask, **scaled)
        return found.pred_masks[0], found.iou_scores[0], found.object_score_logits[0, :, 0]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("small"), SMALL, SMALL_SIDE, 64)


def points_of(height, width, count, per_object, seed=3):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, per_object, 2)) * [width, height]
    return points, rng.integers(0, 2, (count, per_object)) if per_object > 1 else np.ones((count, 1), np.int64)


def cases(height, width):
    one, label = points_of(height, width, 1, 1)
    several, labels = points_of(height, width, 1, 4)
    many, ones = points_of(height, width, 64, 1)
    box = np.array([[0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height]])
    size = {"size": (height, width)}
    return {
        "one point": {"points": one, "labels": label, **size},
        "points of both signs": {"points": several, "labels": labels, **size},
        "a box": {"boxes": box, **size},
        "a box and points": {"boxes": box, "points": several, "labels": labels, **size},
        "64 points": {"points": many, "labels": ones, **size},
    }


CASES = list(cases(10, 10))


def as_prompts(case):
    count = len(case["points"] if "points" in case else case["boxes"])
    points = list(zip(case["points"], case["labels"].astype(np.int32), strict=True)) if "points" in case else [NOTHING] * count
    boxes = case.get("boxes", [None] * count)
    masks = case.get("masks", [None] * count)
    return [Prompt(*points[i], boxes[i], masks[i]) for i in range(count)]


def decoded(model, embedding, prompts, several, **wanted):
    """What `decode` is made of, without the choice among candidates."""
    maps = {"image": embedding.view(np.ndarray)[0]} | {name: values[0] for name, values in embedding.maps.items()}
    features = Features(maps, embedding.image_keys[0], torch.device("cpu"))
    frame = model.frame(embedding.original_size)
    return model.decode(features, to_model_frame(prompts, frame, torch.device("cpu")), Wanted(several, **wanted))


def compare(pair, picture, names=CASES):
    """Maps, logits, scores and masks of every kind of prompt, once with candidates and once with the single mask."""
    embedding = encode(pair.ours, [picture])
    maps = pair.maps(picture)
    fine, middle, image = (part[0].numpy() for part in maps)
    expected = {"high_res_0": fine, "high_res_1": middle}
    np.testing.assert_allclose(embedding[0], image, atol=1e-3, rtol=0)
    for name, values in expected.items():
        np.testing.assert_allclose(embedding.maps[name][0], values, atol=1e-3, rtol=0)
    for name in names:
        case = cases(*picture.shape[:2])[name]
        for multimask in (True, False):
            first = compare_case(pair, embedding, maps, case, multimask)
            if len(first) == 1:  # transformers takes one mask for all objects of an image
                again = {**case, "masks": first[:, :1]}
                compare_case(pair, embedding, maps, again, multimask)


def compare_case(pair, embedding, maps, case, multimask):
    logits, scores, objects = pair.answers(maps, case, multimask)
    prompts = as_prompts(case)
    found = decoded(pair.ours, embedding, prompts, multimask)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.logits, logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.object_scores, objects, atol=1e-3, rtol=0)
    assert logits.std() > 0.1, "trivial logits compare nothing"
    compare_masks(pair, embedding, case, logits, scores, multimask)
    return logits


def compare_masks(pair, embedding, case, logits, scores, multimask):
    options = PredictOptions(candidate="all", multimask="on" if multimask else "off")
    masks = decode(pair.ours, embedding, [as_prompts(case)[:4]], options).masks[0]
    (full,) = processor(pair.side).post_process_masks([logits[:4]], [case["size"]])
    order = scores[:4].argsort(descending=True, stable=True)
    wanted = torch.cat([rows[ranks] for rows, ranks in zip(full, order, strict=True)])
    assert not multimask or 0.01 < wanted.float().mean() < 0.99, "trivial masks compare nothing"
    assert (masks != wanted).float().mean() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(60, 80), (41, 125), (128, 128)])
@pytest.mark.parametrize("case", CASES)
def test_a_small_model_equals_transformers(small, case, height, width):
    compare(small, make_picture(height, width), [case])


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, BASE_PLUS], ids=["tiny", "base+"])
def test_a_full_size_model_equals_transformers(config, tmp_path):
    pair = Pair(tmp_path, config)
    for height, width in SIZES:
        compare(pair, make_picture(height, width))
