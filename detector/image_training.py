"""Train all layers of a classifier from images of several sizes that share the weights (He et al. 2015, section 2.3).

A run that was killed continues from its last state (`detector.learning`) and ends with the weights that an
uninterrupted run ends with: batch k depends on the seed and on k alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .classification import Classifier, classification_loss, told_right
from .classifier_config import ClassifierConfig
from .classifier_files import save_classifier
from .images import read_image, resize_image, scaled_size
from .labels import LabelledImage
from .learning import LearningRun
from .optimizers import learning_rate

_AHEAD = 3
_METRIC_STEPS = 20
_LARGER = 256 / 224  # the image is so many times the size of the part of it that is learned from


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """Hold the means over the last steps: the loss, and the part of labels that are told right."""

    epoch: float
    step: int
    side: int
    loss: float
    right: float
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """Hold pixels (N, 3, S, S) uint8 and labels (N, K) int8: 1 shows the class, -1 does not, 0 is left out."""

    pixels: Tensor
    labels: Tensor


class ImageRun(LearningRun[Classifier]):
    """Hold a training run of a classifier of which all layers learn."""

    row = ImageMetrics

    def __init__(self, model: Classifier, folder: Path, key: str):
        super().__init__(model, model.config, folder, key)

    def save_model(self, path: Path, extra: Mapping[str, str]) -> None:
        """Write the finished classifier with some more metadata."""
        save_classifier(self.model, path, extra)


class ImageBatches:
    """Give the batches of a training run in order, read ahead by background threads.

    Every epoch shows each image once, in an order of its own; the last ones that do not fill a batch are left out.
    """

    def __init__(self, samples: Sequence[LabelledImage], config: ClassifierConfig):
        self.samples, self.config = samples, config
        self.size = min(config.images_per_batch, len(samples))
        self.per_epoch = len(samples) // self.size
        self.steps = self.per_epoch * config.epochs

    def side(self, step: int) -> int:
        """Return the side of the images of a step in pixels.

        `alternate`: the sizes in turn, one for each epoch. `random`: drawn evenly between the least and the largest.
        """
        sizes = self.config.sizes
        if self.config.size_rule == "alternate":
            return sizes[step // self.per_epoch % len(sizes)]
        generator = np.random.default_rng([self.config.seed, 5, step])
        return int(generator.integers(min(sizes), max(sizes), endpoint=True))

    def images(self, step: int) -> list[int]:
        """Return the sample numbers of one step."""
        epoch, batch = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.config.seed, 4, epoch]).permutation(len(self.samples))
        return [int(i) for i in order[batch * self.size :][: self.size]]

    def iterate(self, start: int) -> Iterator[ImageBatch]:
        """Yield the batches from step `start` to the end of the run."""
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[ImageBatch]] = deque()
            try:
                for step in range(start, self.steps):
                    ahead.append(pool.submit(self.batch, step))
                    if len(ahead) > _AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> ImageBatch:
        """Read and cut the images of one step. Raises ImageError for a file that is not a whole image."""
        side, samples = self.side(step), [self.samples[i] for i in self.images(step)]
        generator = np.random.default_rng([self.config.seed, 6, step])
        pixels = [draw_part(read_image(sample.path), side, self.config.flip, generator) for sample in samples]
        return ImageBatch(torch.stack(pixels), torch.stack([sample.labels for sample in samples]))


def draw_part(image: Tensor, side: int, flip: bool, generator: np.random.Generator) -> Tensor:
    """Draw a square of `side` pixels from a (3, H, W) uint8 image whose shorter side is made 8/7 of it, maybe mirrored.

    A side of 180 and one of 224 show the same content at different sizes (He et al. 2015, section 2.3). Returns
    (3, side, side) uint8.
    """
    shorter = round(side * _LARGER)
    size = (int(image.shape[1]), int(image.shape[2]))
    resized = resize_image(image, scaled_size(size, shorter, shorter * max(size)))
    top, left = (int(generator.integers(0, length - side, endpoint=True)) for length in resized.shape[1:])
    part = resized[:, top : top + side, left : left + side]
    return part.flip(2) if flip and generator.random() < 0.5 else part


def train_images(
    run: ImageRun, batches: ImageBatches, report: Callable[[ImageMetrics], None], save_every: float = 60.0
) -> Path:
    """Train a run to its end and return the path of the finished model.

    report: is given the newest metrics every few steps. save_every: seconds after which the state is written again.
    """
    if run.finished:
        return run.finished
    run.continue_from_disk()
    run.model.train()
    recent: list[tuple[float, float]] = []
    saved = time.monotonic()
    for batch in batches.iterate(run.step):
        recent.append(_learn(run, batch, batches.steps))
        last = run.step == batches.steps
        if run.step % _METRIC_STEPS == 0 or last:
            loss, right = (float(np.mean(column)) for column in zip(*recent, strict=True))
            epoch, rate = run.step / batches.per_epoch, learning_rate(run.rates, run.step - 1, batches.steps)
            run.history.append(ImageMetrics(round(epoch, 4), run.step, batches.side(run.step - 1), loss, right, rate))
            recent = []
            with run.stoppable():
                report(run.history[-1])
            if time.monotonic() - saved > save_every or last:
                run.save_state()
                saved = time.monotonic()
    return run.finish()


def _learn(run: ImageRun, batch: ImageBatch, steps: int) -> tuple[float, float]:
    """Take one step; return the loss and the part of labels that are told right."""
    model, config = run.model, run.model.config
    torch.manual_seed(config.seed * 1_000_003 + run.step)  # dropout draws from torch's own generator
    device = model.trunk.mean.device
    size = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
    logits = model(model.prepare(batch.pixels.to(device)), size)
    labels = batch.labels.to(device)
    loss = classification_loss(logits, labels, model.multi_label)
    right = told_right(logits.detach(), labels, model.multi_label)
    run.descend(loss, steps)
    return float(loss.detach()), right
