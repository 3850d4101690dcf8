"""Refit one class of a finished detector from cached maps: its support vector machine, or its row of the last layer.

New photos are those without an object of the class, whose false alarms are to go, or those with new boxes. Nothing but
the weights and the bias of the class changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .datasets import Sample
from .example_files import ExampleOrigin
from .example_store import ExampleStore
from .last_layer import RowExamples, RowFit, RowHold, fit_row, margins_of
from .machine_training import Examples
from .machines import MachineNet
from .mining import ImageRegions
from .reduced import ReducedCaches
from .refitting import refit_class
from .sampling import candidates
from .sppnet import SPPNet

Watch = Callable[[int], None]
LAYERS = {"svm": "machines", "sppnet": "head.classes"}  # what is refitted, by the kind of detector


@dataclass(frozen=True, slots=True)
class RowRule:
    """Say how a row of the last layer is refitted.

    hold: what a change of the log-odds of a known region costs: half of this times its square. penalty: the same for
    the change of weight and bias. limit: a new region is learned from if it has this probability of the class, before
    or after it was refitted; below, it costs nothing. least: a known region is held if it had this probability. passes:
    the most over the new photos; one that finds no such region is the last.
    """

    hold: float = 0.3
    penalty: float = 1000.0
    limit: float = 0.1
    least: float = 0.01
    passes: int = 3


@dataclass(frozen=True, slots=True, eq=False)
class NewRow:
    """Hold what a class has become: weight (d,) and bias () float32.

    positives: regions that the new boxes gave. mined: regions of the new photos that looked like the class and are not
    of it. known: those of photos that were known before. passes: over the new photos. loss: of the problem that was
    solved, before and after.
    """

    weight: Tensor
    bias: Tensor
    positives: int
    mined: int
    known: int
    passes: int
    loss: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Refitting:
    """Hold what one class of a detector is refitted with.

    net: the detector, whose class `label` is meant. caches: of its maps. photos: the new ones, with their objects of
    all classes or none. watch: told after every photo that was looked at; it may raise to stop.
    """

    net: SPPNet
    label: int
    caches: ReducedCaches
    photos: Sequence[Sample]
    watch: Watch

    def refit_machine(self, store: ExampleStore, origin: ExampleOrigin, epochs: int = 3) -> NewRow:
        """Train the class's machine anew, from the rows that a store has; it takes up the new ones.

        epochs: passes over the new photos at most. Raises ValueError for a store of another detector.
        """
        net = self.net
        if not isinstance(net, MachineNet):
            raise ValueError("expected a detector with support vector machines, got one without")
        width, got = net.machines.in_features, store.features.shape[1]
        if origin.class_names != net.class_names or got != width:
            raise ValueError(
                f"expected examples of {width} features for the classes {', '.join(net.class_names)}, got {got} for "
                f"{', '.join(origin.class_names)}"
            )
        regions = _Regions(self, Examples(net, self.photos, self.caches))
        known = int((store.signs[: store.count, self.label] != 0).sum())
        rule = replace(origin.rule, epochs=epochs)
        coef, intercept, report = refit_class(store, self.label, origin.svm, regions, regions.objects(), rule)
        row = (torch.from_numpy(coef), torch.tensor(intercept, dtype=torch.float32))
        return NewRow(*row, report.positives, report.added, known, report.epochs)

    def refit_row(self, known: Sequence[Sample], rule: RowRule) -> NewRow:
        """Fit the class's row of the last layer to the new photos, and hold it where it was in known photos.

        known: photos that the detector was trained on. The log-odds of their regions are held, by the squares of what
        they change by. Probabilities do not tell: they are near 0 and 1 in photos that were learned from, and hardly
        move where the log-odds of an object have lost what they would need in another photo.
        """
        layer = self.net.head.classes
        hold = RowHold.of(layer.in_features, rule.penalty)
        for sample in known:
            examples, _, _ = self._read(sample)
            likely = examples.probabilities(np.zeros(layer.in_features + 1)) >= rule.least
            hold = hold.add(examples.features[likely], rule.hold)
            self.watch(1)
        learned: list[RowExamples] = []
        seen: list[set[int]] = [set() for _ in self.photos]
        change = np.zeros(layer.in_features + 1)
        fit: RowFit | None = None
        passes = 0
        while passes < rule.passes:
            passes += 1
            found = 0
            for sample, taken in zip(self.photos, seen, strict=True):
                examples = self._new(sample, change, rule.limit, taken)
                found += len(examples)
                learned += [examples] if len(examples) else []
                self.watch(1)
            if not found:
                break
            fit = fit_row(RowExamples.join(learned), hold, rule.limit, change)
            change = fit.change
        positives = sum(int(part.objects.sum()) for part in learned)
        numbers = (positives, sum(map(len, learned)) - positives, hold.known, passes)
        weight = (layer.weight[self.label].double() + torch.from_numpy(change[:-1])).detach().float()
        bias = (layer.bias[self.label].double() + change[-1]).detach().float()
        return NewRow(weight, bias, *numbers, (fit.before, fit.after) if fit else None)

    def _new(self, sample: Sample, change: np.ndarray, limit: float, taken: set[int]) -> RowExamples:
        """Return the regions of a new photo to learn from that are not taken yet, and take them."""
        examples, positive, negative = self._read(sample)
        wanted = positive | (negative & (examples.probabilities(change) >= limit))
        rows = np.array([row for row in np.flatnonzero(wanted).tolist() if row not in taken], dtype=np.int64)
        taken.update(rows.tolist())
        return examples.take(rows)

    @torch.inference_mode()
    def _read(self, sample: Sample) -> tuple[RowExamples, np.ndarray, np.ndarray]:
        """Return the regions that the last layer sees of a photo, and its objects; which are of the class or are not.

        Those that are neither overlap an object too little to be of its class, and too much to be background.
        """
        net, config = self.net, self.net.config
        pyramid, boxes = self.caches.read(sample)
        boxes = boxes[: config.max_proposals]
        boxes = boxes[net.rank_shortlisted(pyramid, boxes)]
        rule = replace(config, negative_iou=(0.0, config.negative_iou[1]))
        regions = candidates(boxes, sample.truth, len(net.class_names), rule)
        sure = torch.zeros(len(regions.boxes), dtype=torch.bool)
        sure[regions.positives] = sure[regions.negatives] = True
        pooled, context, rows = net.read(pyramid, regions.boxes)
        features = net.working_head.hidden(pooled, context)[1].float()[rows]
        logits = net.head.classes(features)
        positive = (sure & (regions.labels == self.label)).numpy()
        margins = margins_of(logits.cpu().numpy(), self.label)
        examples = RowExamples(features.cpu().numpy(), margins, positive)
        return examples, positive, sure.numpy() & ~positive


class _Regions:
    """Give the regions of new photos as the miner of one class wants them, anew in every pass."""

    def __init__(self, refitting: Refitting, examples: Examples) -> None:
        self.label, self.watch, self.examples = refitting.label, refitting.watch, examples

    def __iter__(self) -> Iterator[ImageRegions]:
        for image in self.examples:
            yield replace(image, negatives=image.negatives[:, [self.label]])
            self.watch(1)

    def objects(self) -> np.ndarray:
        """Return the features (P, d) float32 of the objects of the class that are not difficult."""
        parts = [torch.zeros(0, self.examples.net.machines.in_features)]
        for sample in self.examples.samples:
            if bool((sample.truth.labels == self.label).any()):
                features, labels = self.examples.objects(sample)
                parts.append(features[labels == self.label])
        return torch.cat(parts).numpy()
