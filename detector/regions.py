"""Hold what SPP-net and R-CNN share: the layers that learn, how boxes are scored and what comes out.

They differ in one thing only: where the pooled vector of a region comes from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from proposals.structures import Proposals

from .backbones import Trunk, build_trunk, trunk_flops
from .boxes import decode
from .config import Config
from .engines import choose_engine, fast_layers
from .features import values_key
from .heads import PyramidHead, Reduction
from .selection import Scored, collect, select, weigh_by_rank
from .structures import BoxScores, Detections, FeatureMap, Seconds, Size, check_boxes
from .timing import measure


def _build_trunk(config: Config) -> Trunk:
    """Build the trunk, which is not saved: the same one is built again when the detector is loaded."""
    return build_trunk(config.trunk, config.layers, config.pretrained, config.seed, config.weights)


class RegionDetector(nn.Module):
    """Find objects in images, given proposals.

    config: every setting. class_names: the K classes. trunk: built from the config if it is not given.
    Only `reduction` and `head` learn.
    """

    def __init__(self, config: Config, class_names: Sequence[str], trunk: Trunk | None = None):
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.trunk = trunk or _build_trunk(config)
        self.trunk.to(memory_format=torch.channels_last)
        channels = [tap.channels for tap in self.trunk.taps]
        self.reduction = Reduction(channels, config.channels)
        pyramid, context = (config.channels, config.levels), channels[-1] if config.region_mean else 0
        cascade = config.detector != "rcnn" and config.cascade > 0 and len(config.levels) > 1
        layers = (config.hidden, len(class_names), config.dropout, cascade)
        self.head = PyramidHead(pyramid, context, *layers)
        self._fast_head: tuple[PyramidHead, ...] = ()  # in a tuple, so that it is no part of the module
        self.engine = choose_engine("eager")
        self.eval()

    @abstractmethod
    def score_image(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Classify (R, 4) boxes of an image: probabilities (R, K + 1), background last, and deltas (R, K, 4)."""

    def operations(self, size: Size, regions: int) -> dict[str, float]:
        """Count what `regions` boxes of an image of (height, width) pixels cost: FLOPs of conv and fc, bytes of pool.

        A multiply-add counts as two; activations and sums are left out. All boxes count as distinct windows.
        """
        crops, sides = self.seen(size, regions)
        conv = sum(trunk_flops(self.trunk, side) for side in sides) * crops
        head, channels, kept = self.head, self.config.channels, regions
        bytes_written = 0.0
        fc = 0.0
        if head.coarse is not None and 0 < self.config.cascade < regions:
            kept = self.config.cascade
            fc += 2.0 * regions * sum(layer.weight.numel() for layer in head.coarse if isinstance(layer, nn.Linear))
            bytes_written += 4.0 * regions * len(head.coarse_bins) * channels
        layers = (head.fc6, head.fc7, head.classes, head.deltas)
        fc += 2.0 * kept * sum(layer.weight.numel() for layer in layers)
        bytes_written += 4.0 * kept * head.fc6.in_features
        return {"conv": conv, "fc": fc, "pool": bytes_written}

    @abstractmethod
    def seen(self, size: Size, regions: int) -> tuple[int, list[Size]]:
        """Return how many images the trunk sees for one of (height, width) pixels, of each of these sizes."""

    @abstractmethod
    def pool_regions(self, maps: Sequence[FeatureMap], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads of (R, 4) boxes, to learn: the pyramid's bins (R, bins, C) and the context.

        maps: one per tap, of what the detector shows its trunk.
        """

    def use_engine(self, name: str) -> None:
        """Compute by an engine of `detector.engines` from now on: with the layers as they are now, for detection only.

        Raises ValueError for an unknown engine or one that cannot run here.
        """
        self.engine = choose_engine(name, self.trunk.mean.device)
        self._fast_head = (fast_layers(self.head, self.engine),)

    @property
    def working_head(self) -> PyramidHead:
        """Return the head that computes: the one that learns, or the engine's copy of it."""
        return self._fast_head[0] if self._fast_head else self.head

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

        seconds: collects the time of the stages.
        Returns at most max_detections Detections of score >= min_score, best first, with the image for drawing.
        """
        boxes = proposals.boxes[: self.config.max_proposals]
        probabilities, deltas = self.score_image(image, boxes, seconds)
        size = (int(image.shape[1]), int(image.shape[2]))
        return self.choose(boxes, (probabilities, deltas), size, torch.arange(len(boxes)), seconds, image)

    @torch.inference_mode()
    def candidates(self, image: Tensor, proposals: Proposals) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the selection chooses from: proposals (R, 4), scores (R, K) and refined boxes (R, K, 4).

        The scores are weighed by rank, and 0 where a cascade left a region out; refined boxes are clipped to the image.
        """
        boxes = proposals.boxes[: self.config.max_proposals]
        ranks, (probabilities, deltas) = self.consider(image, boxes)
        scores = boxes.new_zeros(len(boxes), len(self.class_names))
        refined = boxes[:, None].repeat(1, len(self.class_names), 1)
        scores[ranks] = weigh_by_rank(probabilities.cpu(), self.config.rank_prior, ranks)[:, :-1]
        size = (int(image.shape[1]), int(image.shape[2]))
        for label in range(len(self.class_names)):
            refined[ranks, label] = clip_boxes_to_image(decode(boxes[ranks], deltas[:, label].cpu()), size)
        return boxes, scores, refined

    @torch.inference_mode()
    def collect(self, image: Tensor, proposals: Proposals, min_score: float, seconds: Seconds | None = None) -> Scored:
        """Return what `predict` suppresses: refined boxes (N, 4), scores (N,) >= min_score and labels (N,).

        They are in the order of the proposals, on the CPU; a proposal comes once for each class of that score.
        """
        boxes = proposals.boxes[: self.config.max_proposals]
        ranks, (probabilities, deltas) = self.consider(image, boxes, seconds)
        size = (int(image.shape[1]), int(image.shape[2]))
        with measure(seconds, "select"):
            weighed = weigh_by_rank(probabilities.cpu(), self.config.rank_prior, ranks)
            return collect(boxes[ranks], weighed, deltas.cpu(), size, min_score)

    def consider(
        self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return which of (R, 4) boxes, best first, are classified, and their probabilities and deltas."""
        return torch.arange(len(boxes)), self.score_image(image, boxes, seconds)

    def choose(
        self,
        boxes: Tensor,
        scored: tuple[Tensor, Tensor],
        size: Size,
        ranks: Tensor,
        seconds: Seconds | None = None,
        image: Tensor | None = None,
    ) -> Detections:
        """Make detections of scored boxes. scored: probabilities and deltas. ranks: (R,) places among the proposals."""
        with measure(seconds, "select"):
            weighed = weigh_by_rank(scored[0].cpu(), self.config.rank_prior, ranks)
            found = select(boxes, weighed, scored[1].cpu(), size, self.config)
        return Detections(*found, size, self.class_names, image)

    @torch.inference_mode()
    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores:
        """Score boxes that the user brought: class probabilities for every one, in the given order.

        boxes: (R, 4) float32 xyxy pixels of the image, of positive width and height, not wholly outside the image.
        Raises ValueError for other boxes.
        """
        check_given(boxes, image)
        probabilities, deltas = self.score_image(image, boxes, seconds)
        with measure(seconds, "select"):
            refined = refine_given(boxes, probabilities[:, :-1].argmax(dim=1), deltas, image)
        return BoxScores(boxes, probabilities.cpu(), refined, self.class_names)

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name: of `reduction` and `head`, or of fully connected layers alone.

        The latter, with `learn` of `fc`, leaves the norm of the pooled bins as it is, too.
        """
        fixed = ("trunk.", "reduction.", "head.norm.") if self.config.learn == "fc" else ("trunk.",)
        return {name: p for name, p in self.named_parameters() if not name.startswith(fixed)}

    def learned_state(self) -> dict[str, Tensor]:
        """Return all that training gives the detector, by name: learned parameters and measured statistics."""
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if not name.startswith("trunk.")}

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the values of the learned layers."""
        return values_key(self.learned_state())


def check_given(boxes: Tensor, image: Tensor) -> None:
    """Raise ValueError unless boxes that a user brought are (R, 4) float32, of positive size and not outside the image.

    image: (3, H, W).
    """
    height, width = image.shape[1:]
    check_boxes(boxes)
    outside = (boxes[:, :2] >= boxes.new_tensor([width, height])).any(1) | (boxes[:, 2:] <= 0).any(1)
    bad = outside | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bool(bad.any()):
        got = [round(v, 2) for v in boxes[bad][0].tolist()]
        where = f"{width} x {height} pixels"
        raise ValueError(f"expected boxes [x1, y1, x2, y2] of positive size in {where}, got {got}")


def refine_given(boxes: Tensor, labels: Tensor, deltas: Tensor, image: Tensor) -> Tensor:
    """Correct (R, 4) boxes by the deltas (R, K, 4) of their labels (R,), and clip them to the (3, H, W) image."""
    height, width = image.shape[1:]
    refined = decode(boxes, deltas[torch.arange(len(boxes)), labels].cpu())
    limit = refined.new_tensor([width, height, width, height])
    return refined.clamp(min=0).minimum(limit)
