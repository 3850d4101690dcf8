"""Check the pooling layer against PyTorch's adaptive pooling and bins counted by hand, at every size up to 64 x 64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, max_pool2d

from detector.pooling import spatial_pyramid_pool
from detector.pyramid import SpatialPyramidPool, by_bins

LONGEST = 64
ADAPTIVE: dict[str, Callable[[Tensor, int], Tensor]] = {"max": adaptive_max_pool2d, "average": adaptive_avg_pool2d}
PYRAMIDS = [(6, 3, 2, 1), (4, 2, 1), (5, 3)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pool these thousands of small maps with one thread: two would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distinct_values(*shape: int) -> Tensor:
    """Return maps without two equal values, negative ones among them."""
    count = math.prod(shape)
    return torch.randperm(count).double().view(shape) - count // 2


def pool_each(values: Tensor, levels: tuple[int, ...], mode: str) -> Tensor:
    """Pool map by map and level by level with PyTorch: (N, C * bins)."""
    return torch.stack([torch.cat([ADAPTIVE[mode](v, n).flatten() for n in levels]) for v in values])


def paper_bins(length: int, n: int) -> list[tuple[int, int]]:
    """Return the cells [start, end) of every bin (He et al. 2015, appendix A)."""
    return [(math.floor(i * length / n), math.ceil((i + 1) * length / n)) for i in range(n)]


def pool_by_hand(values: Tensor, levels: tuple[int, ...], mode: str) -> Tensor:
    """Pool (C, H, W) bin by bin with numpy: (C * bins,)."""
    array, vector = values.numpy(), []
    for n in levels:
        for channel in array:
            for top, bottom in paper_bins(array.shape[1], n):
                for left, right in paper_bins(array.shape[2], n):
                    cells = channel[top:bottom, left:right]
                    vector.append(cells.max() if mode == "max" else cells.mean())
    return torch.from_numpy(np.array(vector))


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("levels", PYRAMIDS)
def test_every_size_equals_adaptive_pooling(levels: tuple[int, ...], mode: str) -> None:
    layer, cells = SpatialPyramidPool(levels, mode), distinct_values(1, 2, LONGEST, LONGEST).float()
    for height in range(1, LONGEST + 1):
        for width in range(1, LONGEST + 1):
            values = cells[:, :, :height, -width:]
            assert torch.equal(layer(values), pool_each(values, levels, mode)), f"{height} x {width} cells"


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("width", [1, 2, 5, 13, 64])
def test_every_height_equals_bins_counted_by_hand(width: int, mode: str) -> None:
    """Compare with no code of PyTorch, in float64, where means round by 2**-52 of the largest value."""
    layer, cells = SpatialPyramidPool((6, 4, 1), mode), distinct_values(2, LONGEST, width)
    for height in range(1, LONGEST + 1):
        values = cells[:, :height]
        torch.testing.assert_close(layer(values), pool_by_hand(values, (6, 4, 1), mode), rtol=0, atol=1e-10)
        transposed = values.transpose(1, 2)
        torch.testing.assert_close(layer(transposed), pool_by_hand(transposed, (6, 4, 1), mode), rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2, 1), (1,), (6, 6, 2)])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (40, 9), (3, 5)])
def test_a_map_equals_a_window_that_is_the_whole_map(size: tuple[int, int], levels: tuple[int, ...]) -> None:
    values = torch.randn(5, *size)
    window = torch.tensor([[0, 0, size[1], size[0]]])
    pooled = spatial_pyramid_pool(values, window, levels)
    layer = SpatialPyramidPool(levels)
    assert torch.equal(by_bins(layer(values[None]), levels), pooled)
    assert pooled.shape[1] == layer.bins
    assert pooled[0].numel() == layer.output_size(5)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("levels", [(1, 2, 3, 6), (2, 5, 4, 2), (7,)])
def test_levels_come_in_the_order_they_were_given(levels: tuple[int, ...], mode: str) -> None:
    values = distinct_values(2, 3, 11, 17)
    assert torch.equal(SpatialPyramidPool(levels, mode)(values), pool_each(values, levels, mode))


@pytest.mark.parametrize("mode", ["max", "average"])
def test_a_batch_equals_its_maps_one_by_one(mode: str) -> None:
    values, layer = torch.randn(4, 3, 9, 14), SpatialPyramidPool(mode=mode)
    batch = layer(values)
    assert batch.shape == (4, 150)
    for n in range(4):
        assert torch.equal(batch[n], layer(values[n]))
        assert torch.equal(batch[n : n + 1], layer(values[n : n + 1]))
    assert layer(values[:0]).shape == (0, 150)


@pytest.mark.parametrize("mode", ["max", "average"])
def test_the_layout_of_memory_makes_no_difference(mode: str) -> None:
    values, layer = torch.randint(-99, 99, (2, 5, 11, 17)).double(), SpatialPyramidPool(mode=mode)
    last = values.contiguous(memory_format=torch.channels_last)
    strided = torch.zeros(2, 5, 22, 34).double()[:, :, ::2, ::2].copy_(values)
    for layout in (last, strided):
        torch.testing.assert_close(layer(layout), layer(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_values_are_kept(dtype: torch.dtype) -> None:
    """Maxima are exact; a mean differs from that in float64 by one rounding of the type."""
    values = torch.randn(2, 3, 9, 7).to(dtype)
    for mode, rounding in (("max", 0.0), ("average", torch.finfo(dtype).eps)):
        pooled = SpatialPyramidPool(mode=mode)(values)
        assert pooled.dtype == dtype
        expected = SpatialPyramidPool(mode=mode)(values.double())
        torch.testing.assert_close(pooled.double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (5, 3)])
@pytest.mark.parametrize("size", [(4, 7), (13, 8), (1, 1)])
def test_gradients_equal_finite_differences(size: tuple[int, int], levels: tuple[int, ...], mode: str) -> None:
    values = (distinct_values(1, 2, *size) / 10).requires_grad_()
    assert torch.autograd.gradcheck(SpatialPyramidPool(levels, mode), values)


def test_gradient_of_equal_values_goes_to_one_cell_per_bin() -> None:
    values = torch.zeros(1, 1, 5, 7, requires_grad=True)
    SpatialPyramidPool((3, 1))(values).sum().backward()
    assert values.grad is not None
    assert bool((values.grad == values.grad.round()).all())
    assert float(values.grad.sum()) == 10


@pytest.mark.parametrize("levels", [(), (0,), (2, -1), (2.0,), (True,), ("3",)])
def test_levels_that_do_not_exist_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected levels to be positive whole numbers"):
        SpatialPyramidPool(levels)


def test_wrong_maps_and_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected mode max or average, got 'mean'"):
        SpatialPyramidPool(mode="mean")
    for size in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"at least 1 x 1 cells, got {size[0]} x {size[1]}"):
            SpatialPyramidPool()(torch.zeros(2, 3, *size))
    for shape in ((4, 5), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=f"got {len(shape)} dimensions"):
            SpatialPyramidPool()(torch.zeros(shape))


def test_it_shows_its_settings() -> None:
    assert repr(SpatialPyramidPool((4, 2), "average")) == "SpatialPyramidPool(levels=(4, 2), mode='average')"
    assert list(SpatialPyramidPool().state_dict()) == []


def rows_of(bins: Tensor, n: int) -> Tensor:
    """Reshape a vector of one level and one channel to n x n."""
    return bins.view(n, n)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_bins_of_a_mirrored_map_are_the_mirrored_bins(n: int, mode: str) -> None:
    layer = SpatialPyramidPool((n,), mode)
    for size in ((13, 10), (3, 8), (29, 17)):
        values = distinct_values(1, *size)
        for dim in (0, 1):
            mirrored = rows_of(layer(values.flip(dim + 1)), n)
            torch.testing.assert_close(mirrored, rows_of(layer(values), n).flip(dim), rtol=0, atol=1e-10)


def sliding_bins(length: int, n: int) -> list[tuple[int, int]]:
    """Return the bins of win = ceil(a / n), stride = floor(a / n), as PyTorch slides them; a stride of 0 gives one."""
    win, stride = math.ceil(length / n), length // n
    if stride == 0:
        return [(0, win)]
    rising = torch.arange(length).float().view(1, 1, length)
    ends = max_pool2d(rising, (1, win), (1, stride)).flatten() + 1
    return [(int(end) - win, int(end)) for end in ends]


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_when_the_formula_of_the_text_is_right(n: int) -> None:
    """Check the conditions that docs/pyramid.md states: by the remainder, and from n cells on for the bins."""
    for length in range(1, LONGEST + 1):
        sliding, remainder = sliding_bins(length, n), length % n
        assert (len(sliding) == n) == (remainder <= length // n), f"{length} cells"
        assert (sliding == paper_bins(length, n)) == (length >= n and remainder <= 1), f"{length} cells"
