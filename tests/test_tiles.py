"""Tiles: every object of a drawing once, whatever seams lie across it, and nothing changed where there are none."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from bright_model import BrightModel, discs, iou
from conftest import ROOT, as_image, make_image
from samkit.nodes.automask import AutoMask
from samkit.nodes.grounding import SegmentText
from samkit.sam import AutoMaskOptions, GroundingModel, GroundingOptions, SAMError, find_boxes, segment_everything
from samkit.sam.geometry import tiles_of
from samkit.sam.tasks import words
from samkit.sam.tasks.tiles import TILES, tile_windows
from scipy import ndimage
from test_devices import model as small_model  # noqa: F401  a fixture

sys.path.append(str(ROOT))

SIZE = 600, 800
# Small ones between the points of the whole image, on seams, at edges, and one that goes through many tiles.
DISCS = (
    (60, 70, 11), (128, 300, 12), (224, 96, 14), (230, 224, 9), (400, 330, 16), (512, 500, 20), (640, 128, 25),
    (790, 590, 18), (700, 420, 60), (330, 500, 75), (96, 480, 8), (448, 96, 10), (560, 260, 13),
)  # fmt: skip
LOOSE = {"points_per_side": 16, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
OPTIONS = AutoMaskOptions(**LOOSE, tiles="auto")


@pytest.fixture(params=[False, True], ids=["padded", "squashed"])
def bright(request):
    return BrightModel(request.param)


def once_each(found, truth, least=0.85):
    """For each mask that was found, which true one it is; each is there once."""
    fits = np.array([[iou(mask, wanted) for wanted in truth] for mask in found])
    assert fits.shape[0] == len(truth), f"{len(found)} masks for {len(truth)} objects, the best IoUs {fits.max(1).round(2)}"
    assert sorted(fits.argmax(1)) == list(range(len(truth))) and fits.max(1).min() > least, fits.max(1).round(2)


@pytest.mark.parametrize("side", [128, 300, 500])
@pytest.mark.parametrize("size", [(600, 800), (128, 4000), (129, 129), (5000, 700)], ids=str)
def test_tiles_cover_the_image_and_overlap(size, side):
    windows = tiles_of(size, side, 0.25)
    covered = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in windows:
        assert 0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]
        assert (x2 - x1, y2 - y1) == (min(side, size[1]), min(side, size[0]))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        ends = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert all(one[1] - two[0] >= 0.25 * (one[1] - one[0]) - 1 for one, two in pairwise(ends))


def test_how_many_there_are():
    assert tile_windows((1000, 1000), "off", 128) == [] and tile_windows((100, 128), "auto", 128) == []
    assert len(tile_windows((2000, 3000), "auto", 1024)) == 12
    for count in TILES[2:]:
        columns = {window[0] for window in tile_windows((2000, 3000), count, 1024)}
        assert len(columns) == int(count)


def test_every_object_is_found_once(bright):
    image, truth = discs(SIZE, *DISCS)
    before = segment_everything(bright, image, AutoMaskOptions(**LOOSE))
    assert len(before) < len(truth), "the whole image alone does not show the small ones"
    once_each([one.full(SIZE) for one in segment_everything(bright, image, OPTIONS)], truth)


@pytest.mark.parametrize("tiles", ["2", "3", "5"])
def test_every_number_of_tiles_finds_each_object_once(bright, tiles):
    image, truth = discs(SIZE, *(disc for disc in DISCS if disc[2] >= 25))
    found = segment_everything(bright, image, AutoMaskOptions(**LOOSE, tiles=tiles))
    once_each([one.full(SIZE) for one in found], truth, 0.75)


def test_what_is_longer_than_a_tile_is_one(bright):
    image = np.full((*SIZE, 3), 40, np.uint8)
    bars = np.zeros((2, *SIZE), bool)
    bars[0, 110:150, 30:770] = True
    bars[1, 200:590, 240:275] = True
    image[bars.any(0)] = 220
    found = segment_everything(bright, image, OPTIONS)
    once_each([one.full(SIZE) for one in found], bars, 0.8)
    assert max(one.crop[2] - one.crop[0] for one in found) > 300, "the long one was joined, and not found in the whole image"


def test_what_a_seam_cuts_off_and_nobody_continues_is_left_out():
    from samkit.sam.tasks.found_masks import FoundMask
    from samkit.sam.tasks.tiles import join_seams

    def mask(box, crop):
        x1, y1, x2, y2 = box
        bits = np.packbits(np.ones((y2 + 1 - y1) * (x2 + 1 - x1), bool))
        return FoundMask(bits, box, 0.9, 0.9, (x1, y1), crop)

    left, right = (0, 0, 100, 100), (75, 0, 175, 100)
    alone = mask((60, 20, 99, 40), left)
    whole = mask((10, 10, 30, 30), left)
    assert join_seams([alone, whole], (100, 175)) == [whole]
    other = mask((75, 20, 120, 40), right)
    (joined,) = join_seams([alone, other], (100, 175))
    assert joined.box == (60, 20, 120, 40) and joined.pixels.all() and joined.crop == (0, 0, 175, 100)
    elsewhere = mask((75, 60, 120, 80), right)
    assert join_seams([alone, elsewhere], (100, 175)) == []
    middle = mask((70, 20, 110, 40), (40, 0, 140, 100))
    halves = [mask((70, 20, 99, 40), left), mask((75, 20, 110, 40), right)]
    assert join_seams([middle, *halves], (100, 175)) == [middle], "it is whole in one tile: its parts in others are not joined"
    one, similar, beyond = mask((60, 20, 99, 40), left), mask((60, 15, 99, 37), left), mask((75, 24, 120, 44), right)
    (joined,) = join_seams([one, similar, beyond], (100, 175))
    assert joined.box == (60, 20, 120, 44), "two of one tile are two objects"
    at_the_edge = mask((0, 50, 40, 99), left)
    assert join_seams([at_the_edge], (100, 175)) == [at_the_edge], "the image ends there, and not the tile alone"


def test_a_region_holds_for_tiles(bright):
    image, truth = discs(SIZE, *DISCS)
    region = np.zeros(SIZE, bool)
    region[:, :300] = True
    found = segment_everything(bright, image, OPTIONS, region)
    inside = [mask for mask, (x, _, radius) in zip(truth, DISCS, strict=True) if x + radius < 300]
    for mask in inside:
        assert sum(iou(one.full(SIZE), mask) > 0.8 for one in found) == 1
    assert all(one.point[0] < 300 for one in found)


@pytest.mark.parametrize("preset", ["custom", "many and small"])
@pytest.mark.parametrize("small_model", ["SAM", "MobileSAM", "SAM 2"], indirect=True)
def test_off_is_what_it_was(small_model, preset):  # noqa: F811
    image = as_image(make_image(96, 128))
    loose = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "preset": preset}
    with_it, without = (AutoMask().execute(small_model, image, **loose, **more) for more in ({"tiles": "off"}, {}))
    small = AutoMask().execute(small_model, image, **loose, tiles="auto")
    for one, two in zip(with_it, without, strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert torch.equal(small[0], without[0]), "an image that is no larger than a tile"


def test_crops_stay_beside_tiles(bright):
    image, truth = discs(SIZE, *DISCS)
    found = segment_everything(bright, image, AutoMaskOptions(**LOOSE, crop_n_layers=1, tiles="auto"))
    fits = np.array([[iou(one.full(SIZE), wanted) for wanted in truth] for one in found])
    assert ((fits > 0.5).sum(0) == 1).all() and (fits.max(0) > 0.85).all()


def test_the_demo_model_finds_more_small_objects(demo_model):
    """See also `benchmarks/detail.py`."""
    from scenes import Crowd, make_scene, tight_box

    size = (600, 800)
    scene = make_scene(5_000_001, size, Crowd((12, 16), 24 / 800, 200 / 800, 1.4, 20 / 800, 30))
    small = [mask for mask in scene.masks if max(np.subtract(tight_box(mask)[2:], tight_box(mask)[:2])) < 60]
    loose = {"points_per_side": 12, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.9}
    counts = []
    for tiles in ("off", "auto"):
        found = [one.full(size) for one in segment_everything(demo_model, scene.image, AutoMaskOptions(**loose, tiles=tiles))]
        counts.append(sum(any(iou(mask, wanted) > 0.75 for mask in found) for wanted in small))
    assert counts[1] > counts[0], counts


def test_there_are_no_other_tiles(bright):
    for tiles in ("9", "1", "on", 2):
        with pytest.raises(SAMError, match="tiles is .*: choose one of off, auto, 2, 3"):
            AutoMask().execute(bright, as_image(make_image(60, 80)), tiles=tiles)
        with pytest.raises(SAMError, match="tiles is"):
            GroundingOptions(tiles=tiles)


class _Words(GroundingModel):
    """Stands for Grounding DINO: `_detect` finds the bright discs that are 2 % of a frame's side or more across."""

    def __init__(self, monkeypatch):
        object.__setattr__(self, "network", torch.nn.Module())
        object.__setattr__(self, "frames", [])
        monkeypatch.setattr(words, "_check_length", lambda *_: None)
        monkeypatch.setattr(words, "_detect", lambda _, frames, *rest: [self.detect(frame) for frame in frames])

    def detect(self, frame):
        self.frames.append(frame.shape)
        found = [
            box for box in ndimage.find_objects(ndimage.label(frame[..., 0] > 130)[0])
            if max(axis.stop - axis.start for axis in box) >= 0.05 * max(frame.shape)
        ]  # fmt: skip
        corners = torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in found], dtype=torch.float32).reshape(-1, 4)
        return {"boxes": corners, "scores": torch.full((len(found),), 0.8), "words": ["disc"] * len(found)}


class TestWords:
    """Boxes by words."""

    size = 1500, 2100
    drawn = ((150, 160, 25), (640, 300, 30), (805, 640, 28), (1000, 1000, 300), (1900, 1400, 22), (1350, 200, 45))

    @pytest.mark.parametrize("tiles", ["auto", "3"])
    def test_every_box_is_found_once(self, monkeypatch, tiles):
        image, _ = discs(self.size, *self.drawn)
        detector = _Words(monkeypatch)
        (before,) = find_boxes(detector, [image], "disc")
        assert len(before.boxes) == 1
        (after,) = find_boxes(detector, [image], "disc", GroundingOptions(tiles=tiles))
        expected = sorted((x - r, y - r, x + r, y + r) for x, y, r in self.drawn)
        np.testing.assert_allclose(sorted(map(tuple, after.boxes)), expected, atol=2)
        assert after.labels == ["disc"] * 6 and len(after.scores) == 6
        (most,) = find_boxes(detector, [image], "disc", GroundingOptions(tiles=tiles, max_boxes=4))
        assert len(most.boxes) == len(most.labels) == 4

    def test_a_small_image_is_searched_once(self, monkeypatch):
        detector = _Words(monkeypatch)
        find_boxes(detector, [discs((400, 500), (100, 100, 50))[0]] * 2, "disc", GroundingOptions(tiles="auto"))
        assert detector.frames == [(400, 500, 3)] * 2

    def test_with_detail_the_masks_are_sharp(self, monkeypatch, bright):
        image, truth = discs(self.size, *self.drawn)
        monkeypatch.setattr("samkit.nodes.grounding.WordsDetector", lambda *_: None)
        masks, boxes, scores, labels, *_ = SegmentText().execute(
            bright, _Words(monkeypatch), as_image(image), "disc", individual_masks=True, tiles="auto", detail="auto"
        )
        assert len(masks) == len(scores) == len(labels) == len(boxes[0]) == 6
        once_each(masks, truth, 0.9)


def test_the_command_has_both(tmp_path, monkeypatch):
    import segment_folder

    parser = segment_folder.make_parser()
    given = parser.parse_args([str(tmp_path), "--everything", "--coco", "a.json", "--tiles", "3"])
    assert given.tiles == "3" and given.detail == "off"
    for options, message in (
        (["--everything", "--detail", "auto"], "--detail makes the masks"),
        (["--prompts", "p.json", "--tiles", "auto"], "--tiles finds small objects"),
    ):
        chosen = parser.parse_args([str(tmp_path), *options, "--coco", "a.json"])
        with pytest.raises(SAMError, match=message):
            segment_folder.make_task(chosen, segment_folder.part("sam.tasks.folders"))


def test_the_command_segments_in_detail_and_tiles(tmp_path):
    """Through the worker, with the bundled model; a journal of settings that are off is as before there were any."""
    from PIL import Image
    from samkit.sam.tasks.folders import FolderTask, ImageFile, Worker
    from samkit.sam.weights.registry import BUNDLED

    path = BUNDLED["samkit_demo.safetensors"]
    image, _ = discs(SIZE, (300, 200, 14))
    Image.fromarray(image).save(tmp_path / "a.png")
    prompts = ({"positive_coords": [{"x": 300, "y": 200}]},)
    file = ImageFile(tmp_path / "a.png", "a.png", prompts)
    plain = FolderTask("prompts", "COCO RLE", path)
    assert not {"detail", "tiles"} & plain.settings().keys()
    sharp = FolderTask("prompts", "COCO RLE", path, detail="auto")
    assert sharp.settings()["detail"] == "auto"
    counts = [json.dumps(Worker(task)(file).record) for task in (plain, sharp)]
    assert counts[0] != counts[1]
    tiled = FolderTask("everything", "COCO RLE", path, everything=AutoMaskOptions(tiles="auto"))
    assert tiled.settings()["tiles"] == "auto"
    assert "tiles" not in FolderTask("everything", "COCO RLE", path).settings()


class TestLargeFiles:
    """Files that are larger than an image of a graph."""

    def test_a_resize_in_bands_is_pils(self, monkeypatch):
        from samkit.utils import images

        frame = make_image(301, 457)
        whole = [images.resize_pil(frame, size) for size in ((100, 128), (640, 970), (301, 64), (64, 457))]
        monkeypatch.setattr(images, "_RESIZED_BYTES", 20_000)
        for expected in whole:
            assert np.array_equal(images.resize_pil(frame, expected.shape[:2]), expected)

    def test_a_large_image_has_the_key_of_its_content_and_no_copy(self, monkeypatch):
        from samkit.sam.store import keys

        frame = make_image(120, 160)
        expected = keys.image_key(frame)
        keys._hashed.clear()
        monkeypatch.setattr(keys, "_HASHED_BYTES", 1000)
        assert keys.image_key(frame) == expected != keys.image_key(frame[:60]) and not keys._hashed.nbytes

    def test_a_large_tiff_is_mapped_and_what_is_not_plain_is_read(self, tmp_path, monkeypatch):
        from PIL import Image
        from samkit.sam.datasets import images

        tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
        monkeypatch.setattr(images, "_MAPPED_PIXELS", 1000)
        pixels = make_image(64, 96)
        tifffile.imwrite(tmp_path / "plain.tif", pixels)
        Image.fromarray(pixels).save(tmp_path / "pil.tiff")
        tifffile.imwrite(tmp_path / "packed.tif", pixels, compression="zlib")
        tifffile.imwrite(tmp_path / "gray.tif", pixels[..., 0])
        for name in ("plain.tif", "pil.tiff"):
            mapped = images.read_image(tmp_path / name)
            assert isinstance(mapped, np.memmap) and np.array_equal(mapped, pixels)
        packed, gray = (images.read_image(tmp_path / name) for name in ("packed.tif", "gray.tif"))
        assert not isinstance(packed, np.memmap) and np.array_equal(packed, pixels)
        assert np.array_equal(gray, np.repeat(pixels[..., :1], 3, 2))
        turned = Image.fromarray(pixels)
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "turned.tiff", exif=exif)
        assert images.read_image(tmp_path / "turned.tiff").shape == (96, 64, 3)
        monkeypatch.setitem(sys.modules, "tifffile", None)
        assert np.array_equal(images.read_image(tmp_path / "plain.tif"), pixels)

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_what_is_read_is_in_memory_once(self, tmp_path, mode):
        """Beside PIL's own pixels, which are not counted here; its array of all of them had two copies more."""
        import tracemalloc

        from PIL import Image
        from samkit.sam.datasets.images import read_image

        pixels = make_image(1501, 2003)
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png", compress_level=1)
        tracemalloc.start()
        found = read_image(tmp_path / "a.png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(found, np.array(Image.open(tmp_path / "a.png").convert("RGB")))
        assert peak < 1.2 * found.nbytes

    def test_a_file_over_pils_limit_is_opened_by_the_command_only(self, tmp_path, monkeypatch):
        from PIL import Image
        from samkit.sam.datasets.images import large_images, read_image

        Image.fromarray(make_image(64, 96)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombError):
            read_image(tmp_path / "a.png")
        with large_images():
            assert read_image(tmp_path / "a.png").shape == (64, 96, 3)
        assert Image.MAX_IMAGE_PIXELS == 1000
