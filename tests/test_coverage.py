"""Check what part of a window lies in every cell of another map, against a count of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.boxes import coverage
from detector.features import flip_map
from detector.sampling import mirror
from detector.structures import FeatureMap


def placed(size: tuple[int, int], stride: int, offset: float | tuple[float, float]) -> FeatureMap:
    return FeatureMap(torch.zeros(1, *size), stride, offset, (1.0, 1.0))


# Source and target: the same cells, cells of twice the side laid with and without a shift, and maps that the other
# sticks out of, or lies outside of, on some sides. All edges of cells are at whole or half pixels.
COVERED = {
    "itself": (placed((4, 7), 16, 15.0), placed((4, 7), 16, 15.0)),
    "lite": (placed((4, 7), 16, 15.0), placed((2, 4), 32, 31.0)),
    "resnet": (placed((5, 8), 16, 0.0), placed((3, 4), 32, 0.0)),
    "finer": (placed((3, 5), 16, 7.5), placed((11, 9), 5, (2.0, 1.5))),
    "mirrored": (placed((4, 7), 8, (3.5, -1.5)), placed((2, 4), 16, (7.5, -9.5))),
    "too small": (placed((6, 9), 8, (0.0, -20.0)), placed((2, 1), 12, (10.5, 6.0))),
    "elsewhere": (placed((3, 4), 8, 500.0), placed((2, 5), 16, 7.5)),
}


def all_windows(feature_map: FeatureMap) -> Tensor:
    height, width = feature_map.values.shape[1:]
    rows = [(y1, y2) for y1 in range(height) for y2 in range(y1 + 1, height + 1)]
    columns = [(x1, x2) for x1 in range(width) for x2 in range(x1 + 1, width + 1)]
    return torch.tensor([[x1, y1, x2, y2] for y1, y2 in rows for x1, x2 in columns])


def points(first: int, last: int, axis: int, source: FeatureMap, target: FeatureMap) -> list[int]:
    """Put two points on every pixel of cells first to last - 1 of `source`; return the nearest cells of `target`."""
    start = source.offsets[axis] + (first - 0.5) * source.stride
    positions = [start + n / 2 + 0.25 for n in range(2 * source.stride * (last - first))]
    centres = [target.offsets[axis] + j * target.stride for j in range(target.values.shape[1 + axis])]
    return [min(range(len(centres)), key=lambda j: abs(centres[j] - p)) for p in positions]


@pytest.mark.parametrize("case", COVERED)
def test_coverage_counts_the_pixels_of_a_window_in_every_cell(case: str) -> None:
    """Count pixels' quarters; what lies beyond the target's border belongs to its nearest cell."""
    source, target = COVERED[case]
    windows = all_windows(source)[::7]
    shares = coverage(windows, source, target)
    assert (tuple(shares.shape), shares.dtype) == ((len(windows), target.values[0].numel()), torch.float64)
    for (x1, y1, x2, y2), share in zip(windows.tolist(), shares, strict=True):
        counts = np.zeros(target.values.shape[1:])
        rows, columns = points(y1, y2, 0, source, target), points(x1, x2, 1, source, target)
        np.add.at(counts, tuple(np.meshgrid(rows, columns, indexing="ij")), 1)
        expected = torch.from_numpy(counts / counts.sum()).flatten()
        torch.testing.assert_close(share, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", COVERED)
def test_coverage_of_every_window_sums_to_one(case: str) -> None:
    source, target = COVERED[case]
    windows = all_windows(source)
    shares = coverage(windows, source, target)
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(windows), dtype=torch.float64))
    assert tuple(coverage(windows[:0], source, target).shape) == (0, target.values[0].numel())


def test_coverage_by_hand() -> None:
    """Lay a window of 3 x 2 cells of 16 pixels on cells of 32: rows 1 and 2 straddle two cells, column 4 sticks out."""
    source, target = placed((4, 5), 16, 7.5), placed((2, 2), 32, 15.5)
    share = coverage(torch.tensor([[2, 1, 5, 3], [0, 0, 1, 1]]), source, target)
    assert share.tolist() == [[0, 0.5, 0, 0.5], [1, 0, 0, 0]]


def test_coverage_is_mirrored_with_its_maps() -> None:
    source, target = placed((4, 7), 16, 15.0), placed((2, 4), 32, 31.0)
    windows = all_windows(source)
    there = coverage(windows, source, target).unflatten(1, (2, 4))
    turned = mirror(windows, 7)  # cells, as boxes are mirrored in pixels
    back = coverage(turned, flip_map(source, 107), flip_map(target, 107)).unflatten(1, (2, 4))
    torch.testing.assert_close(back, there.flip(2))
