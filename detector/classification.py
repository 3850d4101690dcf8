"""Classify images of any size the way of SPP-net: trunk, spatial pyramid over the whole map, then a classifier.

He, Zhang, Ren, Sun: Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, sections 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Trunk, build_trunk
from .boxes import PROJECTIONS, project
from .classifier_config import ClassifierConfig
from .engines import choose_engine, trunk_maps
from .features import lay_out, pad_to_multiple, values_key
from .pooling import spatial_pyramid_pool
from .pyramid import SpatialPyramidPool, by_bins
from .structures import FeatureMap, Seconds
from .timing import measure
from .views import Look, plan_views, show_views

_BATCH = 16  # images of one size that the trunk sees at once


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """Hold what a classifier says of one image.

    scores: (K,) float32 in [0, 1]; they sum to 1 unless an image may show several classes (`multi_label`).
    """

    scores: Tensor
    class_names: tuple[str, ...]
    multi_label: bool

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes and their scores, best first; equal scores in the order of the classes."""
        order = self.scores.argsort(descending=True, stable=True)[:count].tolist()
        return [(self.class_names[label], float(self.scores[label])) for label in order]

    def to_dicts(self, count: int = 5) -> list[dict[str, Any]]:
        """Return `[{"label": name, "score": float}, ...]`, best first, ready for JSON."""
        return [{"label": name, "score": round(score, 5)} for name, score in self.top(count)]


class Classifier(nn.Module):
    """Name what an image of any size shows.

    config: every setting. class_names: the K classes. multi_label: whether an image may show several of them, or none.
    trunk: built from the config if it is not given. The stages are resize, conv, pool and fc.
    """

    slope: Tensor
    shift: Tensor

    def __init__(
        self, config: ClassifierConfig, class_names: Sequence[str], multi_label: bool, trunk: Trunk | None = None
    ):
        super().__init__()
        plan_views((1, 1), config.views, config.side)  # refuses unknown views
        if config.projection not in PROJECTIONS:
            raise ValueError(f"expected a projection among {', '.join(PROJECTIONS)}, got {config.projection!r}")
        self.config, self.class_names, self.multi_label = config, tuple(class_names), multi_label
        self.trunk = trunk or _trunk(config)
        self.trunk.taps = self.trunk.taps[-1:]
        self.trunk.to(memory_format=torch.channels_last)
        self.tap = self.trunk.taps[0]
        self.pool = SpatialPyramidPool(config.levels, config.pooling)
        self.head = _head(config, self.length, len(class_names))
        if config.learn == "all":
            self.trunk.requires_grad_used()
        # Of support vector machines: what makes probabilities of margins (Platt 1999).
        self.register_buffer("slope", torch.ones(len(class_names)))
        self.register_buffer("shift", torch.zeros(len(class_names)))
        self.use_engine("eager")
        self.eval()

    @property
    def length(self) -> int:
        """Return D, the length of the vector that the pyramid makes of a view, whatever its size."""
        return self.tap.channels * sum(n * n for n in self.config.levels)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name every setting, as JSON types."""
        return self.config.to_dict()

    def use_engine(self, name: str) -> None:
        """Compute the trunk by an engine of `detector.engines` from now on, with the layers as they are now.

        Raises ValueError for an unknown engine or one that cannot run here.
        """
        self.engine = choose_engine(name, self.trunk.mean.device)
        self._maps = trunk_maps(self.trunk, self.engine)
        self._table = self.trunk.normalised.to(self.engine.reads)

    @torch.inference_mode()
    def predict(
        self, image: Tensor, views: str | None = None, side: int | None = None, seconds: Seconds | None = None
    ) -> Classification:
        """Classify a (3, H, W) uint8 image: the mean of what is said of its views.

        views, side: what is looked at (`detector.views`); the default is what the config names.
        seconds: collects the time of the stages.
        """
        size = (int(image.shape[1]), int(image.shape[2]))
        looks = plan_views(size, views or self.config.views, side or self.config.side)
        vectors = self.pool_views(self.feature_maps(image, looks, seconds), looks, seconds)
        with measure(seconds, "fc", vectors.device):
            if self.config.head == "svm":  # it is linear: the mean of the views has the mean margins
                vectors = vectors.mean(dim=0, keepdim=True)
            return Classification(self.probabilities(self.head(vectors)).cpu(), self.class_names, self.multi_label)

    @torch.inference_mode()
    def feature_maps(self, image: Tensor, looks: Sequence[Look], seconds: Seconds | None = None) -> list[FeatureMap]:
        """Run the trunk once for every look at a (3, H, W) uint8 image; pictures of one size go through together.

        The map of a look has the scale 1: its pixels are those of the picture shown.
        """
        with measure(seconds, "resize"):
            pictures = [self.read(picture) for picture in show_views(image, looks)]
        maps: list[Tensor] = []
        with measure(seconds, "conv", self.trunk.mean.device):
            start = 0
            while start < len(pictures):
                same = [p for p in pictures[start : start + _BATCH] if p.shape == pictures[start].shape]
                batch = torch.cat(same).contiguous(memory_format=torch.channels_last)
                maps += self._maps(batch)[0].unbind(0)
                start += len(same)
        return [FeatureMap(values, self.tap.stride, self.tap.offset, (1.0, 1.0)) for values in maps]

    def read(self, picture: Tensor) -> Tensor:
        """Normalise a (3, h, w) uint8 picture, and pad it at the right and bottom to whole strides: (1, 3, h', w')."""
        device = self.trunk.mean.device
        if device.type == "cpu":
            return lay_out(picture, self._table, self.tap.stride)
        return self.prepare(picture[None].to(device))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalise (N, 3, h, w) uint8 pictures of one size and pad them to whole strides, to learn from."""
        padded = pad_to_multiple(self.trunk.normalise(pixels), self.tap.stride)
        return padded.contiguous(memory_format=torch.channels_last)

    def pool_views(self, maps: Sequence[FeatureMap], looks: Sequence[Look], seconds: Seconds | None = None) -> Tensor:
        """Pool the views of every look from its map: (V, D) float32, what the head reads."""
        with measure(seconds, "pool", self.trunk.mean.device):
            parts = [self._pool(feature_map, look) for feature_map, look in zip(maps, looks, strict=True)]
            vectors = torch.cat(parts).flatten(1)
            return F.normalize(vectors) if self.config.normalise else vectors

    def _pool(self, feature_map: FeatureMap, look: Look) -> Tensor:
        """Pool the views of one look: (V, bins, C)."""
        levels = self.config.levels
        windows = project(look.boxes, feature_map, self.config.projection)
        windows, rows = torch.unique(windows, dim=0, return_inverse=True)  # mirrored views pool the same cells
        if self.config.pooling == "max" and all(levels[0] % n == 0 for n in levels):
            pooled = spatial_pyramid_pool(feature_map.values, windows, levels)
        else:
            cells = [feature_map.values[:, y1:y2, x1:x2] for x1, y1, x2, y2 in windows.tolist()]
            pooled = by_bins(torch.stack([self.pool(c) for c in cells]), levels)
        pooled, mirrored = pooled[rows], look.mirrored.to(pooled.device)
        if mirrored.any():
            pooled[mirrored] = pooled[mirrored][:, mirrored_bins(levels).to(pooled.device)]
        return pooled

    def forward(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Map normalised, padded (N, 3, H, W) pictures of one size to logits (N, K), to learn all layers.

        size: (height, width) of the pictures before they were padded.
        """
        values = self.trunk.maps(pixels)[0]
        whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        geometry = FeatureMap(values[0], self.tap.stride, self.tap.offset, (1.0, 1.0))
        x1, y1, x2, y2 = project(whole, geometry, self.config.projection)[0].tolist()
        vectors = by_bins(self.pool(values[:, :, y1:y2, x1:x2]), self.config.levels).flatten(1)
        logits: Tensor = self.head(F.normalize(vectors) if self.config.normalise else vectors)
        return logits

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn what the head says of V views, (V, K), into the scores of one image, (K,) in [0, 1]."""
        if self.config.head == "svm":
            scores = torch.sigmoid(self.slope * outputs.mean(dim=0) + self.shift)
            return scores if self.multi_label else scores / scores.sum().clamp(min=1e-12)
        return (torch.sigmoid(outputs) if self.multi_label else outputs.softmax(dim=1)).mean(dim=0)

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name; the trunk's used layers are among them if all layers learn."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the values of the learned layers."""
        return values_key(self.learned_state())

    def learned_state(self) -> dict[str, Tensor]:
        """Return all that training gives the classifier, by name."""
        learned = {name for name, value in self.named_parameters() if value.requires_grad} | {"slope", "shift"}
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if name in learned}


class _Scale(nn.Module):
    """Multiply by a number: vectors of length 1 become such whose entries are near 1, which layers learn from best."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _trunk(config: ClassifierConfig) -> Trunk:
    """Build the trunk, from published weights, random ones that the seed alone gives, or a file's.

    A trunk that does not learn is not saved: the same one is built again when the classifier is loaded.
    """
    layers = (config.layer,) if config.layer else ()
    return build_trunk(config.trunk, layers, config.pretrained, config.seed, config.weights)


def _head(config: ClassifierConfig, length: int, classes: int) -> nn.Module:
    """Make the layers behind the pyramid: (V, D) to (V, K)."""
    if config.head == "svm":
        machine = nn.Linear(length, classes)
        nn.init.zeros_(machine.weight)
        nn.init.zeros_(machine.bias)
        return machine
    layers: list[nn.Module] = [_Scale(math.sqrt(length))] if config.normalise else []
    width = length
    if config.hidden:
        layers += [nn.Linear(length, config.hidden), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")  # type: ignore[arg-type]
        width = config.hidden
    last = nn.Linear(width, classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.Dropout(config.dropout), last)


def mirrored_bins(levels: Sequence[int]) -> Tensor:
    """Return the order of a pyramid's bins that pooling the mirrored map would give: (bins,) int64.

    Exact, since floor(i w / n) = w - ceil((n - i) w / n): a window's mirrored bins are the bins of the mirrored one.
    """
    parts, start = [], 0
    for n in levels:
        parts.append((start + torch.arange(n * n)).view(n, n).flip(1).flatten())
        start += n * n
    return torch.cat(parts)


def classification_loss(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """Return the mean cross entropy of (N, K) logits: of one class, or of each by itself if images may show several.

    labels: (N, K) int8, 1 shows the class, -1 does not, 0 is left out.
    """
    if not multi_label:
        return F.cross_entropy(logits, labels.argmax(dim=1))
    known = (labels != 0).float()
    losses = F.binary_cross_entropy_with_logits(logits, (labels > 0).float(), known, reduction="sum")
    return losses / known.sum().clamp(min=1)


def told_right(logits: Tensor, labels: Tensor, multi_label: bool) -> float:
    """Return the part of images whose best class is right, or, of several, one of theirs."""
    best = logits.argmax(dim=1, keepdim=True)
    return float((labels.gather(1, best) > 0).float().mean())
