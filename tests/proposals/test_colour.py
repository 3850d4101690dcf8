"""Compare colours, gradients and bins with numpy and scipy."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from scipy import ndimage

from proposals.colour import COLUMNS, find_bins, gradients, shrink, smooth_colours
from proposals.grouping import count_bins
from tests.proposals.scenes import draw_blocks, draw_labels


def random_derivatives(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    values = generator.integers(-300, 301, (2, *shape)).astype(np.int16)
    values[:, ::3, ::2] = 0
    return values[0], values[1]


def test_colour_bins_are_numpy_histograms_of_each_region() -> None:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (19, 28, 3)).astype(np.uint8)
    colours[0, 0], colours[0, 1] = 0, 255
    labels = draw_labels(generator, 19, 28, seeds=6)
    counts = count_bins(labels, find_bins(colours, *random_derivatives(generator, (19, 28))), COLUMNS)
    for region in range(labels.max() + 1):
        pixels = colours[labels == region]
        expected = np.concatenate([np.histogram(pixels[:, c], bins=25, range=(0, 256))[0] for c in range(3)])
        assert counts[region, :75].tolist() == expected.tolist()


def test_texture_bins_are_numpy_histograms_of_eight_slopes() -> None:
    """The positive part of the slope in 8 directions, in steps of 1 / 0.15; everything above the ninth in the last."""
    generator = np.random.default_rng(1)
    across, down = random_derivatives(generator, (23, 31))
    labels = draw_labels(generator, 23, 31, seeds=5)
    colours = np.zeros((23, 31, 3), np.uint8)
    counts = count_bins(labels, find_bins(colours, across, down), COLUMNS)[:, 75:].reshape(-1, 8, 10)
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)]
    edges = [*(step / 0.15 for step in range(10)), math.inf]
    for number, (dx, dy) in enumerate(directions):
        slopes = np.maximum((dx * across.astype(np.float64) + dy * down) / math.hypot(dx, dy), 0)
        for region in range(labels.max() + 1):
            assert counts[region, number].tolist() == np.histogram(slopes[labels == region], edges)[0].tolist()


def test_every_pixel_counts_once_in_each_histogram() -> None:
    generator = np.random.default_rng(2)
    image = draw_blocks(generator, 26, 41)
    labels = draw_labels(generator, 26, 41, seeds=7)
    colours, _ = smooth_colours(image, "hsv", 0.6)
    counts = count_bins(labels, find_bins(colours, *gradients(image)), COLUMNS)
    sizes = np.bincount(labels.ravel())
    assert np.array_equal(counts[:, :75].reshape(-1, 3, 25).sum(axis=2), sizes[:, None].repeat(3, axis=1))
    assert np.array_equal(counts[:, 75:].reshape(-1, 8, 10).sum(axis=2), sizes[:, None].repeat(8, axis=1))


def test_gradients_are_those_of_a_gaussian() -> None:
    """Eight times the derivative, up to the rounding of grey and smoothed levels: half a level each, times 8."""
    image = draw_blocks(np.random.default_rng(3), 30, 44)
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    smooth = ndimage.gaussian_filter(grey, 1.0, mode="mirror", radius=3)
    for found, axis in zip(gradients(image), (1, 0), strict=True):
        expected = ndimage.sobel(smooth, axis=axis, mode="mirror")
        assert found.dtype == np.int16
        assert np.abs(found - expected).max() <= 8
        assert np.abs(expected).max() > 100


def test_smoothed_colours_have_128_steps_to_a_level() -> None:
    image = draw_blocks(np.random.default_rng(4), 24, 37)
    colours, smooth = smooth_colours(image, "lab", 0.8)
    expected = np.stack([ndimage.gaussian_filter(colours[..., c] * 128.0, 0.8, mode="mirror") for c in range(3)], -1)
    assert smooth.dtype == np.uint16
    assert np.abs(smooth - expected).max() < 1
    flat, even = smooth_colours(np.full((5, 8, 3), 77, np.uint8), "hsv", 0.6)
    assert np.array_equal(even, flat.astype(np.uint16) * 128)


def test_hsv_uses_all_256_levels_of_hue() -> None:
    image = draw_blocks(np.random.default_rng(5), 12, 17)
    colours, _ = smooth_colours(image, "hsv", 0.6)
    for pixel, found in zip(image.reshape(-1, 3), colours.reshape(-1, 3).astype(int), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255).tolist())
        turn = abs(found[0] - hue * 256)
        assert min(turn, 256 - turn) <= 1
        assert abs(found[1] - saturation * 255) <= 1
        assert found[2] == round(value * 255)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((375, 500), 360, (270, 360)),
        ((500, 375), 360, (360, 270)),
        ((40, 60), 360, (40, 60)),
        ((1, 900), 360, (1, 360)),
    ],
)
def test_the_longer_side_is_shrunk(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    image = np.full((*size, 3), (10, 20, 30), np.uint8)
    small = shrink(image, side)
    assert small.shape == (*expected, 3)
    assert (small == (10, 20, 30)).all()
    assert (small is image) == (size == expected)
