"""Large images in the prompt editor: tiles of reduced levels, and masks of a part, without a server."""

import asyncio
import io
import json

import numpy as np
import pytest
from conftest import make_image
from PIL import Image
from samkit.nodes.editor import preview as preview_module
from samkit.nodes.editor import pyramid as module
from samkit.nodes.editor import routes
from samkit.nodes.editor.contract import PYRAMID
from samkit.nodes.editor.jobs import RefusedError
from samkit.nodes.editor.preview import Preview, parse_image, parse_question
from samkit.nodes.editor.pyramid import level_count, tile_of
from samkit.sam import SAMError
from test_preview import comfy, question, subject_of  # noqa: F401  a fixture, and helpers

HEIGHT, WIDTH = 1301, 1900


@pytest.fixture(autouse=True)
def empty_cache():
    module._LEVELS.clear()


@pytest.fixture
def large(comfy):  # noqa: F811
    """An image of several tiles: its pixels."""
    pixels = make_image(HEIGHT, WIDTH)
    Image.fromarray(pixels).save(comfy.root / "input" / "large.png")
    return pixels


@pytest.fixture
def reads(monkeypatch):
    """The files that were decoded."""
    seen, real = [], module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: seen.append(path.name) or real(path))
    return seen


def image_of(filename="large.png", **others):
    return parse_image({"image": {"filename": filename, **others}})


def pixels_of(tile):
    return np.array(Image.open(io.BytesIO(tile[0])).convert("RGB"))


def test_tiles_of_the_full_resolution_are_the_pixels(large):
    side = PYRAMID.tile
    rows = []
    for row in range(3):
        tiles = [tile_of(image_of(), 0, column, row) for column in range(4)]
        assert {kind for _, kind in tiles} == {"image/png"}
        rows.append(np.concatenate([pixels_of(tile) for tile in tiles], 1))
    assert np.array_equal(np.concatenate(rows), large) and pixels_of(tile_of(image_of(), 0, 3, 2)).shape[:2] == (277, 364)
    assert pixels_of(tile_of(image_of(), 0, 1, 1)).shape[:2] == (side, side)


def test_reduced_levels_are_means_and_the_last_one_is_a_single_tile(large):
    count = level_count(WIDTH, HEIGHT)
    assert count == 3
    for level in (1, 2):
        found, kind = tile_of(image_of(), level, 0, 0)
        step = 2**level
        rows, columns = min(PYRAMID.tile, HEIGHT // step), min(PYRAMID.tile, WIDTH // step)
        means = large[: rows * step, : columns * step].reshape(rows, step, columns, step, 3).mean((1, 3))
        assert kind == "image/jpeg" and np.abs(pixels_of((found, kind))[:rows, :columns] - means).mean() < 4
    assert pixels_of(tile_of(image_of(), 2, 0, 0)).shape == (326, 475, 3)


def test_the_file_is_decoded_once_for_all_levels(large, reads, comfy):  # noqa: F811
    async def many():
        tiles = [(level, column, 0) for level in range(2) for column in range(2)] * 3
        query = {"filename": "large.png", "type": "input"}
        asked = [routes.tile({**query, "level": str(level), "column": str(c), "row": str(r)}) for level, c, r in tiles]
        return [reply.status for reply in await asyncio.gather(*asked)]

    assert asyncio.run(many()) == [200] * 12 and reads == ["large.png"] and not comfy.images_loaded


@pytest.mark.parametrize(
    ("filename", "read"),
    [("large.png", ["tiles", "encoding"]), ("a.png", ["encoding"]), ("three.gif", ["encoding"])],
)
def test_the_first_tile_of_a_large_image_comes_before_its_encoding(large, monkeypatch, filename, read):
    monkeypatch.setattr(module, "PYRAMID", PYRAMID._replace(pixels=60 * 80))
    order = []
    for where, name, said in ((module, "read_image", "tiles"), (preview_module, "load_image_file", "encoding")):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *given, real=real, said=said: order.append(said) or real(*given))
    assert asyncio.run(routes.prepare(Preview(), subject_of(filename))).status == 200 and order == read
    if filename == "large.png":
        tile_of(image_of(), 2, 0, 0)
        assert order == read, "its tiles are there"


def test_a_damaged_file_is_told_of_by_its_encoding(comfy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "PYRAMID", PYRAMID._replace(pixels=1))
    with pytest.raises(RefusedError, match="not an image that Load Image can read"):
        asyncio.run(routes.prepare(Preview(), subject_of("broken.png")))


def test_a_file_that_was_written_over_is_read_again(large, reads, comfy):  # noqa: F811
    before = pixels_of(tile_of(image_of(), 0, 0, 0))
    Image.fromarray(255 - large).save(comfy.root / "input" / "large.png", compress_level=1)
    assert np.array_equal(pixels_of(tile_of(image_of(), 0, 0, 0)), 255 - before) and len(reads) == 2


def test_what_is_too_large_for_the_cache_is_read_for_each_tile_and_is_right(large, reads, monkeypatch):
    monkeypatch.setattr(module._LEVELS, "limit", 1000)
    assert np.array_equal(pixels_of(tile_of(image_of(), 0, 1, 1)), large[512:1024, 512:1024])
    assert pixels_of(tile_of(image_of(), 2, 0, 0)).shape == (326, 475, 3) and module._LEVELS.nbytes == 0


def test_an_image_that_lies_on_its_side_is_upright(comfy):  # noqa: F811
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = make_image(600, 900)
    Image.fromarray(pixels).save(comfy.root / "input" / "turned.png", exif=exif)
    assert np.array_equal(pixels_of(tile_of(image_of("turned.png"), 0, 0, 0)), np.rot90(pixels, -1)[:512, :512])


def test_a_frame_of_a_film_has_tiles(comfy):  # noqa: F811
    found = pixels_of(tile_of(image_of("three.gif", frame=2), 0, 0, 0))
    assert found.shape == (60, 80, 3) and comfy.images_loaded


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({"level": "3"}, 404, "has 3 levels: there is no level 3"),
        ({"level": "9999999"}, 404, "there is no level 9999999"),
        ({"column": "4"}, 404, "has no tile 4, 0 at level 0"),
        ({"row": "99"}, 404, "has no tile 0, 99"),
        ({"level": "-1"}, 400, "frame, level, column and row must be whole numbers"),
        ({"row": "x"}, 400, "must be whole numbers"),
        ({"level": "100000000"}, 400, "must be whole numbers"),
        ({"filename": "nothing.png"}, 404, "there is no image nothing.png"),
        ({"filename": "broken.png"}, 404, "broken.png"),
        ({"filename": "../large.png"}, 400, "must be a name inside"),
        ({"type": "models"}, 400, "image.type"),
    ],
    ids=str,
)
def test_tiles_that_there_are_not(large, query, status, said):
    reply = asyncio.run(routes.tile({"filename": "large.png", "type": "input", **query}))
    assert reply.status == status and said in json.loads(reply.body)["error"]


def test_an_image_of_too_many_pixels_has_no_tiles(large, monkeypatch):
    monkeypatch.setattr(preview_module, "_MOST_OF_ONE", HEIGHT * WIDTH - 1)
    with pytest.raises(RefusedError, match="million pixels") as refused:
        tile_of(image_of(), 0, 0, 0)
    assert refused.value.status == 413


def test_sizes_and_levels():
    assert [level_count(*size) for size in ((1, 1), (512, 512), (513, 1), (12_000, 8_000), (11_584, 11_584))] == [1, 1, 2, 6, 6]


class TestMasksOfLargeImages:
    """The part that is not empty, and where it lies."""

    @pytest.fixture(autouse=True)
    def everything_is_large(self, monkeypatch):
        monkeypatch.setattr(preview_module, "PYRAMID", PYRAMID._replace(pixels=60 * 80 - 1))

    def masks(self, comfy, marks):  # noqa: F811
        async def both():
            preview = Preview()
            whole = await preview.ask(question(1, marks))
            body = {**subject_of(), "prompts": {"marks": marks}, "editor": "one", "sequence": 2, "place": True}
            return whole, await preview.ask(parse_question(body))

        return asyncio.run(both())

    def test_the_part_is_that_of_the_whole(self, comfy):  # noqa: F811
        whole, part = self.masks(comfy, [{"x": 20, "y": 15, "width": 30, "height": 30}])
        expected, found = (np.array(Image.open(io.BytesIO(one.file)).convert("RGBA"))[..., 3] for one in (whole, part))
        x, y, width, height = part.place
        assert whole.place is None and expected.shape == (60, 80) and found.shape == (height, width)
        assert np.array_equal(expected[y : y + height, x : x + width], found) and (expected > 0).sum() == (found > 0).sum() > 0
        assert part.area == whole.area and part.score == whole.score

    def test_an_empty_mask_is_a_pixel(self, comfy):  # noqa: F811
        _, part = self.masks(comfy, [])
        assert part.place == (0, 0, 1, 1) and Image.open(io.BytesIO(part.file)).size == (1, 1) and part.area == 0

    def test_a_large_mask_is_sampled_and_covers_its_place(self, comfy, monkeypatch):  # noqa: F811
        monkeypatch.setattr(preview_module, "_MOST_SENT", 100)
        whole, part = self.masks(comfy, [{"x": 2, "y": 2, "width": 76, "height": 56}])
        sent = Image.open(io.BytesIO(part.file))
        x, y, width, height = part.place
        assert sent.width * sent.height <= 130 and width % sent.width == 0 and width // sent.width == height // sent.height
        inside = np.array(Image.open(io.BytesIO(whole.file)).convert("RGBA"))[..., 3] > 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert (x, y) == (columns[0], rows[0]) and x + width > columns[-1] and y + height > rows[-1]
        assert part.area == whole.area

    def test_the_route_says_the_place(self, comfy):  # noqa: F811
        body = {**subject_of(), "prompts": {"marks": [{"x": 30, "y": 25, "label": 1}]}, "editor": "one", "sequence": 1}
        reply = asyncio.run(routes.ask(Preview(), {**body, "place": True}))
        assert len(reply.headers["X-SAMKit-Place"].split()) == 4
        assert "X-SAMKit-Place" not in asyncio.run(routes.ask(Preview(), body)).headers
        with pytest.raises(SAMError, match="place is 'yes': it must be true or false"):
            parse_question({**body, "place": "yes"})


def test_a_small_image_is_answered_as_a_whole_also_where_a_place_is_wanted(comfy):  # noqa: F811
    body = {**subject_of(), "prompts": {"marks": [{"x": 30, "y": 25, "label": 1}]}, "editor": "one", "sequence": 1}

    async def both():
        preview = Preview()
        return await preview.ask(parse_question(body)), await preview.ask(parse_question({**body, "place": True}))

    plain, placed = asyncio.run(both())
    assert plain.file == placed.file and placed.place is None
