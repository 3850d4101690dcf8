"""Keep the reduced maps of a finished detector on disk, at every scale, for what learns behind them.

The layers before the pyramid stay as they are then: fully connected layers, support vector machines and regressors read
maps of a few channels, which take a seventh of the memory of what the trunk gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .datasets import Sample
from .features import FeatureStore, values_key
from .images import read_image
from .preparation import ProposalCache
from .scales import FeaturePyramid
from .sppnet import SPPNet
from .structures import FeatureMap


class ReducedMaps:
    """Compute the reduced map of an image at one scale, and the standardised one if regions are described by its means.

    net: whose trunk, engine and reduction compute, as they are now. shorter: the shorter side of the resized image in
    pixels. settings: names everything that shapes the maps, the values of the reduction included; keys the cache.
    """

    settings: Mapping[str, Any]

    def __init__(self, net: SPPNet, shorter: int):
        self.extractor = net.extractor.at(shorter, net.aspect)
        self.reduction, self.coarse = net.reduction, net.config.region_mean
        self.settings = {
            **self.extractor.settings,
            "reduction": values_key(net.reduction.state_dict()),
            "engine": net.engine.name,
            "coarse": self.coarse,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[FeatureMap, ...]:
        """Map a (3, H, W) uint8 image to its reduced map, and to the standardised one of the last tap."""
        fine, coarse = self.reduction(self.extractor(image))
        return (fine, coarse) if self.coarse else (fine,)


@dataclass(frozen=True, slots=True, eq=False)
class ReducedCaches:
    """Give the feature pyramid and the proposals of a sample, from disk if they are there, else computed and kept.

    stores: one per scale, in the order of the detector's scales. Maps are kept in float16.
    """

    proposals: ProposalCache
    stores: tuple[FeatureStore, ...]

    @classmethod
    def of(cls, net: SPPNet, proposals: ProposalCache, folder: Path) -> ReducedCaches:
        """Return the caches of a detector as it is now: they depend on the values of its reduction."""
        scales = net.config.scales or (net.config.shorter,)
        return cls(proposals, tuple(FeatureStore(folder, ReducedMaps(net, scale)) for scale in scales))

    def complete(self, sample: Sample) -> bool:
        """Say whether all files of a sample exist; a damaged file shows when it is read, and is made again."""
        paths = [store.path(sample.image_id) for store in self.stores]
        return all(path.exists() for path in [*paths, self.proposals.path(sample.image_id)])

    def fill(self, sample: Sample) -> None:
        """Compute and keep what is missing. Raises ImageError for a file that is not a whole image."""
        image = read_image(sample.path)
        self.proposals.get(sample.image_id, image, sample.path)
        for store in self.stores:
            if not store.path(sample.image_id).exists():
                store.compute(sample.image_id, image)

    def read(self, sample: Sample) -> tuple[FeaturePyramid, Tensor]:
        """Return a sample's maps, float32, and its proposal boxes (R, 4) float32, best first."""
        levels = [store.load(sample.image_id) for store in self.stores]
        proposals = self.proposals.load(sample.image_id)
        if proposals is None or any(maps is None for maps in levels):
            self._mend(sample, levels)
            levels = [store.load(sample.image_id) for store in self.stores]
            proposals = self.proposals.get(sample.image_id, read_image(sample.path), sample.path)
        kept = [tuple(m.with_values(m.values.float()) for m in maps) for maps in levels if maps is not None]
        if len(kept) < len(levels):
            raise OSError(f"{self.stores[0].path(sample.image_id)}: expected the maps just written, got none")
        coarse = tuple(maps[1] for maps in kept if len(maps) > 1)
        return FeaturePyramid(tuple(maps[0] for maps in kept), coarse, sample.truth.size), proposals.boxes

    def _mend(self, sample: Sample, levels: list[tuple[FeatureMap, ...] | None]) -> None:
        """Compute the maps of the scales that could not be read."""
        image = read_image(sample.path)
        for store, maps in zip(self.stores, levels, strict=True):
            if maps is None:
                store.compute(sample.image_id, image)
