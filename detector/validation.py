"""Hold out a part of the training images and measure a detector on it, so that no choice needs the test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from proposals.structures import Proposals

from .datasets import Sample
from .evaluation import Result, evaluate
from .images import read_image
from .preparation import Caches, ProposalCache
from .reduced import ReducedCaches
from .regions import RegionDetector
from .sppnet import SPPNet

Item = TypeVar("Item")


def hold_out(samples: Sequence[Item], part: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split samples into those to learn from and those to measure on, `part` of them, drawn by the seed."""
    order = np.random.default_rng([seed, 3]).permutation(len(samples))
    count = round(part * len(samples))
    chosen = {int(i) for i in order[:count]}
    learned = [sample for i, sample in enumerate(samples) if i not in chosen]
    return learned, [samples[i] for i in sorted(chosen)]


@torch.inference_mode()
def measure_held_out(
    model: RegionDetector,
    samples: Sequence[Sample],
    caches: Caches | ReducedCaches | ProposalCache,
    report: Callable[[int], None],
) -> dict[str, Result]:
    """Detect and measure `voc07` and `voc10`: from cached maps if there are, else from the images and cached proposals.

    report: is given the number of images finished since it was last called.
    """
    model.eval()
    found = []
    for sample in samples:
        if isinstance(model, SPPNet) and isinstance(caches, Caches):
            maps, boxes = caches.read(sample)
            moved = [m.with_values(m.values.float()).to(model.trunk.mean.device) for m in maps]
            found.append(model.detect(model.join([moved], sample.truth.size), Proposals(boxes)))
        elif isinstance(model, SPPNet) and isinstance(caches, ReducedCaches):
            pyramid, boxes = caches.read(sample)
            found.append(model.detect(pyramid.to(model.trunk.mean.device), Proposals(boxes)))
        else:
            image = read_image(sample.path)
            store = caches.proposals if isinstance(caches, Caches | ReducedCaches) else caches
            seen = model.predict(image, store.get(sample.image_id, image, sample.path))
            found.append(replace(seen, image=None))
        report(1)
    return evaluate(found, [sample.truth for sample in samples], model.class_names, ["voc07", "voc10"])
