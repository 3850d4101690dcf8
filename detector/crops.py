"""Keep what R-CNN learns from: the maps of a seeded sample of every photo's regions, each warped to a crop.

SPP-net keeps one set of maps per photo and draws regions from it anew at every step. R-CNN has maps for each region, so
a sample of them is chosen once (`crops_per_image`), half of it mirrored, and steps draw from that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .batches import RegionBatches, Regions
from .config import Config
from .datasets import Sample
from .features import settings_key
from .files import replacing
from .images import read_image
from .preparation import ProposalCache
from .rcnn import RCNN
from .sampling import Candidates, candidates, sample
from .structures import FeatureMap, GroundTruth

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class CropCaches:
    """Give the sampled regions of a photo with the maps of their crops, from disk if they are there.

    proposals: where boxes come from. model: whose trunk and settings count. folder: where KEY/IMAGE.safetensors lie.
    """

    proposals: ProposalCache
    model: RCNN
    folder: Path

    def path(self, sample: Sample) -> Path:
        """Return the file that holds the crops of a photo; its folder stands for all that shapes them but the photo."""
        config, trunk = self.model.config, self.model.trunk
        key = {
            "format": FORMAT,
            "trunk": trunk.name,
            "layers": [tap.layer for tap in trunk.taps],
            "proposals": self.proposals.path("").parent.name,
            "classes": self.model.class_names,
            "sample": [
                config.max_proposals,
                config.crops_per_image,
                config.positive_fraction,
                config.seed,
                config.flip,
            ],
            "overlaps": [config.positive_iou, *config.negative_iou],
            **({"origin": trunk.origin} if trunk.origin else {}),
        }
        return self.folder / settings_key(key) / f"{sample.image_id}.safetensors"

    def complete(self, sample: Sample) -> bool:
        """Say whether the file of a photo exists; a damaged file shows when it is read, and is made again."""
        return self.path(sample).exists()

    def fill(self, sample: Sample) -> None:
        """Compute and keep the crops' maps. Raises ImageError for a file that is not a whole image."""
        image = read_image(sample.path)
        boxes = self.proposals.get(sample.image_id, image, sample.path).boxes[: self.model.config.max_proposals]
        rows, mirrored = self._choose(sample, boxes)
        warper = self.model.warper(image)
        crops = warper(rows.boxes) if len(rows.boxes) else torch.zeros(0, 3, warper.side, warper.side)
        crops[mirrored] = crops[mirrored].flip(3)
        maps = self.model.crop_maps(crops.contiguous(memory_format=torch.channels_last))
        tensors = {str(i): m.values.permute(1, 2, 0).half().contiguous().cpu() for i, m in enumerate(maps)}
        tensors |= {"boxes": rows.boxes, "labels": rows.labels, "targets": rows.targets}
        with replacing(self.path(sample)) as beside:
            save_file(tensors, beside, metadata={"truth": _digest(sample.truth)})

    def _choose(self, item: Sample, boxes: Tensor) -> tuple[Candidates, Tensor]:
        """Sample a photo's regions; return them, and which of them are mirrored."""
        config, background = self.model.config, len(self.model.class_names)
        seed = int(settings_key({"seed": config.seed, "image": item.image_id})[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        rows = candidates(boxes, item.truth, background, config)
        chosen = sample(rows, config, generator, config.crops_per_image)
        mirrored = torch.rand(len(chosen), generator=generator) < 0.5 if config.flip else torch.zeros(len(chosen)) > 0
        targets = rows.targets[chosen]
        targets[mirrored] *= torch.tensor([-1.0, 1.0, 1.0, 1.0])
        labels = rows.labels[chosen]
        positive = labels < background
        kept = Candidates(rows.boxes[chosen], labels, targets, positive.nonzero()[:, 0], (~positive).nonzero()[:, 0])
        return kept, mirrored

    def read(self, item: Sample) -> tuple[tuple[FeatureMap, ...], Candidates]:
        """Return the maps of a photo's crops, one per tap, below each other (float16), and the regions they show."""
        loaded = self._load(item)
        if loaded is None:
            self.fill(item)
            loaded = self._load(item)
        if loaded is None:
            raise ValueError(f"{self.path(item)}: expected the crops that were just written, got something else")
        return loaded

    def _load(self, item: Sample) -> tuple[tuple[FeatureMap, ...], Candidates] | None:
        try:
            with safe_open(self.path(item), framework="pt") as file:
                if file.metadata()["truth"] != _digest(item.truth):
                    return None
                taps = self.model.trunk.taps
                values = [file.get_tensor(str(i)).permute(2, 0, 1) for i in range(len(taps))]
                boxes, labels, targets = (file.get_tensor(name) for name in ("boxes", "labels", "targets"))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
            return None
        maps = tuple(FeatureMap(v, t.stride, t.offset, (1.0, 1.0)) for v, t in zip(values, taps, strict=True))
        positive = labels < len(self.model.class_names)
        return maps, Candidates(boxes, labels, targets, positive.nonzero()[:, 0], (~positive).nonzero()[:, 0])


def _digest(truth: GroundTruth) -> str:
    """Return digits that stand for the objects of a photo."""
    objects = [truth.boxes.tolist(), truth.labels.tolist(), truth.difficult.tolist()]
    return settings_key({"objects": json.dumps(objects)})


class CropBatches(RegionBatches):
    """Give the batches of a training run of R-CNN: some of the crops that are kept of each photo."""

    def __init__(self, samples: Sequence[Sample], crops: CropCaches, config: Config, background: int):
        super().__init__(samples, config, background)
        self.crops = crops

    def maps(self, item: Sample) -> tuple[FeatureMap, ...]:
        """Return the maps of an image's crops, one per tap, below each other."""
        return self.crops.read(item)[0]

    def draw(self, item: Sample, key: tuple[int, int, int]) -> Regions:
        """Draw some of a photo's crops; key seeds the draw."""
        maps, rows = self.crops.read(item)
        seed = int(np.random.SeedSequence(key[:2]).generate_state(1, np.uint64)[0] >> 1)
        chosen = sample(rows, self.config, torch.Generator().manual_seed(seed))
        parts = []
        for m in maps:
            each = m.values.permute(1, 2, 0).unflatten(0, (max(len(rows.boxes), 1), -1))[chosen].float()
            parts.append(m.with_values(each.flatten(0, 1).permute(2, 0, 1)))
        return Regions(tuple(parts), rows.boxes[chosen], rows.labels[chosen], rows.targets[chosen])
