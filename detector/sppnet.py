"""Detect objects the way of SPP-net: one pass of the trunk per image, then pool, classify and select regions.

He, Zhang, Ren, Sun: Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from proposals.structures import Proposals

from .backbones import Trunk, build_trunk
from .boxes import decode, project
from .config import Config
from .features import Extractor
from .heads import PyramidHead, Reduction
from .pooling import spatial_pyramid_pool
from .selection import select, weigh_by_rank
from .structures import BoxScores, Detections, FeatureMap, Seconds, Size, check_boxes
from .timing import measure


class SPPNet(torch.nn.Module):
    """Find objects in images, given proposals.

    config: every setting. class_names: the K classes. trunk: built from the config if it is not given.
    Only `reduction` and `head` learn.
    """

    def __init__(self, config: Config, class_names: Sequence[str], trunk: Trunk | None = None):
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.trunk = trunk or build_trunk(config.trunk, config.layers)
        self.trunk.to(memory_format=torch.channels_last)
        self.extractor = Extractor(self.trunk, config.shorter, config.longest)
        channels = [tap.channels for tap in self.trunk.taps]
        self.reduction = Reduction(channels, config.channels)
        pyramid, context = (config.channels, config.levels), channels[-1] if config.region_mean else 0
        self.head = PyramidHead(pyramid, context, config.hidden, len(class_names), config.dropout)
        self.eval()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name every setting, as JSON types."""
        return self.config.to_dict()

    @property
    def readable_score(self) -> float:
        """Return the score from which a detection is worth drawing."""
        return self.config.readable_score

    @torch.inference_mode()
    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        """Find the objects in a (3, H, W) uint8 image among its proposals.

        seconds: collects the time of the stages conv, pool, fc and select.
        Returns at most max_detections Detections of score >= min_score, best first, with the image for drawing.
        """
        with measure(seconds, "conv"):
            maps = self.feature_maps(image)
        size = (int(image.shape[1]), int(image.shape[2]))
        found = self.detect(maps, proposals, size, seconds)
        return replace(found, image=image)

    @torch.inference_mode()
    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores:
        """Score boxes that the user brought: class probabilities for every one, in the given order.

        boxes: (R, 4) float32 xyxy pixels of the image, of positive width and height, not wholly outside the image.
        Raises ValueError for other boxes.
        """
        height, width = image.shape[1:]
        check_boxes(boxes)
        outside = (boxes[:, :2] >= boxes.new_tensor([width, height])).any(1) | (boxes[:, 2:] <= 0).any(1)
        bad = outside | (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if bool(bad.any()):
            got = [round(v, 2) for v in boxes[bad][0].tolist()]
            where = f"{width} x {height} pixels"
            raise ValueError(f"expected boxes [x1, y1, x2, y2] of positive size in {where}, got {got}")
        with measure(seconds, "conv"):
            maps = self.feature_maps(image)
        probabilities, deltas = self.score(maps, boxes, seconds)
        with measure(seconds, "select"):
            best = probabilities[:, :-1].argmax(dim=1)
            refined = decode(boxes, deltas[torch.arange(len(boxes)), best].cpu())
            limit = refined.new_tensor([width, height, width, height])
            refined = refined.clamp(min=0).minimum(limit)
        return BoxScores(boxes, probabilities.cpu(), refined, self.class_names)

    @torch.inference_mode()
    def feature_maps(self, image: Tensor) -> tuple[FeatureMap, FeatureMap]:
        """Run the trunk on a (3, H, W) uint8 image, once; return the map to pool and the map to average."""
        maps: tuple[FeatureMap, FeatureMap] = self.reduction(self.extractor(image))
        return maps

    @torch.inference_mode()
    def detect(
        self, maps: tuple[FeatureMap, FeatureMap], proposals: Proposals, size: Size, seconds: Seconds | None = None
    ) -> Detections:
        """Find objects on maps that were computed before; size: (height, width) of the image in pixels."""
        boxes = proposals.boxes[: self.config.max_proposals]
        probabilities, deltas = self.score(maps, boxes, seconds)
        with measure(seconds, "select"):
            weighed = weigh_by_rank(probabilities.cpu(), self.config.rank_prior)
            found = select(boxes, weighed, deltas.cpu(), size, self.config)
        return Detections(*found, size, self.class_names)

    def score(
        self, maps: tuple[FeatureMap, FeatureMap], boxes: Tensor, seconds: Seconds | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pool boxes from the maps and classify them; boxes on the same cells are pooled and classified once.

        boxes: (R, 4) float32. Returns probabilities (R, K + 1), background last, and deltas (R, K, 4).
        """
        fine, coarse = maps
        device = fine.values.device
        with measure(seconds, "pool", device):
            windows = project(boxes.to(device), fine, self.config.projection)
            distinct, rows = torch.unique(windows, dim=0, return_inverse=True)
            pooled = spatial_pyramid_pool(fine.values, distinct, self.config.levels)
        with measure(seconds, "fc", device):
            logits, deltas = self.head(pooled, self.head.read_context(coarse, fine, distinct))
            return logits.softmax(dim=1)[rows], deltas[rows]

    def learned_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that learn, by name: those of `reduction` and `head`."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("trunk.")}

    def learned_state(self) -> dict[str, Tensor]:
        """Return all that training gives the detector, by name: learned parameters and measured statistics."""
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if not name.startswith("trunk.")}

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the values of the learned layers."""
        digest = hashlib.sha256()
        for name, value in self.learned_state().items():
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
