"""Draw an explanation on its photo: what speaks for a detection in warm colours, what speaks against it in cool ones.

The photo becomes grey, so that no colour of its own is taken for a contribution. Below it stand the sum that the score
is made of and the scale of the colours. Sizes follow the image, as in `detector.drawing`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import Colour, draw_outline, font_size, label_font, line_width, padding, whole_pixels
from .explanation import Explanation, heat_map
from .images import from_pillow, to_pillow

# Vermillion and blue of the palette for all kinds of colour vision of Okabe and Ito (2008).
FOR: Colour = (213, 94, 0)
AGAINST: Colour = (0, 114, 178)
_STRONGEST = 0.85  # opacity of the largest contribution: some of the photo is to be seen everywhere
_GROUND: Colour = (255, 255, 255)
_INK: Colour = (0, 0, 0)
_OUTLINE: Colour = (255, 255, 255)
_GREY = 128
_LEAST_WIDTH = 26  # of the picture, in sizes of its font: a thumbnail gets margins, so that its caption is legible


def draw_explanation(image: Tensor, explanation: Explanation, class_names: tuple[str, ...]) -> Tensor:
    """Draw the heat map of an explanation and the region's outline on a (3, H, W) uint8 image, a caption below it.

    The opacity of a colour grows with what its pixels add to the margin; the largest amount has the full colour.
    Returns a (3, H', W') uint8 picture, larger than the image by the caption.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    heat = heat_map(explanation)
    peak = float(heat.values.abs().max())
    photo = np.array(to_pillow(image).convert("L"))[:, :, None].repeat(3, axis=2)
    (rows, columns), (x, y) = heat.values.shape, heat.corner
    part = photo[y : y + rows, x : x + columns]
    part[:] = tint(part, heat.values.numpy() / (peak or 1.0))
    picture = Image.fromarray(photo)
    region = whole_pixels(explanation.region.tolist(), (height, width))
    draw_outline(ImageDraw.Draw(picture), region, _OUTLINE, line_width(height, width))
    caption = _caption(explanation, class_names[explanation.label])
    strip = _strip(caption, peak * rows * columns / 100, width, font_size(height, width))
    whole = Image.new("RGB", (strip.width, height + strip.height), _GROUND)
    whole.paste(picture, ((strip.width - width) // 2, 0))
    whole.paste(strip, (0, height))
    return from_pillow(whole)


def tint(grey: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay colours over (h, w, 3) pixels. values: (h, w) in [-1, 1], 1 the most for a detection, -1 against it."""
    opacity = (_STRONGEST * np.abs(values))[:, :, None]
    colour = np.where(values[:, :, None] > 0, np.array(FOR), np.array(AGAINST))
    mixed: NDArray[np.uint8] = np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8)
    return mixed


def _caption(explanation: Explanation, name: str) -> str:
    """Say how the score comes about: "dog 0.93: margin 2.54 = intercept -1.10 + bins 3.64"."""
    score = f"{' '.join(name.split())} {explanation.score:.2f}"
    if explanation.weight != 1:
        plain = float(torch.tensor(explanation.margin).sigmoid())
        score += f" = {explanation.weight:.2f} x {plain:.2f}"
    sum_of_two = f"intercept {explanation.intercept:.2f} + bins {explanation.total:.2f}"
    return f"{score}: margin {explanation.margin:.2f} = {sum_of_two}"


def _strip(caption: str, peak: float, width: int, points: int) -> Image.Image:
    """Write a caption and the scale of the colours on a strip, at least as wide as the image.

    peak: of the scale, in margin per hundredth of the area of the heat map. points: size of the font in pixels.
    """
    font = label_font(points)
    gap, height = padding(font), sum(font.getmetrics())
    width = max(width, _LEAST_WIDTH * points)
    ends = f"against {-peak:.2g} ", f" {peak:.2g} for", "margin per 1 % of the coloured area"
    lines = _wrap(caption, width - 2 * gap, font)
    left, right, unit = (int(font.getlength(text)) for text in ends)
    bar = max(min(8 * points, width - 2 * gap - left - right), 4 * points)
    beside = 2 * gap + left + bar + right + 2 * points + unit <= width
    rows = len(lines) + (1 if beside else 2)
    strip = Image.new("RGB", (width, rows * (height + gap) + 2 * gap), _GROUND)
    brush = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        brush.text((gap, gap + number * (height + gap)), line, fill=_INK, font=font)
    y = gap + len(lines) * (height + gap)
    brush.text((gap, y), ends[0], fill=_INK, font=font)
    values = np.broadcast_to(np.linspace(-1, 1, bar), (height, bar))
    strip.paste(Image.fromarray(tint(np.full((height, bar, 3), _GREY, np.uint8), values)), (gap + left, y))
    brush.text((gap + left + bar, y), ends[1], fill=_INK, font=font)
    place = (gap + left + bar + right + 2 * points, y) if beside else (gap, y + height + gap)
    brush.text(place, ends[2], fill=_INK, font=font)
    return strip


def _wrap(text: str, width: int, font: Any) -> list[str]:
    """Break a text into lines of at most so many pixels; a word that is wider gets a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
