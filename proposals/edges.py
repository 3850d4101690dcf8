"""Find the edges of an image: how strong each is, and which way it faces.

Two ways: gradients, which need nothing, and structured forests (Dollar and Zitnick, ICCV 2013), which need a contrib
build of OpenCV and the file of a trained model. Both give a map that is thin: zero beside the crest of every edge.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from .colour import Bytes

Singles = NDArray[np.float32]

SIGMA = 1.5  # pixels of the Gaussian before gradients are taken
SPREAD = 11  # pixels of the side of the square whose mean gradient an edge is measured by
FLOOR = 6.0  # levels of 256 per pixel, added to that mean: what is weaker is noise
PATCH = 32  # pixels of the side of what a forest looks at
MODEL = "a model of structured edges (model.yml.gz of opencv_extra)"


def find_edges(image: Bytes) -> tuple[Singles, Singles]:
    """Return strengths in [0, 1] and directions in [0, pi) of the edges of an (H, W, 3) RGB image, (H, W) float32 each.

    A gradient is that of the Lab channel where it is largest. Its strength is relative to the mean around it, so that
    the edges of fine texture, which are everywhere, are weak. The direction is that of the gradient, across the edge,
    clockwise from the x axis; opposite directions are one.
    """
    lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), SIGMA)
    across, down = (cv2.Sobel(lab, cv2.CV_32F, dx, 1 - dx, ksize=3, scale=0.25) for dx in (1, 0))
    strength, direction = steepest(np.asarray(across, np.float32), np.asarray(down, np.float32))
    around = np.asarray(cv2.blur(strength, (SPREAD, SPREAD)), np.float32)
    return thin(np.minimum(strength / (2 * (around + np.float32(FLOOR))), np.float32(1)), direction), direction


@njit(cache=True, nogil=True)
def steepest(across: Singles, down: Singles) -> tuple[Singles, Singles]:
    """Return length and direction of the longest of C gradients at every pixel; across, down: (H, W, C) float32."""
    height, width, channels = across.shape
    strength, direction = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            best, dx, dy = np.float32(-1), np.float32(0), np.float32(0)
            for c in range(channels):
                square = across[y, x, c] * across[y, x, c] + down[y, x, c] * down[y, x, c]
                if square > best:
                    best, dx, dy = square, across[y, x, c], down[y, x, c]
            strength[y, x] = math.sqrt(best)
            angle = math.atan2(dy, dx)
            angle = angle + math.pi if angle < 0 else angle
            direction[y, x] = 0 if angle >= math.pi - 1e-6 else angle
    return strength, direction


@njit(cache=True, nogil=True)
def thin(strength: Singles, direction: Singles) -> Singles:
    """Set to zero all edges that are weaker than what is a pixel further along their direction, to either side."""
    height, width = strength.shape
    out = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            value = strength[y, x]
            dx, dy = math.cos(direction[y, x]), math.sin(direction[y, x])
            if value > 0 and value >= _between(strength, x + dx, y + dy) and value > _between(strength, x - dx, y - dy):
                out[y, x] = value
    return out


@njit(cache=True, nogil=True, inline="always")
def _between(values: Singles, x: float, y: float) -> float:
    """Interpolate linearly between pixels; what lies outside counts as the nearest pixel."""
    height, width = values.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    u, v = x - x0, y - y0
    top = values[y0, x0] * (1 - u) + values[y0, x1] * u
    return float(top * (1 - v) + (values[y1, x0] * (1 - u) + values[y1, x1] * u) * v)


def _contrib() -> Any:
    return getattr(cv2, "ximgproc", None)


def load_forest(model: Path) -> Any:
    """Open a model of structured edges.

    Raises ValueError if OpenCV comes without ximgproc or the file is none such, FileNotFoundError if there is no file.
    """
    if not hasattr(_contrib(), "createStructuredEdgeDetection"):
        raise ValueError(
            f"expected a contrib build of OpenCV, which finds structured edges, got OpenCV {cv2.__version__} without "
            "ximgproc: uninstall opencv-python before you install opencv-contrib-python"
        )
    if not Path(model).is_file():
        raise FileNotFoundError(f"{model}: expected {MODEL}, got no file")
    try:
        return _contrib().createStructuredEdgeDetection(str(model))
    except (cv2.error, SystemError, MemoryError) as error:
        raise ValueError(f"{model}: expected {MODEL}, got something else") from error


def find_structured_edges(image: Bytes, forest: Any) -> tuple[Singles, Singles]:
    """Return strengths and directions as `find_edges` does, by a forest of `load_forest`.

    OpenCV takes no image with a side below 16 pixels, so such a side is filled up by repeating the last row or column.
    """
    height, width = image.shape[:2]
    below, right = max(PATCH - height, 0), max(PATCH - width, 0)
    filled = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    strength = forest.detectEdges(filled.astype(np.float32) / 255)
    direction = forest.computeOrientation(strength)
    thinned = forest.edgesNms(strength, direction)
    return thinned[:height, :width].copy(), direction[:height, :width].copy()
