"""Teach the layers behind a trunk what the trunk's own ImageNet classifier says of regions, before objects are named.

The paper's fully connected layers were trained on ImageNet before they were fine-tuned. Those of an SPP-net over
another trunk are not to be had, but the trunk's classifier is: it reads the mean of the last map, so that it can read
the mean over a region as well. What it answers for the regions of photos, a probability for each of 1,000 classes, is
what the reduction, fc6, fc7 and a layer of 1,000 outputs learn to answer from the pyramid (knowledge distillation,
Hinton et al. 2015). No annotation is used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Trunk, list_stages
from .batches import Batches, Regions, Share, seeded
from .boxes import coverage, project
from .config import Config
from .datasets import Sample
from .features import flip_map
from .preparation import Caches
from .sampling import mirror
from .sppnet import SPPNet
from .structures import FeatureMap
from .training import Losses, Run


def class_names() -> list[str]:
    """Return the 1,000 classes of ImageNet in their order, as synsets: n01440764, ..."""
    from timm.data.imagenet_info import ImageNetInfo

    names: list[str] = ImageNetInfo().label_names()
    return names


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Classify regions by the layers of a trunk that lie behind its last tap.

    rest: the convolutional ones, applied cell by cell; classifier: the linear one, which reads the mean. Both compute
    in float64: a training step changes the precision of float32 products for the whole process, and what threads
    answer beside it must not depend on when they do.
    """

    rest: nn.Sequential
    classifier: nn.Linear

    @classmethod
    def of(cls, trunk: Trunk) -> Teacher:
        """Return the teacher that a trunk brings.

        Raises ValueError for one whose classifier is not a linear layer, or whose last tap is not its last map.
        """
        layers = [child for name, child in trunk.model.named_children() if name in ("classifier", "fc")]
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or trunk.origin.startswith("random"):
            raise ValueError(
                "expected a trunk with ImageNet's weights and a classifier that reads the mean of its last map "
                f"(EfficientNet-Lite, ResNet), got {trunk.name}" + (f" ({trunk.origin})" if trunk.origin else "")
            )
        stages = list_stages(trunk.model)
        last = [name for name, _ in stages].index(trunk.taps[-1].layer)
        rest = nn.Sequential(*(module for _, module in stages[last + 1 :])).eval()
        if any(isinstance(m, nn.Conv2d) and max(m.kernel_size + m.stride) > 1 for m in rest.modules()):
            name = trunk.taps[-1].layer
            raise ValueError(f"expected the trunk's last map among `layers`, such as blocks.6, got {name} as the last")
        return cls(copy.deepcopy(rest).double(), copy.deepcopy(layers[0]).eval().double())

    @torch.no_grad()
    def logits(self, maps: Sequence[FeatureMap], boxes: Tensor, projection: str) -> Tensor:
        """Return what the classifier says of (R, 4) boxes: (R, 1000), on the device of the maps.

        maps: one per tap, of the whole image; the cells of a box are those that the pyramid pools.
        """
        last, device = maps[-1], self.classifier.weight.device
        cells = self.rest(last.values.double()[None].to(device))[0]
        windows = project(boxes, maps[0], projection)
        means = coverage(windows, maps[0], last).to(device) @ cells.flatten(1).T
        found: Tensor = self.classifier(means)
        return found.float().to(boxes.device)


class PretrainedNet(SPPNet):
    """Hold the layers that learn ImageNet's classes: an SPP-net without boxes to correct, or a cascade."""

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name: those of `reduction` and `head` but for boxes and a cascade."""
        idle = ("head.deltas.", "head.coarse.")
        return {n: p for n, p in super().learned_parameters().items() if not n.startswith(idle)}


class PretrainingBatches(Batches):
    """Give the batches of a run that learns from a teacher: proposals drawn at random, and the whole photo.

    The targets of the regions are the teacher's probabilities (R, 1000), their labels its first choices.
    """

    def __init__(self, samples: Sequence[Sample], caches: Caches, config: Config, teacher: Teacher):
        super().__init__(samples, caches, config, teacher.classifier.out_features)
        self.teacher = teacher

    def draw(self, item: Sample, key: tuple[int, int, int]) -> Regions:
        """Draw regions of an image, mirrored or not; key seeds the draw."""
        maps, boxes = self.caches.read(item)
        boxes = boxes[: self.config.max_proposals]
        maps = tuple(m.with_values(m.values.float()) for m in maps)
        generator = seeded(key)
        flipped = self.config.flip and bool(torch.rand(1, generator=generator) < 0.5)
        height, width = item.truth.size
        chosen = torch.randperm(len(boxes), generator=generator)[: self.config.regions_per_image - 1]
        boxes = torch.cat([boxes[chosen], torch.tensor([[0.0, 0.0, width, height]])])
        if flipped:
            maps, boxes = tuple(flip_map(m, width) for m in maps), mirror(boxes, width)
        answers = self.teacher.logits(maps, boxes, self.config.projection).softmax(dim=1)
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
