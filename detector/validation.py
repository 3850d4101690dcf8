"""Hold out a part of the training images and measure a detector on it, so that no choice needs the test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from proposals.structures import Proposals

from .datasets import Sample
from .evaluation import Result, evaluate
from .preparation import Caches
from .sppnet import SPPNet


def hold_out(samples: Sequence[Sample], part: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those to learn from and those to measure on, `part` of them, drawn by the seed."""
    order = np.random.default_rng([seed, 3]).permutation(len(samples))
    count = round(part * len(samples))
    chosen = {int(i) for i in order[:count]}
    learned = [sample for i, sample in enumerate(samples) if i not in chosen]
    return learned, [samples[i] for i in sorted(chosen)]


@torch.inference_mode()
def measure_held_out(
    model: SPPNet, samples: Sequence[Sample], caches: Caches, report: Callable[[int], None]
) -> dict[str, Result]:
    """Detect from cached maps and measure `voc07` and `voc10`.

    report: is given the number of images finished since it was last called.
    """
    model.eval()
    found = []
    for sample in samples:
        maps, boxes = caches.read(sample)
        device = model.trunk.mean.device
        moved = [m.with_values(m.values.float().to(device)) for m in maps]
        found.append(model.detect(model.reduction(moved), Proposals(boxes), sample.truth.size))
        report(1)
    return evaluate(found, [sample.truth for sample in samples], model.class_names, ["voc07", "voc10"])
