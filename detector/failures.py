"""Say what to do about each cause of failure, and draw one failure: what was missed or invented, and what was near."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw, ImageFont
from torch import Tensor

from .images import from_pillow, resize_image, scaled_size, to_pillow
from .structures import Detections, Size

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
# Told apart without colour as well: objects are dashed and thick, detections whole and labelled, proposals thin.
OBJECT: Colour = (255, 230, 0)
DETECTION: Colour = (213, 40, 40)
PROPOSAL: Colour = (90, 200, 255)
_RIM: Colour = (0, 0, 0)
_DASH, _GAP = 9, 6  # pixels of the scaled picture
_FONT = 12
# What to do about each cause, in one sentence; what stands between backquotes is typed.
ADVICE = {
    "localisation": "The right class, but the box fits poorly: train with more weight on boxes (`--set box_weight=2`), "
    "or give finer proposals (`--proposals quality`).",
    "class": "The box fits an object of another class: look for the pair in the confusion matrix and add training "
    "photos of both.",
    "duplicate": "The object had been found already with a better score: train with stricter suppression "
    "(`--set nms=0.25`).",
    "background": "Nothing is there: add training photos of what is mistaken for the class.",
    "class and localisation": "Wrong class and a poor box at once, mostly parts of objects or groups of them: add "
    "training photos of both classes.",
    "no proposal": "No proposal covered the object: try `--proposals quality`, or train with more of them "
    "(`--set max_proposals=4000`).",
    "low score": "A proposal covered the object but its score was too low: add training photos that show such objects "
    "(small, cut off, from that side).",
    "regression": "A good proposal was moved off the object: train longer or with more photos of the class, so that "
    "its shapes are known.",
    "suppressed": "The object was found and then dropped for a neighbour or for the limit: train with milder "
    "suppression (`--set nms=0.4`) or a higher limit (`--set max_detections=200`).",
    "missed": "Nothing was detected there: evaluate a model rather than its detections to learn whether proposals or "
    "scores failed.",
}


@dataclass(frozen=True, slots=True)
class _View:
    """Hold the (height, width) of the scaled picture, and by how much x and y were scaled."""

    size: Size
    factors: tuple[float, float]

    def place(self, box: Sequence[float], margin: int) -> Rectangle:
        """Return a box in whole pixels, right and bottom inclusive, at least `margin` pixels inside the picture."""
        starts, ends = [], []
        for start, end, factor, side in zip(box[:2], box[2:], self.factors, reversed(self.size), strict=True):
            first = min(max(math.floor(start * factor + 0.5), margin), side - 1 - margin)
            starts.append(first)
            ends.append(max(first, min(math.ceil(end * factor - 0.5) - 1, side - 1 - margin)))
        return starts[0], starts[1], ends[0], ends[1]


def draw_failure(image: Tensor, target: Tensor | None, found: Detections, proposals: Tensor, size: int = 480) -> Tensor:
    """Return the photo with everything drawn, its longer side `size` pixels, (3, h, w) uint8.

    image: (3, H, W) uint8. target: (4,), the object in question, or None for a false alarm where nothing is. found: the
    detections to show, each with its class and score. proposals: (P, 4). All boxes are in pixels of `image`, exclusive.
    From bottom to top: proposals, thin; detections, the best score on top; the object, dashed; labels. Raises
    ValueError if `size` is less than 16.
    """
    if size < 16:
        raise ValueError(f"expected a picture of at least 16 pixels, got {size}")
    height, width = int(image.shape[1]), int(image.shape[2])
    scaled = scaled_size((height, width), size, size)
    view = _View(scaled, (scaled[1] / width, scaled[0] / height))
    picture = to_pillow(resize_image(image, scaled))
    brush = ImageDraw.Draw(picture)
    for box in proposals.tolist():
        _draw_solid(brush, view.place(box, 0), PROPOSAL, 1)
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    best_first = sorted(rows, key=lambda row: -row[0])
    marks = [
        (view.place(box, 2), f"{' '.join(found.class_names[label].split())} {score:.2f}")
        for score, label, box in best_first
    ]
    for box, _ in reversed(marks):
        _draw_solid(brush, box, DETECTION, 2)
    if target is not None:
        _draw_dashed(brush, view.place(target.tolist(), 4), OBJECT, 3)
    _draw_labels(brush, marks, picture.size)
    return from_pillow(picture)


def _draw_solid(brush: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, thickness: int) -> None:
    """Draw a box outward from its border, so that what is small stays visible, with a dark rim if it is thick."""
    if thickness > 1:
        brush.rectangle(_grown(box, thickness), outline=_RIM, width=1)
    brush.rectangle(_grown(box, thickness - 1), outline=colour, width=thickness)


def _draw_dashed(brush: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, thickness: int) -> None:
    """Draw a box of dashes on a dark line, outward from its border; every corner is whole."""
    brush.rectangle(_grown(box, thickness), outline=_RIM, width=thickness + 2)
    left, top, right, bottom = _grown(box, thickness - 1)
    for start, end in _dashes(left, right):
        brush.rectangle((start, top, end, top + thickness - 1), fill=colour)
        brush.rectangle((start, bottom - thickness + 1, end, bottom), fill=colour)
    for start, end in _dashes(top, bottom):
        brush.rectangle((left, start, left + thickness - 1, end), fill=colour)
        brush.rectangle((right - thickness + 1, start, right, end), fill=colour)


def _dashes(first: int, last: int) -> list[tuple[int, int]]:
    """Divide the pixels from `first` to `last` into dashes with gaps, a dash at both ends."""
    count = max(1, round((last - first + 1 + _GAP) / (_DASH + _GAP)))
    gap = min(_GAP, (last - first + 1) / (2 * count)) if count > 1 else 0
    dash = (last - first + 1 - gap * (count - 1)) / count
    starts = [first + i * (dash + gap) for i in range(count)]
    return [(round(start), max(round(start), min(last, round(start + dash) - 1))) for start in starts]


def _grown(box: Rectangle, pixels: int) -> Rectangle:
    return box[0] - pixels, box[1] - pixels, box[2] + pixels, box[3] + pixels


def _draw_labels(brush: ImageDraw.ImageDraw, marks: Sequence[tuple[Rectangle, str]], size: tuple[int, int]) -> None:
    """Write the labels, best first, each where it covers none before it: above its box, or in it, or further down."""
    font = ImageFont.load_default(size=_FONT)
    taken: list[Rectangle] = []
    for box, text in marks:
        width, height = math.ceil(font.getlength(text)) + 6, _FONT + 4
        x = max(0, min(box[0] - 2, size[0] - width))
        wanted = [box[1] - height - 2, box[3] + 3, *range(box[1] + 3, size[1] - height, height + 1)]
        places = [(x, max(0, min(y, size[1] - height))) for y in wanted]
        free = (place for place in places if not any(_overlap((*place, width, height), other) for other in taken))
        left, top = next(free, places[0])
        taken.append((left, top, width, height))
        brush.rectangle((left, top, left + width - 1, top + height - 1), fill=DETECTION, outline=_RIM)
        brush.text((left + 3, top), text, fill=(255, 255, 255), font=font)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    """Tell whether two plates, (left, top, width, height), share a pixel."""
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
