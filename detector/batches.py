"""Make training batches from cached maps and proposals; batch k of a run depends on the seed and on k alone."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import Config
from .datasets import Sample
from .features import flip_map
from .preparation import Caches
from .reduced import ReducedCaches
from .regions import RegionDetector
from .sampling import candidates, mirror, sample
from .scales import FeaturePyramid, choose_levels
from .sppnet import SPPNet
from .structures import FeatureMap, GroundTruth

_AHEAD = 3
# One of numba's threading layers aborts the process when two Python threads start parallel work at the same time.
_POOLING = threading.Lock()
_SCALES = 1 << 20  # above every place in a batch: makes the draw of scales another one than that of regions


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Hold one image's share of a batch: its maps, and the sampled boxes (R, 4), labels (R,) and targets (R, 4)."""

    maps: tuple[FeatureMap, ...]
    boxes: Tensor
    labels: Tensor
    targets: Tensor

    def pool(self, model: RegionDetector) -> tuple[Tensor, Tensor]:
        """Return what the head reads of the regions, to learn: the pyramid's bins (R, bins, C) and the context."""
        device = model.trunk.mean.device
        return model.pool_regions([m.to(device) for m in self.maps], self.boxes.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class PooledRegions:
    """Hold one image's share of a batch behind layers that do not learn: pooled bins (R, bins, C) instead of boxes.

    labels: (R,) int64. targets: (R, 4) float32.
    """

    pooled: Tensor
    labels: Tensor
    targets: Tensor

    def pool(self, model: RegionDetector) -> tuple[Tensor, Tensor]:
        """Return what the head reads of the regions, to learn: the pyramid's bins (R, bins, C), and no context."""
        return self.pooled.to(model.trunk.mean.device), self.pooled.new_zeros(len(self.pooled), 0)


class Share(Protocol):
    """Be one image's share of a batch."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...

    def pool(self, model: RegionDetector, /) -> tuple[Tensor, Tensor]: ...


def draw_regions(
    maps: tuple[FeatureMap, ...], boxes: Tensor, truth: GroundTruth, config: Config, key: tuple[int, int, int]
) -> Regions:
    """Sample regions of one image, mirrored or not.

    boxes: (R, 4) proposals. key: seeds the draw; the last number is K, the label of background.
    """
    generator = seeded(key)
    flipped = config.flip and bool(torch.rand(1, generator=generator) < 0.5)
    rows = candidates(boxes, truth, key[2], config)
    chosen = sample(rows, config, generator)
    boxes, labels, targets = rows.boxes[chosen], rows.labels[chosen], rows.targets[chosen]
    if flipped:
        width = truth.size[1]
        maps = tuple(flip_map(m, width) for m in maps)
        boxes, targets = mirror(boxes, width), targets * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    return Regions(maps, boxes, labels, targets)


def seeded(key: tuple[int, int, int]) -> torch.Generator:
    """Return a generator that depends on the first two numbers of a draw's key."""
    seed = int(np.random.SeedSequence(key[:2]).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def repeat_factors(samples: Sequence[Sample], classes: int, threshold: float) -> NDArray[np.float64]:
    """Return how often each image is shown in an epoch: the largest factor of its classes, at least 1.

    The factor of a class that the part f of all images shows is sqrt(threshold / f) (repeat factor sampling, Gupta et
    al. 2019, LVIS, appendix B).
    """
    shown = np.zeros((len(samples), classes), np.bool_)
    for row, item in zip(shown, samples, strict=True):
        row[item.truth.labels.numpy()] = True
    factors = np.sqrt(threshold / np.maximum(shown.mean(axis=0), 1e-9))
    largest: NDArray[np.float64] = np.where(shown, factors, 0.0).max(axis=1, initial=1.0)
    return largest


class RegionBatches(ABC):
    """Give the batches of a training run in order, read ahead by background threads.

    Every epoch shows as many images as there are, in an order of its own: each once, or images of rare classes more
    often if the config says so; the last images of an epoch that do not fill a batch are left out.
    """

    def __init__(self, samples: Sequence[Sample], config: Config, background: int):
        self.samples, self.config, self.background = samples, config, background
        self.per_epoch = max(1, len(samples) // config.images_per_batch)
        self.steps = self.per_epoch * config.epochs
        self.factors = repeat_factors(samples, background, config.repeat_below)

    @abstractmethod
    def maps(self, item: Sample) -> tuple[FeatureMap, ...]:
        """Return maps of an image, one per tap."""

    @abstractmethod
    def draw(self, item: Sample, key: tuple[int, int, int]) -> Share:
        """Draw regions of an image; key seeds the draw, its last number is the label of background."""

    def images(self, step: int) -> list[int]:
        """Return the sample numbers of one step."""
        epoch, batch = divmod(step, self.per_epoch)
        generator = np.random.default_rng([self.config.seed, 1, epoch])
        times = np.floor(self.factors + generator.random(len(self.factors))).astype(np.int64)
        order = generator.permutation(np.repeat(np.arange(len(times)), times))
        return [int(i) for i in order[batch * self.config.images_per_batch :][: self.config.images_per_batch]]

    def first_maps(self, count: int) -> Iterator[list[FeatureMap]]:
        """Yield the maps of images drawn by the seed, at most `count`, for statistics of their channels."""
        order = np.random.default_rng([self.config.seed, 2]).permutation(len(self.samples))
        for index in order[:count]:
            yield [m.with_values(m.values.float()) for m in self.maps(self.samples[int(index)])]

    def iterate(self, start: int) -> Iterator[list[Share]]:
        """Yield the batches from step `start` to the end of the run."""
        with ThreadPoolExecutor(2) as pool:
            ahead: deque[list[Future[Share]]] = deque()
            try:
                for step in range(start, self.steps + _AHEAD):
                    if step < self.steps:
                        ahead.append([pool.submit(self._regions, step, *item) for item in enumerate(self.images(step))])
                    if step >= start + _AHEAD and ahead:
                        yield [future.result() for future in ahead.popleft()]
                while ahead:
                    yield [future.result() for future in ahead.popleft()]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _regions(self, step: int, place: int, index: int) -> Share:
        """Draw regions of an image; its place in the batch seeds the draw, since it may be there twice."""
        return self.draw(self.samples[index], (self.config.seed * 1_000_003 + step, place, self.background))


class Batches(RegionBatches):
    """Give the batches of a training run of SPP-net: regions drawn anew at every step from the maps of whole images."""

    def __init__(self, samples: Sequence[Sample], caches: Caches, config: Config, background: int):
        super().__init__(samples, config, background)
        self.caches = caches

    def maps(self, item: Sample) -> tuple[FeatureMap, ...]:
        """Return the maps of an image, one per tap."""
        return self.caches.read(item)[0]

    def draw(self, item: Sample, key: tuple[int, int, int]) -> Regions:
        """Draw regions of an image; key seeds the draw, its last number is the label of background."""
        maps, boxes = self.caches.read(item)
        boxes = boxes[: self.config.max_proposals]
        maps = tuple(m.with_values(m.values.float()) for m in maps)
        return draw_regions(maps, boxes, item.truth, self.config, key)


class PooledBatches(RegionBatches):
    """Give the batches of a run in which the fully connected layers of SPP-net learn alone, from reduced maps.

    Regions are drawn as by `Batches`; each is looked at on the scale that the rule chooses, or on one drawn at random.
    """

    def __init__(self, samples: Sequence[Sample], caches: ReducedCaches, net: SPPNet):
        super().__init__(samples, net.config, len(net.class_names))
        self.caches, self.net = caches, net

    def maps(self, item: Sample) -> tuple[FeatureMap, ...]:
        """Return the reduced maps of an image, one per scale."""
        return self.caches.read(item)[0].fine

    def draw(self, item: Sample, key: tuple[int, int, int]) -> PooledRegions:
        """Draw regions of an image and pool them; key seeds the draw, its last number is the label of background."""
        pyramid, boxes = self.caches.read(item)
        drawn = draw_regions(pyramid.fine, boxes[: self.config.max_proposals], item.truth, self.config, key)
        pyramid = FeaturePyramid(drawn.maps, (), pyramid.size)
        if self.config.random_scale:
            generator = seeded((key[0], key[1] + _SCALES, 0))
            levels = torch.randint(len(pyramid.fine), (len(drawn.boxes),), generator=generator)
        else:
            levels = choose_levels(drawn.boxes, pyramid, self.config.scale_rule)
        windows, rows = pyramid.place(drawn.boxes, levels, self.config.projection)
        with _POOLING:
            pooled = self.net.pool(pyramid, windows, self.config.levels)
        # Indexing makes an ordinary tensor of one from inference mode, which layers cannot learn from.
        return PooledRegions(pooled[rows], drawn.labels, drawn.targets)
