"""Check the spatial pyramid against PyTorch's adaptive pooling, torchvision's RoI pooling and the paper's bins."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d
from torchvision.ops import roi_pool

from detector import pooling
from detector.pooling import PYRAMID, bins, spatial_pyramid_pool
from tests.sources import REPOSITORY

LONGEST = 64


def distinct_values(channels: int, height: int, width: int) -> Tensor:
    """Return a map without two equal values in a channel, negative ones among them."""
    count = height * width
    rows = [torch.randperm(count).float() - count // 2 for _ in range(channels)]
    return torch.stack(rows).view(channels, height, width)


def pool_each(values: Tensor, windows: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Pool window by window, level by level, with PyTorch: (R, bins, C)."""
    rows = []
    for x1, y1, x2, y2 in windows.tolist():
        crop = values[:, y1:y2, x1:x2]
        rows.append(torch.cat([adaptive_max_pool2d(crop, n).flatten(1) for n in levels], dim=1).T)
    return torch.stack(rows)


def windows_of_sizes(sizes: Iterable[tuple[int, int]], height: int, width: int) -> Tensor:
    """Return one window of every size (cells high, cells wide), anywhere on the map."""
    rows = []
    for h, w in sizes:
        y, x = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
        rows.append((x, y, x + w, y + h))
    return torch.tensor(rows)


def every_window(height: int, width: int) -> Tensor:
    """Return all windows that a small map has, those on its borders and the whole map included."""
    spans = [[(a, b) for a in range(n) for b in range(a + 1, n + 1)] for n in (width, height)]
    return torch.tensor([(x1, y1, x2, y2) for x1, x2 in spans[0] for y1, y2 in spans[1]])


@pytest.mark.parametrize("others", [(1, 2, 5, 6, 7, 29, 64), pytest.param(range(1, 65), marks=pytest.mark.slow)])
def test_every_size_of_window_equals_adaptive_pooling(others: Sequence[int]) -> None:
    """Pool windows of every height and width up to 64 cells, each with some widths and heights or with all."""
    values = distinct_values(2, 67, 71)
    pairs = {(a, b) for a in range(1, LONGEST + 1) for b in others}
    windows = windows_of_sizes(sorted(pairs | {(b, a) for a, b in pairs}), 67, 71)
    assert torch.equal(spatial_pyramid_pool(values, windows), pool_each(values, windows, PYRAMID))


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (1, 13), (13, 1), (1, 1), (7, 8)])
@pytest.mark.parametrize("levels", [PYRAMID, (4, 2, 1), (1,), (5,), (6, 6, 2)])
def test_every_window_of_a_small_map_equals_adaptive_pooling(size: tuple[int, int], levels: tuple[int, ...]) -> None:
    values, windows = distinct_values(3, *size), every_window(*size)
    assert torch.equal(spatial_pyramid_pool(values, windows, levels), pool_each(values, windows, levels))


@pytest.mark.parametrize("size", [(38, 21), (19, 44)])
def test_windows_equal_roi_pooling_of_whole_inclusive_cells(size: tuple[int, int]) -> None:
    values = torch.randn(4, *size)
    corners = torch.rand(300, 2, 2).sort(dim=1).values * torch.tensor([size[1], size[0]])
    windows = torch.cat([corners[:, 0].floor(), (corners[:, 1] + 1).floor()], dim=1).long()
    inclusive = torch.cat([torch.zeros(300, 1), windows[:, :2], windows[:, 2:] - 1], dim=1)
    pooled = spatial_pyramid_pool(values, windows)
    start = 0
    for n in PYRAMID:
        expected = roi_pool(values[None], inclusive, output_size=n, spatial_scale=1.0)
        assert torch.equal(pooled[:, start : start + n * n].transpose(1, 2), expected.flatten(2))
        start += n * n
    assert start == bins(PYRAMID) == pooled.shape[1]
    assert torch.equal(pooling._roi_pool(values, windows, PYRAMID), pooled), "the way of other devices differs"


def test_coarse_bins_are_the_maxima_of_fine_bins() -> None:
    pooled = spatial_pyramid_pool(torch.randn(3, 20, 31), every_window(20, 31)[::37])
    fine = pooled[:, :36].unflatten(1, (6, 6))
    start = 36
    for n, step in ((3, 2), (2, 3), (1, 6)):
        maxima = fine.unflatten(1, (n, step)).unflatten(3, (n, step)).amax(dim=(2, 4))
        assert torch.equal(pooled[:, start : start + n * n], maxima.flatten(1, 2))
        start += n * n


def paper_bins(length: int, n: int) -> list[tuple[int, int]]:
    """Return the cells [start, end) of every bin (He et al. 2015, appendix A)."""
    return [(math.floor(i * length / n), math.ceil((i + 1) * length / n)) for i in range(n)]


def pooled_bins(length: int, n: int) -> list[tuple[int, int]]:
    """Find by pooling which cells of a row each bin covers: rising and falling values show its two ends."""
    rising = torch.arange(length).float().view(1, 1, length)
    window = torch.tensor([[0, 0, length, 1]])
    ends = spatial_pyramid_pool(rising, window, (n,))[0, :n, 0] + 1
    starts = -spatial_pyramid_pool(-rising, window, (n,))[0, :n, 0]
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def sliding_bins(length: int, n: int) -> list[tuple[int, int]]:
    """Return the bins of the formula in the text, win = ceil(a / n) and stride = floor(a / n), as PyTorch slides them.

    A stride of 0 gives one bin only.
    """
    win, stride = math.ceil(length / n), length // n
    if stride == 0:
        return [(0, win)]
    rising = torch.arange(length).float().view(1, 1, length)
    ends = max_pool2d(rising, (1, win), (1, stride)).flatten() + 1
    return [(int(end) - win, int(end)) for end in ends]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_bins_are_those_of_the_appendix_and_not_of_the_formula_in_the_text(n: int) -> None:
    for length in range(1, LONGEST + 1):
        right, sliding = paper_bins(length, n), sliding_bins(length, n)
        assert pooled_bins(length, n) == right
        assert (len(sliding) == n) == (length % n <= length // n), f"{length} cells"
        assert (sliding == right) == (length >= n and length % n <= 1), f"{length} cells"


def test_lengths_for_which_the_formula_in_the_text_gives_a_wrong_number_of_bins() -> None:
    wrong = [length for length in range(1, LONGEST + 1) if len(sliding_bins(length, 6)) != 6]
    assert wrong == [1, 2, 3, 4, 5, 8, 9, 10, 11, 15, 16, 17, 22, 23, 29]


@pytest.mark.parametrize("levels", [PYRAMID, (4, 2), (1,)])
def test_gradient_equals_autograd_through_adaptive_pooling(levels: tuple[int, ...]) -> None:
    """Compare gradients that are small whole numbers, so that their sums do not depend on the order."""
    windows = every_window(9, 14)[::11]
    ours, theirs = (distinct_values(3, 9, 14).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    pooled, expected = spatial_pyramid_pool(ours, windows, levels), pool_each(theirs, windows, levels)
    assert torch.equal(pooled, expected)
    upstream = torch.randint(-8, 9, pooled.shape).float()
    pooled.backward(upstream)
    expected.backward(upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert bool(ours.grad.any())


def test_gradient_of_equal_values_goes_to_one_cell_per_bin() -> None:
    values = torch.zeros(1, 4, 6, requires_grad=True)
    spatial_pyramid_pool(values, torch.tensor([[1, 1, 6, 4]]), (3, 1)).sum().backward()
    assert values.grad is not None
    assert float(values.grad.sum()) == 10
    assert not bool(values.grad[0, 0].any() or values.grad[0, :, 0].any()), "a cell outside the window got some"


def test_memory_layout_and_index_type_make_no_difference() -> None:
    values, windows = torch.randn(5, 11, 17), every_window(11, 17)[::29]
    last = values.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    strided = torch.randn(5, 22, 34)[:, ::2, ::2].copy_(values)
    expected = spatial_pyramid_pool(values, windows)
    for layout in (last, strided, values.clone().requires_grad_()):
        assert torch.equal(spatial_pyramid_pool(layout, windows), expected)
    assert torch.equal(spatial_pyramid_pool(values, windows.int()), expected)
    assert torch.equal(spatial_pyramid_pool(values, windows.T.contiguous().T), expected)


@pytest.mark.parametrize("learns", [False, True])
def test_no_windows(learns: bool) -> None:
    values = torch.randn(5, 3, 4, requires_grad=learns)
    pooled = spatial_pyramid_pool(values, torch.zeros(0, 4, dtype=torch.int64))
    assert (tuple(pooled.shape), pooled.dtype) == ((0, 50, 5), torch.float32)
    if learns:
        pooled.sum().backward()
        assert values.grad is not None
        assert not bool(values.grad.any())


@pytest.mark.parametrize(
    "window",
    [
        (-1, 0, 3, 3),
        (0, -1, 3, 3),
        (0, 0, 10, 3),
        (0, 0, 3, 6),
        (2, 0, 2, 3),
        (0, 2, 3, 2),
        (3, 0, 1, 2),
        (9, 0, 10, 1),
    ],
)
def test_windows_outside_the_map_or_empty_are_refused(window: tuple[int, ...]) -> None:
    windows = torch.tensor([(0, 0, 9, 5), window])
    with pytest.raises(ValueError, match=r"^expected windows .* 5 x 9 cells, got \[" + ", ".join(map(str, window))):
        spatial_pyramid_pool(torch.zeros(2, 5, 9), windows)


@pytest.mark.parametrize("windows", [torch.zeros(1, 4), torch.zeros(4, dtype=torch.int64), torch.ones(1, 5).long()])
def test_windows_that_are_no_table_of_cells_are_refused(windows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected windows of shape \(R, 4\) in whole cells, got "):
        spatial_pyramid_pool(torch.zeros(2, 5, 9), windows)


@pytest.mark.parametrize("levels", [(), (6, 4), (6, 0), (1, 2), (-1,)])
def test_levels_that_do_not_divide_the_finest_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^expected pyramid levels that divide the first, got "):
        spatial_pyramid_pool(torch.zeros(2, 5, 9), torch.tensor([[0, 0, 1, 1]]), levels)


@pytest.mark.parametrize("values", [torch.zeros(5, 9), torch.zeros(1, 2, 5, 9), torch.zeros(2, 5, 9).half()])
def test_values_that_are_no_map_are_refused(values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected map values of shape \(C, h, w\) and type float32, got "):
        spatial_pyramid_pool(values, torch.tensor([[0, 0, 1, 1]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_cpu() -> None:
    values, windows = torch.randn(4, 40, 27), every_window(40, 27)[::301]
    there = spatial_pyramid_pool(values.cuda(), windows.cuda())
    assert torch.equal(there.cpu(), spatial_pyramid_pool(values, windows))


@pytest.mark.slow
def test_is_compiled_looks_where_numba_caches(tmp_path: Path) -> None:
    program = (
        "import torch; from detector import pooling; print(pooling.is_compiled())\n"
        "pooling.spatial_pyramid_pool(torch.zeros(1, 2, 3), torch.tensor([[0, 0, 3, 2]]))\n"
        "print(pooling.is_compiled())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        told.append(done.stdout.split())
    assert told == [["False", "True"], ["True", "True"]]


def test_is_compiled_after_use() -> None:
    spatial_pyramid_pool(torch.zeros(1, 2, 3), torch.tensor([[0, 0, 3, 2]]))
    assert pooling.is_compiled()
