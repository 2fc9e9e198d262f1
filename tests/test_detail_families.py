"""Second looks by every family of models, on images and on films: small configurations with random weights."""

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from reference_sam2 import SMALL, SMALL_SIDE
from reference_sam3 import SMALL as SMALL_SAM3
from reference_sam3 import SMALL_GRID
from reference_sam3 import SMALL_SIDE as SMALL_SAM3_SIDE
from reference_track import SMALL_CHANNELS
from samkit.nodes.predict import Segment
from samkit.nodes.track import TrackObjects
from samkit.sam import Prompt, decode, encode
from samkit.sam.geometry import View, cut_around
from samkit.sam.kernels.views import resampled
from samkit.sam.models.sam2 import hiera, vit_det
from samkit.sam.tasks import detail as second
from test_devices import model  # noqa: F401  a fixture
from test_edgetam import SIDE, EdgeFilmPair
from test_edgetam import SMALL as SMALL_BODY
from test_sam3 import Sam3Pair
from test_track import Pair

HEIGHT, WIDTH = 480, 640
BOX = 280, 180, 320, 220
FRAMES = [make_image(HEIGHT, WIDTH, seed) for seed in (0, 1)]
FAMILIES = "SAM", "SAM-HQ", "MobileSAM", "SAM 2", "EfficientSAM", "EdgeTAM"


@pytest.fixture(autouse=True)
def any_object(monkeypatch):
    """Random weights do not find one object twice: whatever a second look sees is taken."""
    monkeypatch.setattr(second, "_SAME_OBJECT", -9.0)
    monkeypatch.setattr(second, "_SAME_SMALL_OBJECT", -9.0)


@pytest.fixture
def sam3(tmp_path, monkeypatch):
    monkeypatch.setitem(vit_det.SIZES, (32, 4), vit_det.ViTDetSize(2, 4, (1, 3), SMALL_GRID))
    return Sam3Pair(tmp_path, SMALL_SAM3, SMALL_SAM3_SIDE, 64).ours


@pytest.fixture(params=["SAM 2", "EdgeTAM"])
def with_memory(request, tmp_path, monkeypatch):
    if request.param == "EdgeTAM":
        monkeypatch.setattr("samkit.sam.models.sam2.repvit._SIDE", SIDE)
        return EdgeFilmPair(tmp_path, SIDE, 128, **SMALL_BODY).ours
    monkeypatch.setitem(hiera.SIZES, (16, 8), hiera.HieraSize("small test", 1, (8, 4, 6, 3), (4,), SMALL_SIDE))
    return Pair(tmp_path, SMALL, SMALL_SIDE, SMALL_CHANNELS).ours


def counted(monkeypatch, network):
    """How many images a model encodes from now on, one call after the other."""
    counts, features = [], type(network).features

    def counting(one, pixels, dtype):
        counts.append(len(pixels))
        return features(one, pixels, dtype)

    monkeypatch.setattr(type(network), "features", counting)
    return counts


def check_image(network, monkeypatch):
    """Off is `decode`; a second look costs an encoding, and is what the model says of the cut, prompted by box and mask."""
    image, counts = FRAMES[0], counted(monkeypatch, network)
    off = Segment().execute(network, as_image(image), bboxes=BOX, detail="off")
    assert sum(counts) == 1
    whole = decode(network, encode(network, [image]), [[Prompt(box=np.array(BOX, float))]])
    assert torch.equal(off[0], whole.masks[0].float()) and torch.equal(off[3], whole.logits[0])
    counts.clear()
    found = Segment().execute(network, as_image(image), bboxes=BOX, detail="1")
    assert sum(counts) == 1, "the image is in the cache"
    x1, y1, x2, y2 = window = cut_around(BOX, (HEIGHT, WIDTH), max(network.geometry((HEIGHT, WIDTH)).grid))
    views = (View(one, network.geometry((one[3] - one[1], one[2] - one[0]))) for one in ((0, 0, WIDTH, HEIGHT), window))
    logits = resampled(off[3][0], *views, -10.0)
    takes_it = getattr(network, "takes_masks", True) and bool((logits > 0).any())
    prompt = Prompt(box=np.array(BOX, float) - [x1, y1, x1, y1], logits=logits if takes_it else None)
    alone = decode(network, encode(network, [np.ascontiguousarray(image[y1:y2, x1:x2])]), [[prompt]])
    expected = torch.zeros(HEIGHT, WIDTH)  # the box says that the object is nowhere else
    expected[y1:y2, x1:x2] = alone.masks[0][0].float()
    assert found[0].shape == (1, HEIGHT, WIDTH) and torch.equal(found[0][0], expected)
    assert found[2] == alone.scores[0].tolist() and found.found[0].looked == (1, 0, 0)


def check_film(network, method, monkeypatch):
    """A film with a box on each frame: an encoding more for each, the same track, and at `off` the same masks."""
    counts, boxes = counted(monkeypatch, network), [[{"x": 280, "y": 180, "width": 40, "height": 40}]] * len(FRAMES)
    plain = TrackObjects().execute(network, as_image(*FRAMES), bboxes=boxes, method=method)
    assert sum(counts) == len(FRAMES) and all(mask.any() for mask in plain[0])
    off = TrackObjects().execute(network, as_image(*FRAMES), bboxes=boxes, method=method, detail="off")
    assert torch.equal(off[0], plain[0]) and off[2] == plain[2]
    counts.clear()
    found = TrackObjects().execute(network, as_image(*FRAMES), bboxes=boxes, method=method, detail="1")
    assert sum(counts) == len(FRAMES), "the frames are in the cache"
    assert found[0].shape == (len(FRAMES), HEIGHT, WIDTH) and not torch.equal(found[0], plain[0])
    before, after = (next(iter(one[3].objects.values())).answers for one in (plain, found))
    assert all(np.array_equal(before[frame].bits, after[frame].bits) for frame in range(len(FRAMES)))


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
class TestFamilies:
    def test_an_image(self, model, monkeypatch):  # noqa: F811
        check_image(model, monkeypatch)

    def test_a_film_by_follow(self, model, monkeypatch):  # noqa: F811
        check_film(model, "follow", monkeypatch)


def test_an_image_by_sam_3(sam3, monkeypatch):
    check_image(sam3, monkeypatch)


def test_a_film_by_sam_3(sam3, monkeypatch):
    check_film(sam3, "follow", monkeypatch)


def test_a_film_by_memory(with_memory, monkeypatch):
    check_film(with_memory, "memory", monkeypatch)
