"""What Impact Pack takes from us: SEGS from masks, and a BBOX_DETECTOR of words; its contracts as fakes."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from samkit.nodes.grounding import TextToBoxes
from samkit.nodes.segs import MasksToSEGS, WordsDetector
from samkit.sam import FoundBoxes, GroundingOptions, SAMError
from samkit.utils.boxes import boxes_per_frame
from samkit.utils.segs import SEG, crop_region
from test_nodes import SCORED, squares

IMPACT_SEG = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)


def test_a_seg_is_impacts():
    assert SEG._fields == IMPACT_SEG._fields and SEG._field_defaults == IMPACT_SEG._field_defaults
    assert SEG(None, np.zeros((1, 1)), 1.0, [0, 0, 1, 1], (0, 0, 1, 1), "a")._replace(label="b").label == "b"


def masks_to_segs(*args, **kwargs):
    return MasksToSEGS().execute(*args, **kwargs)[0]


def test_masks_become_segs_with_scores_and_labels():
    size, segs = masks_to_segs(squares(), 2.0, 1, [SCORED], "square")
    assert size == (20, 40)
    assert [(seg.bbox, seg.confidence, seg.label) for seg in segs] == [
        ((0, 5, 12, 17), 0.5, "square"),
        ((35, 1, 38, 4), 0.9, "cat"),
        ((15, 12, 22, 19), 0.7, "square"),
    ]
    for seg, mask in zip(segs, squares()[[0, 2, 3]].numpy(), strict=True):
        x1, y1, x2, y2 = seg.crop_region
        assert seg.cropped_mask.dtype == np.float32 and isinstance(seg.crop_region, list) and seg.cropped_image is None
        assert np.array_equal(seg.cropped_mask, mask[y1:y2, x1:x2]) and seg.cropped_mask.sum() == mask.sum()


def test_small_ones_are_left_out_and_unknown_ones_are_sure():
    _, segs = masks_to_segs(squares(), drop_size=3)
    assert [seg.bbox[2] - seg.bbox[0] for seg in segs] == [12, 7] and {seg.confidence for seg in segs} == {1.0}
    assert {seg.label for seg in segs} == {"object"}
    assert masks_to_segs(torch.zeros(2, 20, 40)) == ((20, 40), [])


def test_our_segs_are_boxes_for_our_own_nodes():
    segs = masks_to_segs(squares(), 2.0, 1, [SCORED])
    assert boxes_per_frame(segs, 1)[0].rows.tolist() == [[0, 5, 12, 17], [35, 1, 38, 4], [15, 12, 22, 19]]


@pytest.mark.parametrize(
    ("box", "factor", "expected"),
    [
        ((10, 10, 20, 14), 1.0, [10, 10, 20, 14]),
        ((10, 10, 20, 14), 2.0, [5, 8, 25, 16]),
        ((0, 0, 10, 10), 3.0, [0, 0, 30, 30]),
        ((70, 50, 80, 60), 3.0, [50, 30, 80, 60]),
        ((10, 10, 20, 14), 100.0, [0, 0, 80, 60]),
        ((9, 10, 20, 14), 1.5, [6, 9, 22, 15]),
    ],
)
def test_the_region_is_shifted_into_the_image(box, factor, expected):
    assert crop_region(box, (60, 80), factor) == expected


class Found:
    """`find_boxes` with fixed boxes, and what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, frames, text, options, device_mode):
        self.calls.append((text, options.box_threshold, device_mode))
        boxes, scores = np.array([[10.2, 12, 39.8, 50], [70, 50, 90, 65], [3, 3, 4, 4]]), np.array([0.9, 0.6, 0.4])
        kept = scores > options.box_threshold
        return [FoundBoxes(boxes[kept], scores[kept], ["cat", "", "dot"][: kept.sum()])]


@pytest.fixture
def found(monkeypatch):
    fake = Found()
    monkeypatch.setattr("samkit.nodes.segs.find_boxes", fake)
    return fake


@pytest.fixture
def detector():
    return WordsDetector("model", "cat", GroundingOptions(max_boxes=5), "CPU")


def test_a_detector_of_words_gives_segs(found, detector):
    image = torch.rand(1, 60, 80, 3)
    size, segs = detector.detect(image, 0.3, 0, 1.0, 2)
    assert found.calls == [("cat", 0.3, "CPU")] and size == (60, 80)
    assert [(seg.bbox, seg.label, seg.confidence) for seg in segs] == [
        ((10, 12, 40, 50), "cat", 0.9),
        ((70, 50, 80, 60), "object", 0.6),
    ]
    for seg in segs:
        x1, y1, x2, y2 = seg.crop_region
        assert torch.equal(seg.cropped_image, image[:, y1:y2, x1:x2]) and seg.cropped_mask.all()


def test_the_mask_is_dilated_as_opencv_does(found, detector):
    """cv2.dilate with a square of ones: its anchor is the middle, the later one of two."""
    for dilation, expected in ((0, (10, 40)), (-4, (10, 40)), (1, (10, 40)), (4, (9, 42)), (5, (8, 42))):
        mask = detector.detect_combined(torch.rand(1, 60, 80, 3), 0.8, dilation)
        columns = mask.any(0).nonzero()[:, 0]
        assert (int(columns[0]), int(columns[-1]) + 1) == expected, dilation
        assert mask.shape == (60, 80) and mask.dtype == torch.float32
    nothing = detector.detect_combined(torch.rand(1, 60, 80, 3), 0.95, 4)
    assert nothing.shape == (60, 80) and not nothing.any()
    assert detector.detect(torch.rand(1, 60, 80, 3), 0.95, 4, 3.0) == ((60, 80), [])


def test_a_hook_sees_the_regions_and_the_result(found, detector):
    class Hook:
        def post_crop_region(self, width, height, box, region):
            assert (width, height) == (80, 60)
            return [0, 0, 80, 60]

        def post_detection(self, segs):
            return segs[0], segs[1][:1]

    size, segs = detector.detect(torch.rand(1, 60, 80, 3), 0.3, 0, 1.0, 2, detailer_hook=Hook())
    assert len(segs) == 1 and segs[0].crop_region == [0, 0, 80, 60] and segs[0].cropped_mask.shape == size


def test_the_words_of_the_node_are_used_where_there_is_no_text(found, detector):
    nameless = WordsDetector("model", " ", GroundingOptions(), "AUTO")
    for one in (detector, nameless):
        one.setAux("face")
        one.detect(torch.rand(1, 60, 80, 3), 0.5, 0, 1.0)
        one.setAux(None)
    nameless.detect(torch.rand(1, 60, 80, 3), 0.5, 0, 1.0)
    assert [text for text, *_ in found.calls] == ["cat", "face", ""]


def test_a_batch_is_refused(found, detector):
    with pytest.raises(SAMError, match="takes one image, but the batch has 2"):
        detector.detect(torch.rand(2, 60, 80, 3), 0.5, 0, 1.0)


def test_text_to_boxes_gives_the_detector():
    assert TextToBoxes.RETURN_TYPES[-1] == "BBOX_DETECTOR" and TextToBoxes.RETURN_NAMES[-1] == "bbox_detector"
