"""Teach the layers behind a trunk what the trunk's own ImageNet classifier says of regions, before objects are named.

The paper's fully connected layers were trained on ImageNet before they were fine-tuned. Those of an SPP-net over
another trunk are not to be had, but the trunk's classifier is. What it answers when it is shown a region of a photo, a
probability for each of 1,000 classes, is what the reduction, fc6, fc7 and a layer of 1,000 outputs learn to answer from
the pyramid of the region (knowledge distillation, Hinton et al. 2015). No annotation is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .batches import RegionBatches, Regions, Share, seeded
from .datasets import Sample
from .features import flip_map
from .sampling import mirror
from .sppnet import SPPNet
from .structures import FeatureMap
from .teaching import CLASSES, AnswerCaches
from .training import Losses, Run


def class_names() -> list[str]:
    """Return the 1,000 classes of ImageNet in their order, as synsets: n01440764, ..."""
    from timm.data.imagenet_info import ImageNetInfo

    names: list[str] = ImageNetInfo().label_names()
    return names


class PretrainedNet(SPPNet):
    """Hold the layers that learn ImageNet's classes: an SPP-net without boxes to correct, or a cascade."""

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name: those of `reduction` and `head` but for boxes and a cascade."""
        idle = ("head.deltas.", "head.coarse.")
        return {n: p for n, p in super().learned_parameters().items() if not n.startswith(idle)}


class PretrainingBatches(RegionBatches):
    """Give the batches of a run that learns from a teacher: regions that it was asked about, and the whole photo.

    The targets of the regions are the teacher's probabilities (R, 1000), their labels its first choices. Of a mirrored
    region it is taken to say what it says of the region.
    """

    def __init__(self, samples: Sequence[Sample], caches: AnswerCaches):
        super().__init__(samples, caches.config, CLASSES)
        self.caches = caches

    def maps(self, item: Sample) -> tuple[FeatureMap, ...]:
        """Return the maps of an image, one per tap."""
        return self.caches.read(item)[0]

    def draw(self, item: Sample, key: tuple[int, int, int]) -> Regions:
        """Draw regions of an image, mirrored or not; key seeds the draw."""
        maps, boxes, logits = self.caches.read(item)
        maps = tuple(m.with_values(m.values.float()) for m in maps)
        generator = seeded(key)
        flipped = self.config.flip and bool(torch.rand(1, generator=generator) < 0.5)
        last = len(boxes) - 1
        chosen = torch.randperm(last, generator=generator)[: self.config.regions_per_image - 1]
        chosen = torch.cat([chosen, torch.tensor([last])])
        boxes, answers = boxes[chosen], logits[chosen].softmax(dim=1)
        if flipped:
            width = item.truth.size[1]
            maps, boxes = tuple(flip_map(m, width) for m in maps), mirror(boxes, width)
        return Regions(maps, boxes, answers.argmax(dim=1), answers)


class PretrainingRun(Run):
    """Hold a run that learns from a teacher."""

    def losses(self, batch: Sequence[Share]) -> Losses:
        """Return the cross entropy with the teacher's probabilities; `right` is how often both choose alike."""
        parts = [share.pool(self.model) for share in batch]
        pooled, context = (torch.cat(values) for values in zip(*parts, strict=True))
        answers = torch.cat([share.targets for share in batch]).to(pooled.device)
        fc7 = self.model.head.hidden(pooled, context)[1]
        logits = self.model.head.classes(fc7)[:, :-1]
        nothing = logits.new_zeros(())
        right = float((logits.argmax(dim=1) == answers.argmax(dim=1)).float().mean())
        return Losses(F.cross_entropy(logits, answers), nothing, nothing, right)
