"""Draw boxes and their labels on images, legible on any background.

Every class has a fixed colour; every line has a rim of black or white beside it, every label a plate of its class's
colour. Sizes follow the image, so that a thumbnail and a poster look alike.
"""

from __future__ import annotations

import colorsys
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont
from torch import Tensor

from .files import write_bytes
from .images import from_pillow, to_pillow
from .structures import BoxScores, Detections

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Twenty colours chosen one after the other, each as far in CIE Lab from those before it as the fully lit and the
# half lit colours of the HSV cone allow: no two are closer than 40 units, where 2 can just be told apart.
_PALETTE: tuple[Colour, ...] = (
    (255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 204, 255), (140, 28, 107),
    (140, 129, 28), (0, 217, 152), (255, 255, 0), (51, 112, 255), (255, 51, 255),
    (255, 152, 140), (28, 84, 140), (255, 153, 0), (140, 0, 14), (89, 178, 0),
    (77, 140, 121), (255, 0, 128), (255, 140, 244), (232, 255, 140), (0, 0, 140),
)  # fmt: skip
_TONES = ((0.95, 1.0), (0.95, 0.6), (0.45, 1.0))  # saturation, value
_BACKGROUND: Colour = (128, 128, 128)
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_QUALITY = 92


@dataclass(frozen=True, slots=True)
class _Mark:
    """Hold one box to draw, in whole pixels, right and bottom inclusive."""

    box: Rectangle
    text: str
    colour: Colour


def class_colour(label: int) -> Colour:
    """Return the RGB colour of a class: the first 20 differ clearly, later ones take golden-ratio steps in hue."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    saturation, value = _TONES[label % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.6180339887498949 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(plate: Colour) -> Colour:
    """Return black or white, whichever has the greater contrast to a colour (WCAG 2.1, relative luminance)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in plate]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def line_width(height: int, width: int) -> int:
    """Return the thickness of a box in pixels: 1 on a thumbnail, 2 at 375 x 500, 20 at 4000 x 6000."""
    return max(1, round(0.0042 * math.sqrt(height * width)))


def font_size(height: int, width: int) -> int:
    """Return the size of a label's font in pixels: 10 on a thumbnail, 14 at 375 x 500, 157 at 4000 x 6000."""
    return max(10, round(0.032 * math.sqrt(height * width)))


def draw_detections(image: Tensor, detections: Detections) -> Tensor:
    """Draw boxes and labels such as "cat 0.93" on a copy of a (3, H, W) uint8 image; higher scores lie on top."""
    names, size = detections.class_names, image.shape[1:]
    rows = zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True)
    best_first = sorted(rows, key=lambda row: -row[2])
    marks = [
        _Mark(whole_pixels(box, size), _text(names[label], score), class_colour(label))
        for box, label, score in best_first
    ]
    return _draw(image, marks)


def draw_boxes(image: Tensor, scores: BoxScores) -> Tensor:
    """Draw boxes that the user brought, with their most probable class; grey where background is more probable."""
    size, background = image.shape[1:], len(scores.class_names)
    names = (*scores.class_names, "background")
    best, labels = scores.probabilities.max(dim=1)
    rows = zip(scores.boxes.tolist(), labels.tolist(), best.tolist(), strict=True)
    by_interest = sorted(rows, key=lambda row: (row[1] == background, -row[2]))
    marks = [
        _Mark(whole_pixels(box, size), _text(names[k], score), _BACKGROUND if k == background else class_colour(k))
        for box, k, score in by_interest
    ]
    return _draw(image, marks)


def encode_png(image: Tensor) -> bytes:
    """Return a (3, H, W) uint8 image as the content of a PNG file."""
    return _encode(image, "PNG")


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a (3, H, W) uint8 image as JPEG (quality 92), PNG or WebP, by its suffix; never leave half a file.

    Raises ValueError for another suffix and OSError if the folder cannot be written.
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        got = target.suffix or "no suffix"
        raise ValueError(f"{target}: expected a picture's name that ends in {', '.join(_FORMATS)}, got {got}")
    write_bytes(target, _encode(image, kind))


def _encode(image: Tensor, kind: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": _QUALITY}
    if kind == "JPEG":
        options["subsampling"] = 0  # full colour resolution: thin coloured lines stay sharp
    to_pillow(image).save(buffer, kind, **options)
    return buffer.getvalue()


def _text(name: str, score: float) -> str:
    return f"{' '.join(name.split())} {score:.2f}"


def whole_pixels(box: Sequence[float], size: Sequence[int]) -> Rectangle:
    """Turn an exclusive float box into the whole pixels that it covers, kept inside the image, at least one."""
    height, width = size
    left, top = (min(max(math.floor(v + 0.5), 0), limit - 1) for v, limit in zip(box[:2], (width, height), strict=True))
    right, bottom = (min(max(math.ceil(v - 0.5), 1), limit) for v, limit in zip(box[2:], (width, height), strict=True))
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _draw(image: Tensor, marks: Sequence[_Mark]) -> Tensor:
    """Draw marks, best first: boxes from the last to the first, then labels in the same order on top of all boxes."""
    picture = to_pillow(image)
    brush = ImageDraw.Draw(picture)
    thickness = line_width(picture.height, picture.width)
    for mark in reversed(marks):
        draw_outline(brush, mark.box, mark.colour, thickness)
    placed: list[tuple[_Mark, Rectangle, Any]] = []
    for mark in marks:  # the best choose their places first
        font, extent = _fit(mark.text, picture.size)
        placed.append((mark, _place(mark.box, extent, picture.size, [plate for _, plate, _ in placed]), font))
    for mark, plate, font in reversed(placed):
        _draw_label(brush, mark, plate, font)
    return from_pillow(picture)


def draw_outline(brush: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, thickness: int) -> None:
    """Draw a box inward from its border, with a rim of the contrasting colour on both sides."""
    left, top, right, bottom = box
    rim, contrast = max(1, thickness // 4), text_colour(colour)
    inner = thickness + rim
    brush.rectangle((left - rim, top - rim, right + rim, bottom + rim), outline=contrast, width=rim)
    if right - left > 2 * inner and bottom - top > 2 * inner:
        brush.rectangle(box, outline=contrast, width=inner)
    brush.rectangle(box, outline=colour, width=thickness)


@lru_cache(maxsize=64)
def label_font(size: int) -> Any:
    """Return the font of labels in a size of pixels."""
    return ImageFont.load_default(size=size)


def padding(font: Any) -> int:
    """Return the pixels to the left and right of a text on its plate."""
    return max(1, round(float(font.size) / 6))


def _fit(text: str, size: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """Return a font, smaller than usual if the label would be wider than the image, and its plate's width, height."""
    points = font_size(size[1], size[0])
    while True:
        font = label_font(points)
        ascent, descent = font.getmetrics()
        extent = math.ceil(font.getlength(text)) + 2 * padding(font), int(ascent + descent)
        if (extent[0] <= size[0] and extent[1] <= size[1]) or points <= 6:
            return font, extent
        points -= max(1, points // 20)


def _place(box: Rectangle, extent: tuple[int, int], size: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle:
    """Find a place for a plate at its box that is inside the image and, if there is one, covers no other plate."""
    best, least = (0, 0, 0, 0), math.inf
    for left, top in _places(box, extent):
        x = max(0, min(left, size[0] - extent[0]))
        y = max(0, min(top, size[1] - extent[1]))
        plate = (x, y, x + extent[0] - 1, y + extent[1] - 1)
        covered = sum(_overlap(plate, other) for other in taken)
        if covered < least:
            best, least = plate, covered
        if covered == 0:
            break
    return best


def _places(box: Rectangle, extent: tuple[int, int]) -> list[tuple[int, int]]:
    """List the places of a plate in order of preference: above its box, inside, below, then down the left side."""
    left, top, right, bottom = box
    width, height = extent
    rows = (top - height, top, bottom + 1, bottom + 1 - height)
    corners = [(x, y) for x in (left, right + 1 - width) for y in rows]
    return corners + [(left, y) for y in range(top + height, bottom + 1 - height, max(1, height // 2))]


def _overlap(a: Rectangle, b: Rectangle) -> int:
    """Return how many pixels two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)


def _draw_label(brush: ImageDraw.ImageDraw, mark: _Mark, plate: Rectangle, font: Any) -> None:
    contrast = text_colour(mark.colour)
    brush.rectangle(plate, fill=mark.colour, outline=contrast, width=max(1, font.size // 24))
    brush.text((plate[0] + padding(font), plate[1]), mark.text, fill=contrast, font=font)
