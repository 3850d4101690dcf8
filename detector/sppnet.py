"""Detect objects the way of SPP-net: one pass of the trunk per image, then pool, classify and select regions.

He, Zhang, Ren, Sun: Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proposals.structures import Proposals

from .backbones import PAD_MULTIPLE, Trunk
from .boxes import project
from .config import Config
from .engines import trunk_maps
from .features import Extractor
from .images import scaled_size
from .pooling import bins, spatial_pyramid_pool
from .regions import RegionDetector
from .scales import FeaturePyramid
from .selection import weigh_by_rank
from .structures import Detections, FeatureMap, Seconds, Size
from .timing import measure


class SPPNet(RegionDetector):
    """Find objects in images, given proposals: all regions are pooled from the maps of the whole image.

    config: every setting. class_names: the K classes. trunk: built from the config if it is not given.
    Only `reduction` and `head` learn. The stages are conv, pool, fc and select.
    """

    def __init__(self, config: Config, class_names: Sequence[str], trunk: Trunk | None = None):
        super().__init__(config, class_names, trunk)
        self.extractor = Extractor(self.trunk, config.shorter, config.longest)

    def use_engine(self, name: str) -> None:
        """Compute by an engine of `detector.engines` from now on: with the layers as they are now, for detection only.

        Raises ValueError for an unknown engine or one that cannot run here.
        """
        super().use_engine(name)
        engine = trunk_maps(self.trunk, self.engine)
        self.extractor = replace(self.extractor, engine=engine, dtype=self.engine.reads)

    @torch.inference_mode()
    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        """Find the objects in a (3, H, W) uint8 image among its proposals.

        seconds: collects the time of the stages conv, pool, fc and select.
        Returns at most max_detections Detections of score >= min_score, best first, with the image for drawing.
        """
        with measure(seconds, "conv"):
            pyramid = self.feature_maps(image)
        return replace(self.detect(pyramid, proposals, seconds), image=image)

    @torch.inference_mode()
    def feature_maps(self, image: Tensor) -> FeaturePyramid:
        """Run the trunk on a (3, H, W) uint8 image, once for every scale, and reduce its maps."""
        size = (int(image.shape[1]), int(image.shape[2]))
        scales = self.config.scales or (self.config.shorter,)
        return self.join([self.extractor.at(shorter, self.aspect)(image) for shorter in scales], size)

    @property
    def aspect(self) -> float:
        """Return the most that the longer side of an image may be of its shorter one."""
        return self.config.longest / self.config.shorter

    def seen(self, size: Size, regions: int) -> tuple[int, list[Size]]:
        """Return how many images the trunk sees for one of (height, width) pixels, of each of these sizes: one."""
        scales = self.config.scales or (self.config.shorter,)
        sizes = [scaled_size(size, shorter, round(shorter * self.aspect)) for shorter in scales]
        return 1, [(height + -height % PAD_MULTIPLE, width + -width % PAD_MULTIPLE) for height, width in sizes]

    def join(self, levels: Sequence[Sequence[FeatureMap]], size: Size) -> FeaturePyramid:
        """Reduce maps, one per tap at every scale, to a pyramid. size: (height, width) of the image."""
        fine, coarse = zip(*(self.reduction(maps) for maps in levels), strict=True)
        return FeaturePyramid(fine, coarse, size)

    @torch.inference_mode()
    def detect(self, pyramid: FeaturePyramid, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        """Find objects on maps that were computed before."""
        boxes = proposals.boxes[: self.config.max_proposals]
        ranks = self.rank_shortlisted(pyramid, boxes, seconds)
        boxes = boxes[ranks]
        return self.choose(boxes, self.score(pyramid, boxes, seconds), pyramid.size, ranks, seconds)

    def rank_shortlisted(self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None) -> Tensor:
        """Return which of (R, 4) boxes, best first, the large layers look at: all, or those of the cascade."""
        if self.head.coarse is not None and 0 < self.config.cascade < len(boxes):
            return self.shortlist(pyramid, boxes, seconds)
        return torch.arange(len(boxes))

    def consider(
        self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return which of (R, 4) boxes, best first, are classified, and their probabilities and deltas."""
        with measure(seconds, "conv"):
            pyramid = self.feature_maps(image)
        ranks = self.rank_shortlisted(pyramid, boxes, seconds)
        return ranks, self.score(pyramid, boxes[ranks], seconds)

    def shortlist(self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None) -> Tensor:
        """Choose the regions that the large layers look at: those of the `cascade` windows of the best class scores.

        The small classifier reads the coarse levels; its scores are weighed by rank as the final ones are.
        boxes: (R, 4), best first. Returns rows of boxes, ascending: more than `cascade` where several boxes lie on the
        same cells.
        """
        device = self.trunk.mean.device
        with measure(seconds, "pool", device):
            windows, rows = pyramid.locate(boxes.to(device), self.config.scale_rule, self.config.projection)
            pooled = self.pool(pyramid, windows, self.head.coarse_levels)
        with measure(seconds, "fc", device):
            probabilities = self.working_head.read_coarse(pooled).softmax(dim=1)[rows]
            scores = weigh_by_rank(probabilities, self.config.rank_prior)[:, :-1].amax(dim=1)
            best = torch.full((len(windows),), -1.0, device=device).scatter_reduce(0, rows, scores, "amax")
            chosen = torch.zeros(len(windows), dtype=torch.bool, device=device)
            chosen[best.topk(min(self.config.cascade, len(best))).indices] = True
            return chosen[rows].nonzero()[:, 0].cpu()

    def score_image(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Classify (R, 4) boxes of an image: probabilities (R, K + 1), background last, and deltas (R, K, 4)."""
        with measure(seconds, "conv"):
            pyramid = self.feature_maps(image)
        return self.score(pyramid, boxes, seconds)

    @torch.inference_mode()
    def score(self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Pool boxes from the maps and classify them; boxes on the same cells are pooled and classified once.

        boxes: (R, 4) float32. Returns probabilities (R, K + 1), background last, and deltas (R, K, 4).
        """
        pooled, context, rows = self.read(pyramid, boxes, seconds)
        with measure(seconds, "fc", self.trunk.mean.device):
            logits, deltas = self.working_head(pooled, context)
            return logits.softmax(dim=1)[rows], deltas[rows]

    @torch.inference_mode()
    def read(
        self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pool the distinct windows of (R, 4) boxes: bins (D, bins, C), context (D, hidden), each box's row (R,)."""
        device = self.trunk.mean.device
        with measure(seconds, "pool", device):
            windows, rows = pyramid.locate(boxes.to(device), self.config.scale_rule, self.config.projection)
            pooled = self.pool(pyramid, windows, self.config.levels)
        with measure(seconds, "fc", device):
            if self.head.context is None:
                return pooled, pooled.new_zeros(len(windows), 0), rows
            maps = zip(pyramid.coarse, pyramid.fine, _split(windows, len(pyramid.fine)), strict=True)
            context = torch.cat([self.head.read_context(coarse, fine, part) for coarse, fine, part in maps])
        return pooled, context, rows

    @torch.inference_mode()
    def pool(self, pyramid: FeaturePyramid, windows: Tensor, levels: tuple[int, ...]) -> Tensor:
        """Pool (D, 5) windows, ascending, level by level: (D, bins, C)."""
        split = _split(windows, len(pyramid.fine))
        pooled = windows.new_empty(len(windows), bins(levels), self.config.channels, dtype=torch.float32)
        parts = pooled.split([len(part) for part in split])
        for fine, part, out in zip(pyramid.fine, split, parts, strict=True):
            spatial_pyramid_pool(fine.values, part, levels, out)
        return pooled

    def pool_regions(self, maps: Sequence[FeatureMap], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads of (R, 4) boxes, to learn: the pyramid's bins and the context.

        maps: one per tap, of the whole image.
        """
        fine, coarse = self.reduction(maps)
        windows = project(boxes, fine, self.config.projection)
        pooled = spatial_pyramid_pool(fine.values, windows, self.config.levels)
        return pooled, self.head.read_context(coarse, fine, windows)


def _split(windows: Tensor, levels: int) -> list[Tensor]:
    """Return the cells of ascending (D, 5) windows, level by level: (D_l, 4) each."""
    counts = torch.bincount(windows[:, 0], minlength=levels).tolist()
    return [part[:, 1:] for part in windows.split(counts)]
