"""Ask a trunk's own ImageNet classifier what regions of a photo show, and keep the answers.

A classifier that reads the mean of its last map hardly tells where in a photo a thing is: every cell there has seen
most of the photo. So each region is warped to a crop, as R-CNN does, and the whole network looks at nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .backbones import Trunk
from .config import Config
from .datasets import Sample
from .engines import Engine
from .features import settings_key
from .files import replacing
from .fusion import fuse
from .images import read_image
from .preparation import Caches
from .rcnn import BATCH
from .structures import FeatureMap
from .warping import CONTEXT, SIDE, Warper

FORMAT = 1
CLASSES = 1000


class Teacher:
    """Classify crops of a photo by the whole network whose first layers are a trunk.

    trunk: with ImageNet's weights. engine: computes where it fuses layers; others leave the network as it is.
    Raises ValueError for a trunk with random weights, or without a classifier of 1,000 classes.
    """

    def __init__(self, trunk: Trunk, engine: Engine):
        self.trunk, self.engine = trunk, engine
        self.model: nn.Module = trunk.model
        if engine.fused:
            self.model = fuse(trunk.model, engine.dtype == torch.float32).to(engine.dtype)
        self.normalisation = trunk.mean.flatten().cpu(), trunk.std.flatten().cpu()
        crops = torch.zeros(1, 3, SIDE, SIDE)
        if trunk.origin.startswith("random") or self._classify(crops).shape != (1, CLASSES):
            raise ValueError(
                f"expected a trunk with ImageNet's weights and its classifier of {CLASSES:,} classes, got {trunk.name}"
                + (f" ({trunk.origin})" if trunk.origin else "")
            )

    @torch.inference_mode()
    def logits(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return what the classifier says of boxes of an image: (R, 1000) float32, on the CPU.

        image: (3, H, W) uint8 on the CPU. boxes: (R, 4) pixels, each warped to a crop with its surroundings
        (`warping.Warper`). Raises ValueError for an empty box.
        """
        warper, crops = Warper(image, self.normalisation), None
        parts = [torch.zeros(0, CLASSES)]
        for part in boxes.split(BATCH) if len(boxes) else ():
            crops = warper(part, crops)
            parts.append(self._classify(crops))
        return torch.cat(parts)

    @torch.inference_mode()
    def _classify(self, crops: Tensor) -> Tensor:
        dtype = self.engine.dtype if self.engine.fused else torch.float32
        found: Tensor = self.model(crops.to(self.trunk.mean.device, dtype, memory_format=torch.channels_last))
        return found.float().cpu()


@dataclass(frozen=True, slots=True, eq=False)
class AnswerCaches:
    """Give the maps of a photo and what the teacher says of some of its regions, from disk if they are there.

    caches: of proposals and maps. teacher: is asked once per photo, about `crops_per_image` regions of the config,
    which its seed draws. folder: where KEY/IMAGE.safetensors lie.
    """

    caches: Caches
    teacher: Teacher
    config: Config
    folder: Path

    def path(self, sample: Sample) -> Path:
        """Return the file that holds the answers; its folder stands for all that shapes them but the photo."""
        trunk, config = self.teacher.trunk, self.config
        key = {
            "format": FORMAT,
            "trunk": trunk.name,
            "origin": trunk.origin,
            "engine": self.teacher.engine.name,
            "crops": [SIDE, CONTEXT],
            "proposals": self.caches.proposals.path("").parent.name,
            "sample": [config.max_proposals, config.crops_per_image, config.seed],
        }
        return self.folder / settings_key(key) / f"{sample.image_id}.safetensors"

    def complete(self, sample: Sample) -> bool:
        """Say whether all files of a photo exist; a damaged file shows when it is read, and is made again."""
        return self.caches.complete(sample) and self.path(sample).exists()

    def fill(self, sample: Sample) -> None:
        """Compute and keep what is missing. Raises ImageError for a file that is not a whole image."""
        self.caches.fill(sample)
        if not self.path(sample).exists():
            self._ask(sample)

    def read(self, sample: Sample) -> tuple[tuple[FeatureMap, ...], Tensor, Tensor]:
        """Return a photo's maps, one per tap, the boxes (R, 4) asked about, the whole photo last, and (R, 1000) logits.

        The boxes are pixels of the photo; all are float32.
        """
        answers = self._load(sample)
        if answers is None:
            self._ask(sample)
            answers = self._load(sample)
        if answers is None:
            raise OSError(f"{self.path(sample)}: expected the answers that were just written, got something else")
        return self.caches.read(sample)[0], *answers

    def _ask(self, sample: Sample) -> None:
        image = read_image(sample.path)
        proposals = self.caches.proposals.get(sample.image_id, image, sample.path)
        boxes = self._choose(sample, proposals.boxes[: self.config.max_proposals])
        tensors = {"boxes": boxes, "logits": self.teacher.logits(image, boxes).half()}
        with replacing(self.path(sample)) as beside:
            save_file(tensors, beside)

    def _choose(self, sample: Sample, boxes: Tensor) -> Tensor:
        """Draw boxes, each with a chance in proportion to the root of its area, and add the whole photo.

        Half of all proposals are less than 60 pixels across; a classifier sees little in a crop blown up from there.
        """
        seed = int(settings_key({"seed": self.config.seed, "image": sample.image_id})[:15], 16)
        count = min(self.config.crops_per_image - 1, len(boxes))
        height, width = sample.truth.size
        whole = torch.tensor([[0.0, 0.0, width, height]])
        if count == 0:
            return whole
        chances = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        chosen = torch.multinomial(chances, count, generator=torch.Generator().manual_seed(seed))
        return torch.cat([boxes[chosen], whole])

    def _load(self, sample: Sample) -> tuple[Tensor, Tensor] | None:
        try:
            with safe_open(self.path(sample), framework="pt") as file:
                boxes, logits = file.get_tensor("boxes"), file.get_tensor("logits").float()
        except (OSError, SafetensorError):
            return None
        fits = boxes.shape[1:] == (4,) and logits.shape == (len(boxes), CLASSES)
        return (boxes, logits) if fits else None
