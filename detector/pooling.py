"""Pool windows of a feature map with a spatial pyramid: every window becomes a vector of the same length.

The bins of an n x n level over a window of w cells are [floor(i w / n), ceil((i + 1) w / n)), i = 0 .. n - 1
(He et al. 2015, appendix A). Levels whose n divides the finest n are exact maxima of its bins, because
floor(k i w / (k m)) = floor(i w / m); so only the finest level reads the map.

On the CPU the kernels below are used; elsewhere `torchvision.ops.roi_pool` with whole-cell windows, which has the
same bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_pool

from .threads import use_threads_of_torch

PYRAMID = (6, 3, 2, 1)


def bins(levels: tuple[int, ...]) -> int:
    """Return how many bins a pyramid has: 50 for (6, 3, 2, 1)."""
    return sum(n * n for n in levels)


def spatial_pyramid_pool(
    values: Tensor, windows: Tensor, levels: tuple[int, ...] = PYRAMID, out: Tensor | None = None
) -> Tensor:
    """Pool every window of a map with a spatial pyramid of maxima.

    values: (C, h, w) float32; channels-last memory (`values.permute(1, 2, 0)` contiguous) avoids a copy.
    windows: (R, 4) int64 or int32, whole cells (x1, y1, x2, y2), x2 and y2 exclusive, inside the map, not empty.
    levels: bins per side, finest first; every coarser level must divide the finest. out: contiguous memory of the
    result's shape to fill, on the CPU and without gradients: for windows of several maps in one tensor.
    Returns (R, bins, C) float32, levels in the given order, bins of a level row by row. Differentiable in `values`.
    Raises ValueError for windows outside the map or empty, or for levels that do not divide the finest.
    """
    _check(values, windows, levels)
    if values.device.type != "cpu":
        return _roi_pool(values, windows, levels) if out is None else out.copy_(_roi_pool(values, windows, levels))
    cells = values.permute(1, 2, 0).contiguous()
    table = windows.to(torch.int32).contiguous()
    if cells.requires_grad and torch.is_grad_enabled():
        if out is not None:
            raise ValueError("expected no memory to fill where gradients are wanted, got some")
        return _PyramidPool.apply(cells, table, levels)  # type: ignore[no-any-return]
    shape = (len(table), bins(levels), cells.shape[2])
    if out is None:
        out = torch.from_numpy(np.empty(shape, dtype=np.float32))
    elif out.shape != shape or not out.is_contiguous() or out.dtype != torch.float32:
        raise ValueError(f"expected contiguous float32 memory of shape {shape}, got {tuple(out.shape)} {out.dtype}")
    use_threads_of_torch()
    _pool(cells.detach().numpy(), table.numpy(), np.asarray(levels, dtype=np.int64), out.numpy())
    return out


def is_compiled() -> bool:
    """Tell whether the kernel that detection needs lies on disk, newer than its source, so that nobody has to wait.

    numba caches beside the source, or in NUMBA_CACHE_DIR, or in the user's cache folder if neither can be written.
    """
    source, kernel = Path(__file__), cast(Any, _pool)
    compiled = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.__name__}-*.nbi")
    return any(file.stat().st_mtime >= source.stat().st_mtime for file in compiled)


def _check(values: Tensor, windows: Tensor, levels: tuple[int, ...]) -> None:
    if values.ndim != 3 or values.dtype != torch.float32:
        raise ValueError(f"expected map values of shape (C, h, w) and type float32, got {tuple(values.shape)}")
    if windows.ndim != 2 or windows.shape[1] != 4 or windows.is_floating_point():
        raise ValueError(f"expected windows of shape (R, 4) in whole cells, got {tuple(windows.shape)} {windows.dtype}")
    if not levels or any(n < 1 or levels[0] % n for n in levels):
        raise ValueError(f"expected pyramid levels that divide the first, got {levels}")
    if len(windows) == 0:
        return
    height, width = values.shape[1:]
    x1, y1, x2, y2 = windows.unbind(1)
    inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)
    if not bool(inside.all()):
        bad = windows[~inside][0].tolist()
        raise ValueError(f"expected windows of at least one cell inside a map of {height} x {width} cells, got {bad}")


def _roi_pool(values: Tensor, windows: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Pool with torchvision, whose windows are inclusive: the bins are the same."""
    inclusive = windows.to(values) - torch.tensor([0, 0, 1, 1], device=values.device)
    parts = [roi_pool(values[None], [inclusive], output_size=n) for n in levels]
    return torch.cat([part.flatten(2) for part in parts], dim=2).transpose(1, 2)


class _PyramidPool(torch.autograd.Function):
    """Pool on the CPU and remember which cell won each maximum."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, windows: Tensor, levels: tuple[int, ...]) -> Tensor:
        shape = (len(windows), bins(levels), cells.shape[2])
        out, winners = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int32)
        table = np.asarray(levels, dtype=np.int64)
        use_threads_of_torch()
        _pool_with_winners(cells.detach().numpy(), windows.numpy(), table, out, winners)
        ctx.shape, ctx.winners = cells.shape, winners
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        result = np.zeros(ctx.shape, dtype=np.float32)
        _scatter(gradients[0].contiguous().numpy(), ctx.winners, result.reshape(-1, ctx.shape[2]))
        return torch.from_numpy(result), None, None


@numba.njit(cache=True, nogil=True, parallel=True, fastmath={"nnan", "nsz", "ninf"})
def _pool(cells: Any, windows: Any, levels: Any, out: Any) -> None:
    """Fill out (R, bins, C) with the maxima of every bin; two threads or more share the regions."""
    n = levels[0]
    channels = cells.shape[2]
    for r in numba.prange(windows.shape[0]):
        x1, y1, x2, y2 = windows[r]
        height, width = y2 - y1, x2 - x1
        for i in range(n):
            top, bottom = y1 + i * height // n, y1 + ((i + 1) * height + n - 1) // n
            for j in range(n):
                left, right = x1 + j * width // n, x1 + ((j + 1) * width + n - 1) // n
                target = out[r, i * n + j]
                first = cells[top, left]
                for c in range(channels):
                    target[c] = first[c]
                for y in range(top, bottom):
                    for x in range(left, right):
                        cell = cells[y, x]
                        for c in range(channels):
                            target[c] = max(target[c], cell[c])
        start = n * n
        for level in levels[1:]:
            step = n // level
            for i in range(level):
                for j in range(level):
                    target = out[r, start + i * level + j]
                    first = out[r, i * step * n + j * step]
                    for c in range(channels):
                        target[c] = first[c]
                    for k in range(step * step):
                        fine = out[r, (i * step + k // step) * n + j * step + k % step]
                        for c in range(channels):
                            target[c] = max(target[c], fine[c])
            start += level * level


@numba.njit(cache=True, nogil=True, parallel=True)
def _pool_with_winners(cells: Any, windows: Any, levels: Any, out: Any, winners: Any) -> None:
    """Fill out and winners (R, bins, C): each maximum and the number of the first cell, row by row, that has it."""
    n = levels[0]
    channels, map_width = cells.shape[2], cells.shape[1]
    for r in numba.prange(windows.shape[0]):
        x1, y1, x2, y2 = windows[r]
        height, width = y2 - y1, x2 - x1
        for i in range(n):
            top, bottom = y1 + i * height // n, y1 + ((i + 1) * height + n - 1) // n
            for j in range(n):
                left, right = x1 + j * width // n, x1 + ((j + 1) * width + n - 1) // n
                target, winner = out[r, i * n + j], winners[r, i * n + j]
                target[:] = cells[top, left]
                winner[:] = top * map_width + left
                for y in range(top, bottom):
                    for x in range(left, right):
                        cell, number = cells[y, x], np.int32(y * map_width + x)
                        for c in range(channels):
                            better = cell[c] > target[c]
                            winner[c] = number if better else winner[c]
                            target[c] = cell[c] if better else target[c]
        start = n * n
        for level in levels[1:]:
            step = n // level
            for i in range(level):
                for j in range(level):
                    target, winner = out[r, start + i * level + j], winners[r, start + i * level + j]
                    target[:] = out[r, i * step * n + j * step]
                    winner[:] = winners[r, i * step * n + j * step]
                    for k in range(step * step):
                        b = (i * step + k // step) * n + j * step + k % step
                        for c in range(channels):
                            better = out[r, b, c] > target[c]
                            winner[c] = winners[r, b, c] if better else winner[c]
                            target[c] = out[r, b, c] if better else target[c]
            start += level * level


@numba.njit(cache=True, nogil=True)
def _scatter(gradients: Any, winners: Any, result: Any) -> None:
    """Add each bin's gradient (R, bins, C) to the cell that won it, result (h * w, C); one thread, one order."""
    regions, count, channels = gradients.shape
    for r in range(regions):
        for b in range(count):
            for c in range(channels):
                result[winners[r, b, c], c] += gradients[r, b, c]
