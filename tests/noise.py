"""Give tests photos of noise with two objects each, and as many proposals around them as a mini-batch wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from detector.config import Config, load_config
from detector.datasets import Sample
from detector.presets import preset
from detector.reduced import ReducedCaches
from detector.structures import GroundTruth
from proposals.structures import Proposals
from tests.toy import small_model, tiny_trunk

HEIGHT, WIDTH = 90, 120
SCALES = (64, 96, 160)
TINY = ("hidden=16", "channels=8", "cascade=0", "shorter=64", "longest=256")


@dataclass(frozen=True, slots=True, eq=False)
class GivenProposals:
    """Hold proposals by image, as a cache on disk would."""

    boxes: Mapping[str, Tensor]
    file: Path

    def path(self, image_id: str) -> Path:
        """Return a file that exists."""
        return self.file

    def load(self, image_id: str) -> Proposals:
        """Return the proposals of an image."""
        return Proposals(self.boxes[image_id])

    def get(self, image_id: str, image: Tensor, path: Path | None = None) -> Proposals:
        """Return the proposals of an image."""
        return self.load(image_id)


def photos(folder: Path, count: int = 4, jitter: float = 0.4) -> tuple[tuple[Sample, ...], GivenProposals]:
    """Write photos of noise; return them, and for each 300 boxes around its two objects and 200 elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    samples, boxes = [], {}
    for n in range(count):
        path = folder / f"{n}.png"
        cv2.imwrite(str(path), cv2.resize(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8), (WIDTH, HEIGHT)))
        objects = torch.tensor([[8.0 + n, 10.0, 52.0, 66.0], [60.0, 20.0 + n, 110.0, 80.0]])
        truth = GroundTruth(objects, torch.tensor([n % 3, (n + 1) % 3]), torch.zeros(2).bool(), (HEIGHT, WIDTH))
        samples.append(Sample(str(n), path, truth))
        near = objects.repeat(150, 1) + 40 * jitter * torch.from_numpy(draw.standard_normal((300, 4))).float()
        far = torch.from_numpy(draw.uniform(0, 1, (200, 4))).float() * torch.tensor([WIDTH, HEIGHT] * 2)
        both = torch.cat([near, far]).unflatten(1, (2, 2)).sort(dim=1).values.flatten(1)
        both = both.maximum(torch.zeros(4)).minimum(torch.tensor([WIDTH, HEIGHT] * 2))
        boxes[str(n)] = both[(both[:, 2:] - both[:, :2]).min(dim=1).values >= 4]
    return tuple(samples), GivenProposals(boxes, samples[0].path)


def settings(name: str, *overrides: str) -> Config:
    """Return the settings of a preset for tiny layers, at three scales."""
    return load_config(None, [*TINY, f"scales={list(SCALES)}", *overrides], preset(name))


def reduced(folder: Path, config: Config, **kept: Any) -> tuple[tuple[Sample, ...], ReducedCaches]:
    """Return photos of noise and filled caches of their maps, of a network whose layers are random."""
    samples, proposals = photos(folder / "photos", **kept)
    caches = ReducedCaches.of(small_model(config, trunk=tiny_trunk(2)), proposals, folder / "maps")
    for sample in samples:
        caches.fill(sample)
    return samples, caches
