"""Define the layers that learn: channel reduction before the pyramid, fc6, fc7, class scores and box deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import coverage
from .pooling import bins
from .structures import FeatureMap

COARSE_HIDDEN = 128  # units of the small classifier of a cascade


class Reduction(nn.Module):
    """Reduce the maps of several taps to one map of few channels, at the finest tap's stride.

    Every channel is standardised by a mean and deviation measured once (`measure`); a linear layer per tap follows,
    applied cell by cell; coarser maps are interpolated onto the finest map's cells by the two geometries; the sum
    goes through a ReLU. The last tap's standardised map is handed on as well: its means describe whole regions.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.linears = nn.ModuleList()
        for i, count in enumerate(self.in_channels):
            linear = nn.Linear(count, channels)
            nn.init.normal_(linear.weight, std=count**-0.5)
            nn.init.zeros_(linear.bias)
            self.linears.append(linear)
            self.register_buffer(f"mean{i}", torch.zeros(count))
            self.register_buffer(f"deviation{i}", torch.ones(count))

    def measure(self, images: Iterable[Sequence[FeatureMap]]) -> None:
        """Take each channel's mean and deviation over all cells of these images' maps, one map per tap.

        A channel that hardly varies is divided by a tenth of its map's typical deviation at least.
        """
        sums = [torch.zeros(3, channels, dtype=torch.float64) for channels in self.in_channels]
        for maps in images:
            for total, one in zip(sums, maps, strict=True):
                cells = one.values.flatten(1).double().cpu()
                total += torch.stack([torch.ones(len(cells)) * cells.shape[1], cells.sum(1), cells.square().sum(1)])
        for i, (count, total, squares) in enumerate(sums):
            mean = total / count
            deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
            deviation = deviation.clamp(min=max(float(deviation.mean()) / 10, 1e-6))
            getattr(self, f"mean{i}").copy_(mean)
            getattr(self, f"deviation{i}").copy_(deviation)

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap, FeatureMap]:
        """Map one FeatureMap per tap, finest first, to two, channels last in memory.

        Returns the reduced map (C, h, w), which the pyramid pools, and the last tap's standardised map.
        """
        reduced, standard = self.reduce([m.values.permute(1, 2, 0) for m in maps], maps)
        return maps[0].with_values(reduced.permute(2, 0, 1)), maps[-1].with_values(standard.permute(2, 0, 1))

    def reduce(self, cells: Sequence[Tensor], geometry: Sequence[FeatureMap]) -> tuple[Tensor, Tensor]:
        """Reduce the cells of one image, or of several of one size: (..., h, w, C) per tap, finest first.

        geometry: one map per tap that says where such cells lie. Returns the reduced cells and the last tap's
        standardised ones, (..., h, w, C) both.
        """
        total, standard = torch.zeros(()), cells[0]
        for i, (linear, values) in enumerate(zip(self.linears, cells, strict=True)):
            standard = (values - getattr(self, f"mean{i}")) / getattr(self, f"deviation{i}")
            reduced = linear(standard)
            total = total.to(reduced) + (reduced if i == 0 else align(reduced, geometry[i], geometry[0]))
        return F.relu(total), standard


def align(cells: Tensor, source: FeatureMap, target: FeatureMap) -> Tensor:
    """Interpolate (..., h, w, C) cells of `source` at the cell centres of `target`, linearly, clamped at the border."""
    rows, columns = (_interpolation(source, target, axis).to(cells) for axis in (0, 1))
    across = torch.einsum("tw,...hwc->...htc", columns, cells)
    return torch.einsum("sh,...htc->...stc", rows, across)


def _interpolation(source: FeatureMap, target: FeatureMap, axis: int) -> Tensor:
    """Return the matrix (target cells, source cells) that interpolates along one axis: 0 is height, 1 is width."""
    length, wanted = source.values.shape[1 + axis], target.values.shape[1 + axis]
    centres = target.offsets[axis] + target.stride * torch.arange(wanted, dtype=torch.float64)
    position = ((centres - source.offsets[axis]) / source.stride).clamp(0, length - 1)
    return (1 - (position[:, None] - torch.arange(length)).abs()).clamp(min=0)


class PyramidHead(nn.Module):
    """Classify pooled regions and correct their boxes: fc6, fc7, then class logits and one box per class.

    Each bin's channels are normalised (Ba et al. 2016, layer normalisation) before fc6. With `context` channels, fc6
    also reads the mean of a second, coarser map over the region. With `cascade`, a small classifier that reads only the
    `coarse_levels` tells which regions are worth the large layers.
    """

    def __init__(
        self,
        pyramid: tuple[int, tuple[int, ...]],
        context: int,
        hidden: int,
        classes: int,
        dropout: float,
        cascade: bool = False,
    ):
        """Make the layers. pyramid: channels and levels. context: channels of the second map, 0 for none."""
        super().__init__()
        channels, levels = pyramid
        self.coarse_levels, self.coarse_bins = coarse_part(levels)
        self.norm = nn.LayerNorm(channels)
        self.fc6 = nn.Linear(bins(levels) * channels, hidden)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.fc7 = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, classes + 1)
        self.deltas = nn.Linear(hidden, 4 * classes)
        self.dropout = nn.Dropout(dropout)
        self.coarse = _small_classifier(len(self.coarse_bins) * channels, classes) if cascade else None
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        if self.context is not None:
            nn.init.normal_(self.context.weight, std=context**-0.5)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)

    def read_context(self, coarse: FeatureMap, fine: FeatureMap, windows: Tensor) -> Tensor:
        """Return what fc6 reads from the mean of `coarse` over windows (R, 4) of cells of `fine`: (R, hidden)."""
        if self.context is None:
            return self.fc6.bias.new_zeros(len(windows), 0)
        weights = coverage(windows, fine, coarse).to(coarse.values)
        # The three factors are multiplied in the cheaper order: cells first for many regions, means first for few.
        cells = coarse.values.permute(1, 2, 0).flatten(0, 1)
        read: Tensor = torch.linalg.multi_dot([weights, cells, self.context.weight.T])
        return read

    def read_coarse(self, pooled: Tensor) -> Tensor:
        """Classify regions by their coarse levels only: (R, bins of these levels, C) to logits (R, K + 1)."""
        if self.coarse is None:
            raise ValueError("expected a head with a cascade, got one without")
        logits: Tensor = self.coarse(self.norm(pooled).detach().flatten(1))
        return logits

    def forward(self, pooled: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map (R, bins, C) and (R, hidden) context to logits (R, K + 1), background last, and deltas (R, K, 4)."""
        x = self.hidden(pooled, context)[1]
        return self.classes(x), self.deltas(x).unflatten(1, (-1, 4))

    def hidden(self, pooled: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map (R, bins, C) and (R, hidden) context to fc6 and fc7 behind their ReLU, (R, hidden) each."""
        x = self.fc6(self.norm(pooled).flatten(1))
        if self.context is not None:
            x = x + context
        fc6 = self.dropout(F.relu(x))
        return fc6, self.dropout(F.relu(self.fc7(fc6)))


def coarse_part(levels: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
    """Return a pyramid's second level and those that divide it, (3, 1) of (6, 3, 2, 1), and their bins' numbers."""
    ends = [bins(levels[: i + 1]) for i in range(len(levels))]
    chosen = [i for i, n in enumerate(levels) if i and levels[1] % n == 0]
    return tuple(levels[i] for i in chosen), [b for i in chosen for b in range(ends[i - 1], ends[i])]


def _small_classifier(inputs: int, classes: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(inputs, COARSE_HIDDEN), nn.ReLU(), nn.Linear(COARSE_HIDDEN, classes + 1))
    nn.init.kaiming_normal_(layers[0].weight, nonlinearity="relu")  # type: ignore[arg-type]
    nn.init.normal_(layers[2].weight, std=0.01)  # type: ignore[arg-type]
    for layer in (layers[0], layers[2]):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layers
