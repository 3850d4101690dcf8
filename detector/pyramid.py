"""Pool whole maps of any size into vectors of one length: a spatial pyramid as a layer for any network.

A network of convolutions takes images of any size; the fully connected layers behind it do not. With this layer between
them the network takes any size (He et al. 2015, section 2.2). `detector.pooling` pools many windows of one map; this
layer pools each map of a batch whole, trains, and goes into TorchScript and ONNX.

The bins of an n x n level over a rows are [floor(i a / n), ceil((i + 1) a / n)), i = 0 .. n - 1 (appendix A), and the
same for columns. On fewer cells than bins, bins share cells; none is ever empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]  # TorchScript bears no such note below
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, max_pool2d

MODES = ("max", "average")


class SpatialPyramidPool(nn.Module):
    """Turn maps of any size into vectors of C * bins values: the spatial pyramid pooling layer.

    Input: (N, C, H, W) floating point, H and W from 1 up. Output: (N, C * bins), the levels in the given order, and for
    each level its C channels, each with its n x n bins row by row: `adaptive_max_pool2d(x, n).flatten(1)` of the levels
    side by side, as other layers of this kind have it. A single map (C, H, W) gives (C * bins,). `by_bins` turns the
    vectors into the (N, bins, C) of `detector.pooling.spatial_pyramid_pool`.

    levels: bins per side, any positive numbers in any order. mode: "max" takes the largest cell of a bin, "average" the
    mean of its cells. Each level equals `adaptive_max_pool2d` or `adaptive_avg_pool2d`.

    The layer has no parameters. `torch.jit.script`, `torch.jit.trace`, `torch.compile` and `torch.export` take it, and
    so does `torch.onnx.export` of a network that has it inside, with batch, height and width dynamic. Of equal maxima
    in a bin one cell gets the gradient.

    Raises ValueError for levels or a mode that do not exist, and for maps without a cell or of other dimensions. Inside
    TorchScript such a map raises `torch.jit.Error`; an exported or traced network does not look at it.
    """

    def __init__(self, levels: tuple[int, ...] = (6, 3, 2, 1), mode: str = "max") -> None:
        super().__init__()
        levels = tuple(levels)
        if not levels or any(type(n) is not int or n < 1 for n in levels):
            raise ValueError(f"expected levels to be positive whole numbers, as (6, 3, 2, 1), got {levels}")
        if mode not in MODES:
            raise ValueError(f"expected mode {' or '.join(MODES)}, got {mode!r}")
        self.levels = levels
        self.mode = mode
        finest_first = sorted(set(levels), reverse=True)
        self._sides = finest_first
        self._sources = [_source(n, finest_first) if mode == "max" else 0 for n in finest_first]
        self._places = [finest_first.index(n) for n in levels]

    @property
    def bins(self) -> int:
        """Count the bins of all levels: 50 for (6, 3, 2, 1)."""
        return sum(n * n for n in self.levels)

    def output_size(self, channels: int) -> int:
        """Return the length of the vector that maps of `channels` channels become: `in_features` of the next layer."""
        return self.bins * channels

    def extra_repr(self) -> str:
        """Return what `print(network)` shows of the layer."""
        return f"levels={self.levels}, mode={self.mode!r}"

    def forward(self, values: Tensor) -> Tensor:
        if values.dim() == 3:
            return self._pool(values.unsqueeze(0)).squeeze(0)
        if values.dim() != 4:
            raise ValueError(f"expected maps of shape (N, C, H, W) or (C, H, W), got {values.dim()} dimensions")
        return self._pool(values)

    def _pool(self, values: Tensor) -> Tensor:
        """Pool (N, C, H, W) -> (N, C * bins)."""
        if is_scripting():  # noqa: SIM108  (TorchScript leaves a whole branch out, not half a line)
            sliced = False
        else:
            # ONNX has no operator that pools to n outputs; torch.export and TorchScript keep PyTorch's
            sliced = torch.onnx.is_in_onnx_export()
        if not sliced and not is_tracing():
            height, width = values.shape[2], values.shape[3]
            if height < 1 or width < 1:
                raise ValueError(f"expected maps of at least 1 x 1 cells, got {height} x {width}")
        if self.mode == "max" and not sliced and not values.is_cuda:
            # the CPU then compares channels side by side, several times as fast, this copy included
            values = values.contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = []
        for n, source in zip(self._sides, self._sources):  # noqa: B905  (TorchScript knows no strict)
            if source > 0:
                levels.append(max_pool2d(levels[self._sides.index(source)], source // n))
            elif sliced:
                levels.append(_slice_bins(_slice_bins(values, n, 2, self.mode), n, 3, self.mode))
            elif self.mode == "max":
                levels.append(adaptive_max_pool2d(values, n))
            else:
                levels.append(adaptive_avg_pool2d(values, n))
        return torch.cat([levels[place].flatten(1) for place in self._places], dim=1)


def by_bins(vectors: Tensor, levels: Sequence[int]) -> Tensor:
    """Put vectors (N, C * bins) of `SpatialPyramidPool` in the order of `spatial_pyramid_pool`: (N, bins, C)."""
    channels = vectors.shape[-1] // sum(n * n for n in levels)
    parts = vectors.split([channels * n * n for n in levels], dim=-1)
    return torch.cat([part.unflatten(-1, (channels, -1)).transpose(-1, -2) for part in parts], dim=-2)


def _source(n: int, levels: list[int]) -> int:
    """Return the smallest level whose bins' maxima are those of level n, or 0 if n must read the map.

    It is a multiple of n, k n: floor(k i a / (k n)) = floor(i a / n), hence k x k of its bins cover one of level n.
    """
    return min((m for m in levels if m > n and m % n == 0), default=0)


def _slice_bins(values: Tensor, n: int, dim: int, mode: str) -> Tensor:
    """Reduce one side of (N, C, H, W), dim 2 or 3, to n bins by a slice for each; sizes may be unknown numbers.

    A bin is a rectangle, so the maximum over it is the maximum of its rows' maxima, and its mean that of their means.
    """
    length = values.shape[dim]
    parts = []
    for i in range(n):
        start, end = i * length // n, ((i + 1) * length + n - 1) // n
        part = values[:, :, start:end] if dim == 2 else values[:, :, :, start:end]
        parts.append(part.amax(dim, keepdim=True) if mode == "max" else part.mean(dim, keepdim=True))
    return torch.cat(parts, dim)
