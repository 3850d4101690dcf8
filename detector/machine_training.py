"""Train support vector machines and box regressors of a detector (He et al. 2015, section 4.1), from cached maps.

Positives are the objects themselves, negatives the proposals that overlap no object of the class by more than 0.3,
mined over all images; regressors learn from proposals that overlap an object by at least the rule's IoU. What is kept
of an image are its hard negatives. A run that was stopped goes on from its folder, and ends with the same machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .checkpoints import read_tensors, save_tensors
from .datasets import Sample
from .example_files import ExampleOrigin, save_examples
from .example_store import ExampleStore
from .feature_norm import MeanNorm
from .machines import MachineNet
from .mining import ImageRegions, Miner, MiningReport, MiningRule
from .reduced import ReducedCaches
from .regression import BoxRegressor, Matches
from .scales import FeaturePyramid
from .structures import GroundTruth
from .svm import LinearSVM

NEGATIVE_IOU = 0.3
NORM = 20.0  # mean norm to which features are scaled (Girshick et al. 2014's code)
_SCALED_IMAGES = 200
_STATE = "state.safetensors"
Watch = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Give what machines learn of each image; every pass computes it anew from the cached maps."""

    net: MachineNet
    samples: Sequence[Sample]
    caches: ReducedCaches

    def read(self, sample: Sample) -> tuple[FeaturePyramid, Tensor]:
        """Return the reduced maps of an image and its proposals (R, 4)."""
        pyramid, boxes = self.caches.read(sample)
        return pyramid.to(self.net.trunk.mean.device), boxes[: self.net.config.max_proposals]

    def __iter__(self) -> Iterator[ImageRegions]:
        return map(self.regions, self.samples)

    @torch.inference_mode()
    def regions(self, sample: Sample) -> ImageRegions:
        """Return the features of an image's proposals, and which are negatives of which class."""
        pyramid, boxes = self.read(sample)
        features = self.net.features(pyramid, boxes)[0].cpu().numpy()
        negatives = negatives_of(boxes, sample.truth, len(self.net.class_names))
        return ImageRegions(features, negatives.numpy(), boxes.numpy())

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


class MachineRun:
    """Train the machines of a detector, and keep in a folder what was done, to go on from there after a stop.

    folder: where `state.safetensors` is written every save_every seconds and when Ctrl-C stops the run between two
    images, and `examples.safetensors` at the end (`example_files`); None to write nothing. key: stands for the data and
    all settings; the state of a run with another one is refused.
    The images are visited twice: for their objects, and in some for the mean norm of features; then to be mined.
    """

    def __init__(
        self,
        examples: Examples,
        svm: LinearSVM,
        rule: MiningRule,
        folder: Path | None = None,
        key: str = "",
        save_every: float = 60.0,
    ) -> None:
        self.examples, self.svm, self.rule = examples, svm, rule
        self.folder, self.key, self.save_every = folder, key, save_every
        self.net = examples.net
        self.seen = 0  # images whose objects the store holds
        self.norms = MeanNorm()
        self.store = ExampleStore(len(self.net.class_names), self.net.machines.in_features, rule.max_rows)
        self.miner: Miner | None = None
        self.done = False
        self._saved = time.monotonic()

    @property
    def step(self) -> int:
        """Return how many visits of images are done, of twice their number if there is one pass of mining."""
        images = len(self.examples.samples)
        if self.done:
            return images * (1 + self.rule.epochs)
        return self.seen if self.miner is None else images * (1 + self.miner.epoch) + self.miner.image

    def continue_from_disk(self) -> None:
        """Take up the state in the folder, if there is one. Raises ValueError that names a file that does not fit."""
        if self.folder is None or not (self.folder / _STATE).exists():
            return
        path = self.folder / _STATE
        tensors, metadata = read_tensors(path)
        if metadata.get("key") != self.key:
            raise ValueError(f"{path}: expected an empty folder or the same run, got a run of other settings")
        try:
            self._take_up(tensors, metadata["stage"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: expected the state of a run, got one that does not fit ({error})") from error

    def _take_up(self, tensors: Mapping[str, Tensor], stage: str) -> None:
        if stage == "done":
            self.svm.coef_, self.svm.intercept_ = tensors["coef"].numpy().copy(), tensors["intercept"].numpy().copy()
            self.net.take_machines(self.svm)
            self.done = True
            return
        scale, total, count, seen = tensors["numbers.run"].tolist()
        self.norms, self.seen = MeanNorm(total, int(count)), int(seen)
        self.store = ExampleStore.from_tensors(tensors, scale, self.rule.max_rows)
        if stage == "mining":
            self.miner = Miner(self.store, self.net.class_names, self.svm, self.rule)
            self.miner.take_up(tensors)

    def save_state(self) -> None:
        """Write all that continuing takes; of finished machines, the machines alone."""
        if self.folder is None:
            return
        if self.done:
            stage, parts = "done", {"coef": self.svm.coef_, "intercept": self.svm.intercept_}
            tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
        else:
            stage, tensors = "objects", self.store.to_tensors()
            if self.miner is not None:
                stage, tensors = "mining", self.miner.to_tensors()
            numbers = [self.store.scale, self.norms.total, self.norms.count, self.seen]
            tensors["numbers.run"] = torch.tensor(numbers, dtype=torch.float64)
        metadata = {"key": self.key, "step": str(self.step), "stage": stage}
        save_tensors(tensors, self.folder / _STATE, metadata)
        self._saved = time.monotonic()

    def fit(self, watch: Watch) -> MiningReport | None:
        """Train what is not trained yet and give it to the detector. watch: told after every visit of an image.

        Returns what happened, None if the state was that of finished machines. Raises ValueError for a class without
        an object that is not difficult.
        """
        if self.done:
            return None
        samples = self.examples.samples
        for number in range(self.seen, len(samples)):
            self._collect(number)
            self._tell(watch)
        miner = self.miner = self.miner or self._begin()
        while not miner.done:
            for number in range(miner.image, len(samples)):
                miner.visit(number, self.examples.regions(samples[number]))
                self._tell(watch)
            miner.end_pass()
        report = miner.finish()
        self.net.take_machines(self.svm)
        if self.folder is not None:
            origin = ExampleOrigin(self.key, tuple(self.net.class_names), self.svm, self.rule)
            save_examples(self.folder / "examples.safetensors", self.store, origin)
        self.done = True
        self.save_state()
        watch(0)  # Ctrl-C may have come while the last machines were trained
        return report

    def _collect(self, number: int) -> None:
        """Keep the features of an image's objects; measure the norms of its proposals' if it is one of the sample."""
        sample, step = self.examples.samples[number], max(1, len(self.examples.samples) // _SCALED_IMAGES)
        features, labels = self.examples.objects(sample)
        for label in labels.unique().tolist():
            self.store.add_positives(label, features[labels == label].numpy())
        if number % step == 0 and number // step < _SCALED_IMAGES:
            self.norms.add(self.examples.regions(sample).features)
        self.seen = number + 1

    def _begin(self) -> Miner:
        """Return a miner that has seen no image."""
        objects = (self.store.signs[: self.store.count] > 0).sum(axis=0)
        for name, number in zip(self.net.class_names, objects, strict=True):
            if not number:
                raise ValueError(f"expected an object of every class that is not difficult, got none of {name}")
        self.store.sort_positives()
        self.store.scale = self.norms.factor(NORM)
        return Miner(self.store, self.net.class_names, self.svm, self.rule)

    def _tell(self, watch: Watch) -> None:
        """Report an image, between two of which all is whole; write the state if it is time or Ctrl-C was pressed."""
        try:
            watch(1)
        except KeyboardInterrupt:
            self.save_state()
            raise
        if time.monotonic() - self._saved > self.save_every:
            self.save_state()


def fit_machines(examples: Examples, svm: LinearSVM, rule: MiningRule, watch: Watch) -> MiningReport:
    """Train the machines of a detector in one go and write nothing; see `MachineRun.fit`."""
    report = MachineRun(examples, svm, rule).fit(watch)
    assert report is not None
    return report


def fit_regressors(examples: Examples, rule: str, watch: Watch) -> BoxRegressor:
    """Train the box regressors of a detector by a rule's name, `spp` or `rcnn`. watch: told after every image."""
    regressor = BoxRegressor(len(examples.net.class_names), rule)
    norms = MeanNorm()
    for sample in examples.samples:
        pooled, matches = examples.matches(sample, regressor.rule.iou)
        if len(pooled):
            norms.add(pooled.numpy())
            regressor.partial_fit(pooled, matches)
        watch(1)
    scale = norms.factor(NORM)
    examples.net.take_regressors(regressor.solve(scale), scale)
    return regressor
