"""Train the layers that learn, from cached maps: sample regions, pool them, classify them, step.

A run that was killed continues from its last state (`detector.learning`) and ends with the weights that an
uninterrupted run ends with: everything random is seeded by the step's number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import RegionBatches, Share
from .checkpoints import save_detector
from .config import Config
from .learning import LearningRun
from .optimizers import learning_rate
from .regions import RegionDetector

_MEASURED_IMAGES = 64
_METRIC_STEPS = 20


@dataclass(frozen=True, slots=True)
class Metrics:
    """Hold the means over the last steps: losses, and the part of positives that got their own class."""

    epoch: float
    step: int
    loss: float
    class_loss: float
    box_loss: float
    positives_right: float
    learning_rate: float


@dataclass(slots=True)
class Losses:
    """Hold the losses of a batch, and the part of its positives that got their own class, NaN without any."""

    classes: Tensor
    boxes: Tensor
    coarse: Tensor
    right: float


class Run(LearningRun[RegionDetector]):
    """Hold a training run of a detector, of which the reduction and the head learn.

    key: stands for the data and caches; a folder that holds a run with another key or config is refused.
    fresh: the layers have learned nothing yet, so that the statistics of channels are measured first.
    """

    row = Metrics

    def __init__(self, model: RegionDetector, folder: Path, key: str, fresh: bool = True):
        super().__init__(model, model.config, folder, key)
        self.fresh = fresh
        self.config: Config = model.config

    def losses(self, batch: Sequence[Share]) -> Losses:
        """Return the losses of a batch, to learn from."""
        return batch_losses(self.model, batch)

    def save_model(self, path: Path, extra: Mapping[str, str]) -> None:
        """Write the finished detector with some more metadata."""
        save_detector(self.model, path, extra)


def train(run: Run, batches: RegionBatches, report: Callable[[Metrics, float], None], save_every: float = 60.0) -> Path:
    """Train a run to its end and return the path of the finished model.

    report: is given the newest metrics and the part of the run that is done, every few steps.
    save_every: seconds after which the state is written again.
    """
    if run.finished:
        return run.finished
    run.continue_from_disk()
    if run.step == 0 and run.fresh:
        run.model.reduction.measure(batches.first_maps(_MEASURED_IMAGES))
    run.model.train()
    recent: list[Losses] = []
    saved = time.monotonic()
    for batch in _from_step(run, batches):
        with _bfloat16_products():
            recent.append(_learn(run, batch, batches.steps))
        last = run.step == batches.steps
        if run.step % _METRIC_STEPS == 0 or last:
            run.history.append(_mean(recent, run, batches))
            recent = []
            with run.stoppable():
                report(run.history[-1], run.step / batches.steps)
            if time.monotonic() - saved > save_every or last:
                run.save_state()
                saved = time.monotonic()
    return run.finish()


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let products of float32 matrices be computed in bfloat16, summed in float32, where the processor does it fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _from_step(run: Run, batches: RegionBatches) -> Iterator[list[Share]]:
    yield from batches.iterate(run.step)


def _learn(run: Run, batch: Sequence[Share], steps: int) -> Losses:
    """Take one step of the optimiser and move the running average of the weights."""
    config = run.config
    torch.manual_seed(config.seed * 1_000_003 + run.step)  # dropout draws from torch's own generator
    losses = run.losses(batch)
    run.descend(losses.classes + config.box_weight * losses.boxes + losses.coarse, steps)
    return losses


def batch_losses(model: RegionDetector, batch: Sequence[Share]) -> Losses:
    """Pool and classify the regions of a batch: cross entropy over K + 1 classes, smooth L1 over positives' boxes.

    The small classifier of a cascade learns the classes, too; what it reads does not learn from it.
    """
    parts = [part.pool(model) for part in batch]
    pooled, context = (torch.cat(values) for values in zip(*parts, strict=True))
    labels = torch.cat([part.labels for part in batch]).to(pooled.device)
    targets = torch.cat([part.targets for part in batch]).to(pooled.device)
    logits, deltas = model.head(pooled, context)
    if len(labels) == 0:  # photos of which no region can be learned from: a mean over none would be NaN
        nothing = logits.sum()
        return Losses(nothing, nothing, nothing, math.nan)
    positive = (labels < len(model.class_names)).nonzero()[:, 0]
    own = labels[positive]
    boxes = F.smooth_l1_loss(deltas[positive, own], targets[positive], reduction="sum") / len(labels)
    right = (logits[positive].argmax(dim=1) == own).float()
    coarse = logits.new_zeros(())
    if model.head.coarse is not None:
        coarse = F.cross_entropy(model.head.read_coarse(pooled.detach()[:, model.head.coarse_bins]), labels)
    return Losses(F.cross_entropy(logits, labels), boxes, coarse, float(right.mean()) if len(right) else math.nan)


def _mean(recent: Sequence[Losses], run: Run, batches: RegionBatches) -> Metrics:
    classes = sum(float(r.classes.detach()) for r in recent) / len(recent)
    boxes = sum(float(r.boxes.detach()) for r in recent) / len(recent)
    right = [r.right for r in recent if not math.isnan(r.right)]
    return Metrics(
        epoch=round(run.step / batches.per_epoch, 4),
        step=run.step,
        loss=classes + run.config.box_weight * boxes,
        class_loss=classes,
        box_loss=boxes,
        positives_right=sum(right) / len(right) if right else 0.0,
        learning_rate=learning_rate(run.config, run.step - 1, batches.steps),
    )
