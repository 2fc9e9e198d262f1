"""Masks, boxes, points and features made visible: outlines, tints, colours."""

import colorsys
import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .images import resize_pil, to_levels
from .text import counted

_GOLDEN = 0.618034  # steps of the hue circle that keep neighbours far apart, however many there are
_TOKEN_PIXELS = 16
FORMS = ("tint", "mask", "outline")
_TINT = 115  # of 255: the opacity inside of a mask
_MOST_BYTES, _PIXELS = 30_000, 1 << 20  # of a mask of so many pixels: what a slow line carries within a round trip
_STEPS = (15, 3)  # from outside to inside of a soft edge as it is tinted; 15 look like 255
_RESULT_SIDE = 384  # pixels of a result image's long side: a node is rarely wider on the screen, and each costs time
_RESULT_WIDTH = 240  # the narrowest that a caption has room on
_CAPTION_PIXELS = 17
_MOST_SCORES = 4  # more are said as a range


def colour(index: int) -> np.ndarray:
    """A distinct colour for the index-th object: uint8 `[3]`."""
    return np.array([round(255 * part) for part in colorsys.hsv_to_rgb((0.02 + index * _GOLDEN) % 1.0, 0.85, 1.0)], np.uint8)


def paint_masks(frame: np.ndarray, masks: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Tint each mask in a colour of its own and draw its outline.

    Args:
        frame: uint8 `[H, W, 3]`.
        masks: bool `[N, H, W]`, or floats that are not 0 inside.
        opacity: of the tint; outlines are opaque.

    Returns:
        A new uint8 `[H, W, 3]`.
    """
    painted = frame.astype(np.float32)
    for index, mask in enumerate(masks):
        inside = mask != 0
        painted[inside] = painted[inside] * (1 - opacity) + colour(index) * opacity
    for index, mask in enumerate(masks):
        painted[outline(mask != 0)] = colour(index)
    return painted.round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask bool `[H, W]` that touch its outside, beyond the image's edge included."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def mask_image(mask: np.ndarray, colour: tuple[int, int, int], form: str = "tint") -> tuple[bytes, str]:
    """A mask as a small image to lay over its image, for slow lines: at most 30 kB for 1024x1024 pixels, and its content type.

    It is what `mask_png` gives, but the soft edge of a `tint` has 16 levels, or fewer where that is too large. What a PNG does
    not make small is a lossless WebP, which takes longer to make. A `mask` with soft edges is exact, however large.

    Args:
        mask, colour, form: see `mask_png`.
    """
    most = _MOST_BYTES * max(1.0, mask.size / _PIXELS)
    if _has_levels(mask, form):
        if form == "mask":
            return mask_png(mask, colour, form), "image/png"
        for steps in _STEPS:
            png = mask_png(np.ceil(mask * steps - 0.5) / steps, colour, form)  # odd steps: none of them is the threshold of 0.5
            if len(png) <= most:
                return png, "image/png"
        mask = mask > 0.5
    png = mask_png(mask, colour, form)
    return (png, "image/png") if len(png) <= most else (_webp(png), "image/webp")


def _webp(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGBA").save(file, format="WEBP", lossless=True, exact=True, method=2, quality=0)
    return file.getvalue()


def mask_png(mask: np.ndarray, colour: tuple[int, int, int], form: str = "tint") -> bytes:
    """A mask as a PNG of one colour, to lay over its image. It has a palette and few bits a pixel: small, and soon made.

    Args:
        mask: bool or float in 0..1, `[H, W]`.
        colour: red, green, blue.
        form: of `FORMS`. `tint`: faint inside an opaque outline. `mask`: the alpha is the mask. `outline`: the outline alone;
            inside the alpha is 1 of 255, which is not seen and tells the inside.
    """
    if not _has_levels(mask, form):
        inside = mask > 0.5
        if form == "mask":
            return _palette_png(inside.astype(np.uint8), colour, [0, 255])
        return _palette_png(_zones(inside), colour, {"tint": [0, _TINT, 255], "outline": [0, 1, 255]}[form])
    levels = _levels(mask)
    if form == "mask":
        return _smooth_png(levels, colour, list(range(256)))
    levels = np.minimum(levels, 254)
    levels[outline(mask > 0.5)] = 255
    return _smooth_png(levels, colour, [*(_TINT * n // 255 for n in range(255)), 255])


def _levels(mask: np.ndarray) -> np.ndarray:
    return np.rint(mask.astype(np.float32) * 255).astype(np.uint8)


def _has_levels(mask: np.ndarray, form: str) -> bool:
    """Whether a mask has soft edges that its form shows."""
    if form == "outline":
        return False
    levels = _levels(mask)
    return bool(((levels != 0) & (levels != 255)).any())


def _zones(mask: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]`: 0 outside of a mask, 1 inside, 2 on its outline."""
    zones = mask.astype(np.uint8)
    zones += outline(mask)
    return zones


def _palette_png(indices: np.ndarray, colour: tuple[int, int, int], alphas: list[int]) -> bytes:
    """A PNG of two or three alphas."""
    image = Image.fromarray(indices)
    image.putpalette(list(colour) * len(alphas))
    file = io.BytesIO()
    image.save(file, format="PNG", bits=len(alphas) - 1, transparency=bytes(alphas), compress_level=1)
    return file.getvalue()


def _smooth_png(indices: np.ndarray, colour: tuple[int, int, int], alphas: list[int]) -> bytes:
    """A PNG of many alphas, each row as the difference to the one above, which PIL does not do where there is a palette: half
    the bytes for soft edges.
    """
    height, width = indices.shape
    rows = np.full((height, 1 + width), 2, np.uint8)  # filter type 2, "up"
    rows[0, 1:] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=rows[1:, 1:])
    header = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", bytes(colour) * len(alphas)),
        (b"tRNS", bytes(alphas)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def legend(frame: np.ndarray, text: str) -> np.ndarray:
    """Write a line of text on a dark plate in the top left corner: a new uint8 `[H, W, 3]`."""
    image = Image.fromarray(frame)
    _write(image, text, (6, 4), (20, 20, 20), (255, 255, 255))
    return np.array(image)


def paint_boxes(frame: np.ndarray, boxes: np.ndarray, captions: list[str]) -> np.ndarray:
    """Draw each box in a colour of its own, with its caption inside its top left corner.

    Args:
        frame: uint8 `[H, W, 3]`.
        boxes: `[N, 4]` corners (x1, y1, x2, y2) in pixels.
        captions: N of them.

    Returns:
        A new uint8 `[H, W, 3]`.
    """
    painted = frame.copy()
    for index, box in enumerate(boxes):
        draw_box(painted, box, tuple(colour(index).tolist()))
    image = Image.fromarray(painted)
    for index, (box, caption) in enumerate(zip(boxes, captions, strict=True)):
        place = max(0, round(box[0])) + 8, max(0, round(box[1])) + 6
        _write(image, caption, place, tuple(colour(index).tolist()), (20, 20, 20))
    return np.array(image)


def _write(image: Image.Image, text: str, place: tuple[int, int], plate: tuple[int, ...], ink: tuple[int, ...]) -> None:
    draw = ImageDraw.Draw(image)
    font = _font(max(10, min(image.size) // 24))
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=plate)
    draw.text(place, text, font=font, fill=ink)


def mark(frame: np.ndarray, x: float, y: float, positive: bool, radius: int = 5) -> None:
    """Draw a point prompt into uint8 `[H, W, 3]`, in place: a ringed plus for a positive one, a minus for a negative one."""
    image = Image.fromarray(frame)
    draw, arm = ImageDraw.Draw(image), radius - 2
    x, y = round(x), round(y)
    for reach, fill in ((radius + 1, (255, 255, 255)), (radius, (30, 160, 60) if positive else (210, 40, 40))):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill)
    draw.line((x - arm, y, x + arm, y), (255, 255, 255))
    if positive:
        draw.line((x, y - arm, x, y + arm), (255, 255, 255))
    frame[:] = np.asarray(image)


def draw_box(frame: np.ndarray, box: np.ndarray, line: tuple[int, int, int] = (255, 220, 0)) -> None:
    """Draw a box (x1, y1, x2, y2) into uint8 `[H, W, 3]`, in place, two pixels thick."""
    height, width = frame.shape[:2]
    x1, x2 = (int(np.clip(round(x), 0, max(0, width - 2))) for x in (box[0], box[2]))
    y1, y2 = (int(np.clip(round(y), 0, max(0, height - 2))) for y in (box[1], box[3]))
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).rectangle((x1, y1, x2 + 1, y2 + 1), outline=line, width=2)
    frame[:] = np.asarray(image)


def result_image(frame: Tensor | None, masks: Tensor, text: str) -> Image.Image:
    """A small image of what was found in one frame, for people: masks tinted in their colours, and a line of text below.

    It must cost next to nothing beside the run that found them, so everything is made small first.

    Args:
        frame: `[H, W, C]` floats in 0..1, C is 1 to 4; None: black.
        masks: bool `[N, H, W]`; of no masks too.
        text: see `result_text`.

    Returns:
        An RGB image.
    """
    height, width = masks.shape[-2:]
    step = max(1, -(-max(height, width) // _RESULT_SIDE))
    small = masks[:, ::step, ::step].cpu().numpy()
    image = Image.fromarray(np.zeros((*small.shape[1:], 3), np.uint8) if frame is None else _sampled(frame, step))
    for index, mask in enumerate(small):
        _tint(image, mask, tuple(colour(index).tolist()))
    return captioned(image, text)


def _sampled(frame: Tensor, step: int) -> np.ndarray:
    """Every `step`-th pixel of `[H, W, C]`, as uint8 `[h, w, 3]`: means of all would take ten times as long.

    Values that are not finite, which no node lets pass, make the image black.
    """
    some = frame[::step, ::step, : 3 if frame.shape[-1] >= 3 else 1].cpu().float()
    levels, largest = to_levels(some.contiguous().numpy())
    levels = levels if math.isfinite(largest) else np.zeros_like(levels)
    return levels if levels.shape[-1] == 3 else np.repeat(levels, 3, axis=2)


def _tint(image: Image.Image, mask: np.ndarray, tint: tuple[int, ...]) -> None:
    """Lay a colour over the mask bool `[h, w]` of an image, in place; its outline is opaque."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        alpha = np.where(outline(inside), np.uint8(255), inside * np.uint8(115))
        image.paste(tint, (int(columns[0]), int(rows[0])), Image.fromarray(alpha))


def captioned(image: Image.Image, text: str) -> Image.Image:
    """An image with a line of text on a plate below, or as many lines as it needs."""
    width = max(image.width, _RESULT_WIDTH)
    lines = _lines(text, width - 12)
    whole = Image.new("RGB", (width, image.height + 6 + len(lines) * (_CAPTION_PIXELS + 4)), (20, 20, 20))
    whole.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        draw.text((6, image.height + 2 + number * (_CAPTION_PIXELS + 4)), line, (255, 255, 255), _font(_CAPTION_PIXELS))
    return whole


def _lines(text: str, width: int) -> list[str]:
    """Words on lines of at most that many pixels; a word that is longer has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(_CAPTION_PIXELS).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def result_text(scores: Sequence[float], seconds: float) -> str:
    """How many objects were found in an image, how sure the model is of each, and how long the run took."""
    listed = sorted(scores, reverse=True)
    if len(listed) > _MOST_SCORES:
        said = f"scores {listed[-1]:.2f} to {listed[0]:.2f}, "
    else:
        said = "".join(f"{score:.2f}, " for score in listed)
    return f"{counted(len(listed), 'object')}: {said}{seconds:.2f} s" if listed else f"no object, {seconds:.2f} s"


def principal_components(
    features: np.ndarray, inside: tuple[int, int] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Features as a colour image: red, green and blue are their first three principal components.

    Args:
        features: float `[C, h, w]` of a square input, one token per grid cell.
        inside: (h, w) in pixels of the resized image within that square, long side = the square's; the padding outside
            is cut off. None: all of it is image.
        size: (H, W) of the result; None: 16 pixels per token.

    Returns:
        uint8 `[H, W, 3]`, each component stretched over all 256 levels.
    """
    channels, height, width = features.shape
    if inside is not None:
        side = max(inside)
        height, width = (max(1, round(grid * part / side)) for grid, part in zip((height, width), inside, strict=True))
    tokens = features[:, :height, :width].reshape(channels, -1).T.astype(np.float64)
    tokens = tokens - tokens.mean(0)
    axes = np.linalg.svd(tokens, full_matrices=False)[2][:3]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # SVD leaves the sign open
    parts = np.zeros((height * width, 3))
    parts[:, : len(axes)] = tokens @ axes.T
    low, high = parts.min(0), parts.max(0)
    levels = (255 * (parts - low) / np.maximum(high - low, 1e-12)).round().astype(np.uint8)
    return resize_pil(levels.reshape(height, width, 3), size or (height * _TOKEN_PIXELS, width * _TOKEN_PIXELS))
