"""Detect objects the way of R-CNN: warp every proposal to a crop of its own and run the trunk on each.

Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection and semantic segmentation
(2014), section 2 and appendix A. Trunk, learned layers and selection are those of SPP-net, so that the two differ in
what the paper of SPP-net changed and in nothing else: the pyramid pools the whole map of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbones import Trunk
from .config import Config
from .engines import trunk_maps
from .pooling import bins, spatial_pyramid_pool
from .regions import RegionDetector
from .structures import FeatureMap, Seconds, Size
from .timing import measure
from .warping import SIDE, Warper

BATCH = 16  # crops: as many as are still fast, measured on one and two cores


class RCNN(RegionDetector):
    """Find objects in images, given proposals: each is warped to 224 x 224 pixels and goes through the trunk.

    config: every setting. class_names: the K classes. trunk: built from the config if it is not given.
    Only `reduction` and `head` learn. The stages are warp, conv, pool, fc and select.
    """

    def __init__(self, config: Config, class_names: Sequence[str], trunk: Trunk | None = None):
        super().__init__(config, class_names, trunk)
        self._maps = trunk_maps(self.trunk, self.engine)

    def use_engine(self, name: str) -> None:
        """Compute by an engine of `detector.engines` from now on: with the layers as they are now, for detection only.

        Raises ValueError for an unknown engine or one that cannot run here.
        """
        super().use_engine(name)
        self._maps = trunk_maps(self.trunk, self.engine)

    @torch.inference_mode()
    def score_image(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Classify (R, 4) boxes of an image: probabilities (R, K + 1), background last, and deltas (R, K, 4)."""
        device = self.trunk.mean.device
        parts = []
        with measure(seconds, "warp"):
            warper, crops = self.warper(image), None
        for part in boxes.split(BATCH) if len(boxes) else ():
            with measure(seconds, "warp", device):
                crops = warper(part, crops)
                x = crops.to(device)
            with measure(seconds, "conv", device):
                cells = [m.permute(0, 2, 3, 1) for m in self._maps(x)]
                reduced = self.reduction.reduce(cells, self.geometry(cells))[0]
            with measure(seconds, "pool", device):
                parts.append(self._pool(reduced))
        with measure(seconds, "fc", device):
            pooled = torch.cat([self._no_regions(), *parts])
            logits, deltas = self.working_head(pooled, pooled.new_zeros(len(boxes), 0))
            return logits.softmax(dim=1), deltas

    def seen(self, size: Size, regions: int) -> tuple[int, list[Size]]:
        """Return how many images the trunk sees for one of (height, width) pixels, of each of these sizes: crops."""
        return regions, [(SIDE, SIDE)]

    def warper(self, image: Tensor) -> Warper:
        """Return what warps boxes of a (3, H, W) uint8 image to normalised crops."""
        return Warper(image.cpu(), (self.trunk.mean.flatten().cpu(), self.trunk.std.flatten().cpu()), SIDE)

    @torch.inference_mode()
    def crop_maps(self, crops: Tensor) -> tuple[FeatureMap, ...]:
        """Run the trunk on (N, 3, S, S) crops; return one map per tap, the crops' maps below each other (C, N h, w)."""
        maps = [
            torch.cat(tap).permute(1, 0, 2, 3).flatten(1, 2)
            for tap in zip(*(self._maps(part) for part in crops.to(self.trunk.mean.device).split(BATCH)), strict=True)
        ]
        taps = zip(maps, self.trunk.taps, strict=True)
        return tuple(FeatureMap(m, tap.stride, tap.offset, (1.0, 1.0)) for m, tap in taps)

    def pool_regions(self, maps: Sequence[FeatureMap], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads of R crops, to learn: the pyramid's bins and no context.

        maps: one per tap, with the crops' maps below each other as `crop_maps` gives them. boxes: (R, 4).
        """
        pooled = self._no_regions()
        if len(boxes):  # a photo may have none to learn from
            cells = [m.values.permute(1, 2, 0).unflatten(0, (len(boxes), -1)) for m in maps]
            pooled = self._pool(self.reduction.reduce(cells, self.geometry(cells))[0])
        return pooled, pooled.new_zeros(len(boxes), 0)

    def geometry(self, cells: Sequence[Tensor]) -> list[FeatureMap]:
        """Return where the cells of one crop lie in it. cells: (N, h, w, C) per tap."""
        taps = zip(cells, self.trunk.taps, strict=True)
        return [FeatureMap(c[0].permute(2, 0, 1), tap.stride, tap.offset, (1.0, 1.0)) for c, tap in taps]

    def _no_regions(self) -> Tensor:
        """Return the bins of no region: (0, bins, C)."""
        return torch.zeros(0, bins(self.config.levels), self.config.channels, device=self.trunk.mean.device)

    def _pool(self, cells: Tensor) -> Tensor:
        """Pool the whole map of every crop: (N, h, w, C) to (N, bins, C)."""
        count, height, width, _ = cells.shape
        top = height * torch.arange(count, device=cells.device)
        across = top.new_tensor([0, width]).expand(count, 2)
        windows = torch.stack([across[:, 0], top, across[:, 1], top + height], dim=1)
        return spatial_pyramid_pool(cells.flatten(0, 1).permute(2, 0, 1), windows, self.config.levels)
