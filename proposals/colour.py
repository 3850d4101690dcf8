"""Prepare what segmentation and grouping look at: a smoothed image in a colour space, and the bins of its pixels.

Colours and textures are described as Uijlings et al. (IJCV 2013, section 3.2) do it: histograms of 25 bins per colour
channel, and of 10 bins for each of 8 orientations of Gaussian derivatives.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SPACES = {"rgb": None, "hsv": cv2.COLOR_RGB2HSV_FULL, "lab": cv2.COLOR_RGB2LAB}
COLOUR_BINS, ORIENTATIONS, TEXTURE_BINS = 25, 8, 10
COLOUR_COLUMNS = 3 * COLOUR_BINS
COLUMNS = COLOUR_COLUMNS + ORIENTATIONS * TEXTURE_BINS


def shrink(image: Bytes, side: int) -> Bytes:
    """Resize an (H, W, 3) image so that its longer side is at most `side`; a smaller image is returned as it is."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def smooth_colours(image: Bytes, space: str, sigma: float) -> tuple[Bytes, NDArray[np.uint16]]:
    """Return an (H, W, 3) RGB image in a colour space: as uint8, and smoothed, as uint16 of 128 steps to a level."""
    code = SPACES[space]
    colours = image if code is None else np.asarray(cv2.cvtColor(image, code), np.uint8)
    return colours, np.asarray(cv2.GaussianBlur(colours.astype(np.uint16) << 7, (0, 0), sigma), np.uint16)


def gradients(image: Bytes) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return 8 times the horizontal and vertical derivative of the grey of an (H, W, 3) RGB image, (H, W) each.

    The grey image is smoothed with a Gaussian of 1 pixel first.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    across, down = (cv2.Sobel(grey, cv2.CV_16S, dx, 1 - dx, ksize=3) for dx in (1, 0))
    return np.asarray(across, np.int16), np.asarray(down, np.int16)


@njit(cache=True, nogil=True)
def find_bins(colours: Bytes, across: NDArray[np.int16], down: NDArray[np.int16]) -> NDArray[np.uint16]:
    """Return the histogram columns of every pixel, (H, W, 11) uint16: 3 of colour, 8 of texture.

    A derivative in direction t is cos(t) across + sin(t) down; each orientation counts its positive part.
    """
    height, width = across.shape
    bins = np.empty((height, width, 3 + ORIENTATIONS), np.uint16)
    half, step = np.float32(np.sqrt(0.5)), np.float32(0.15)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                bins[y, x, c] = c * COLOUR_BINS + colours[y, x, c] * COLOUR_BINS // 256
            dx, dy = np.float32(across[y, x]), np.float32(down[y, x])
            slopes = (dx, dy, (dx + dy) * half, (dx - dy) * half)
            for d in range(4):
                level = min(int(abs(slopes[d]) * step), TEXTURE_BINS - 1)
                column = COLOUR_COLUMNS + 2 * d * TEXTURE_BINS
                bins[y, x, 3 + 2 * d] = column + (level if slopes[d] > 0 else 0)
                bins[y, x, 4 + 2 * d] = column + TEXTURE_BINS + (level if slopes[d] < 0 else 0)
    return bins
