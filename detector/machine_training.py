"""Train support vector machines and box regressors of a detector (He et al. 2015, section 4.1), from cached maps.

Positives are the objects themselves, negatives the proposals that overlap no object of the class by more than 0.3,
mined over all images; regressors learn from proposals that overlap an object by at least the rule's IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from .datasets import Sample
from .machines import MachineNet
from .mining import ImageRegions, MiningReport, MiningRule, mine, scale_features
from .preparation import Caches
from .regression import BoxRegressor, Matches
from .scales import FeaturePyramid
from .structures import GroundTruth
from .svm import LinearSVM

NEGATIVE_IOU = 0.3
NORM = 20.0  # mean norm to which features are scaled (Girshick et al. 2014's code)
_SCALED_IMAGES = 200
Watch = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Give what machines learn of each image; every pass computes it anew from the cached maps."""

    net: MachineNet
    samples: Sequence[Sample]
    caches: Caches

    def read(self, sample: Sample) -> tuple[FeaturePyramid, Tensor]:
        """Return the maps of an image, reduced, and its proposals (R, 4)."""
        maps, boxes = self.caches.read(sample)
        device = self.net.trunk.mean.device
        moved = [m.with_values(m.values.float()).to(device) for m in maps]
        return self.net.join([moved], sample.truth.size), boxes[: self.net.config.max_proposals]

    @torch.inference_mode()
    def __iter__(self) -> Iterator[ImageRegions]:
        for sample in self.samples:
            pyramid, boxes = self.read(sample)
            features = self.net.features(pyramid, boxes)[0].cpu().numpy()
            negatives = negatives_of(boxes, sample.truth, len(self.net.class_names))
            yield ImageRegions(features, negatives.numpy(), boxes.numpy())

    @torch.inference_mode()
    def objects(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return the features of an image's objects that are not difficult, (N, d), and their labels (N,)."""
        sure = ~sample.truth.difficult
        boxes, labels = sample.truth.boxes[sure].float(), sample.truth.labels[sure]
        return self.net.features(self.read(sample)[0], boxes)[0].cpu(), labels

    @torch.inference_mode()
    def matches(self, sample: Sample, iou: float) -> tuple[Tensor, Matches]:
        """Return pool5 (M, bins * C) of the proposals and objects that overlap an object by at least an IoU."""
        sure = ~sample.truth.difficult
        objects, labels = sample.truth.boxes[sure].float(), sample.truth.labels[sure]
        pyramid, boxes = self.read(sample)
        boxes = torch.cat([objects, boxes])
        overlap, match = box_iou(boxes, objects).max(dim=1) if len(objects) else (torch.zeros(len(boxes)), None)
        near = overlap >= iou if match is not None else torch.zeros(len(boxes), dtype=torch.bool)
        row = match[near] if match is not None else torch.zeros(0, dtype=torch.int64)
        pooled = self.net.features(pyramid, boxes[near])[1].cpu()
        return pooled, Matches(boxes[near], objects[row], labels[row], overlap[near])


def negatives_of(boxes: Tensor, truth: GroundTruth, classes: int) -> Tensor:
    """Say which of (R, 4) boxes overlap no object of each class by more than 0.3, difficult ones too: (R, K) bool."""
    worst = torch.zeros(len(boxes), classes)
    if len(truth):
        overlaps = box_iou(boxes, truth.boxes.float())
        worst.scatter_reduce_(1, truth.labels.expand(len(boxes), -1), overlaps, "amax")
    return worst <= NEGATIVE_IOU


def fit_machines(examples: Examples, svm: LinearSVM, rule: MiningRule, watch: Watch) -> MiningReport:
    """Train the machines of a detector. watch: told after every image, once for its objects and once per mining pass.

    Raises ValueError for a class without an object that is not difficult.
    """
    net = examples.net
    parts: list[list[Tensor]] = [[] for _ in net.class_names]
    for sample in examples.samples:
        features, labels = examples.objects(sample)
        for label in labels.unique().tolist():
            parts[label].append(features[labels == label])
        watch(1)
    for name, part in zip(net.class_names, parts, strict=True):
        if not part:
            raise ValueError(f"expected an object of every class that is not difficult, got none of {name}")
    positives = {name: torch.cat(part).numpy() for name, part in zip(net.class_names, parts, strict=True)}
    report = mine(examples, positives, svm, rule, feature_scale(examples), watch)
    net.take_machines(svm)
    return report


def feature_scale(examples: Examples) -> float:
    """Return the factor that gives features of some images' proposals a mean norm of 20."""
    step = max(1, len(examples.samples) // _SCALED_IMAGES)
    some = Examples(examples.net, examples.samples[::step][:_SCALED_IMAGES], examples.caches)
    return scale_features((image.features for image in some), NORM)


def fit_regressors(examples: Examples, rule: str, watch: Watch) -> BoxRegressor:
    """Train the box regressors of a detector by a rule's name, `spp` or `rcnn`. watch: told after every image."""
    net = examples.net
    regressor = BoxRegressor(len(net.class_names), rule)
    norms: list[float] = []
    scale = 0.0
    for sample in examples.samples:
        pooled, matches = examples.matches(sample, regressor.rule.iou)
        if len(pooled):
            norms += pooled.norm(dim=1).tolist()
        watch(1)
    scale = NORM / float(np.mean(norms))
    for sample in examples.samples:
        pooled, matches = examples.matches(sample, regressor.rule.iou)
        if len(pooled):
            regressor.partial_fit(pooled * scale, matches)
        watch(1)
    net.take_regressors(regressor.solve(), scale)
    return regressor
