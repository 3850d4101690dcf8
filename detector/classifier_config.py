"""Hold every setting of an image classifier and of its training, read from YAML and `key=value` overrides."""

from __future__ import annotations

import dataclasses
from typing import Any

from .config import settings_from_dict

HEADS = ("svm", "fc")
POOLINGS = ("max", "average")
SIZE_RULES = ("alternate", "random")
LEARNED = ("head", "all")
_POSITIVE = ("side", "epochs", "images_per_batch", "C", "positive_weight", "learning_rate")


@dataclasses.dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """Name every setting of a classifier; a checkpoint carries its own copy.

    trunk, layer: the convolutional layers, and which of their outputs is pooled; empty means the trunk's last one.
    pretrained: start from the trunk's published ImageNet weights; else from random ones that depend on the seed alone.
    weights: a safetensors file to take the trunk's weights from instead; loading the classifier needs it again, at this
    path (`detector.backbones.build_trunk` says what it must hold).
    levels, pooling: of the pyramid over the view, `max` or `average`; (4, 2, 1) has 21 bins, (6, 3, 2, 1) 50.
    normalise: scale every vector to length 1 (L2) before the head.
    head: `svm`, a linear support vector machine for each class, or `fc`, fully connected layers: one, or with `hidden`
    units another one before it. dropout: of what the last layer reads, while it learns.
    views, side: what is looked at of an image (`detector.views`), and the pixels of a view's side.
    projection: how a view becomes whole cells (`detector.boxes.project`).
    C, positive_weight: of the support vector machines (`detector.svm`).
    learn: `head` alone, from cached maps, or `all` layers, from the images.
    sizes: sides of the images that all layers learn from, in pixels. size_rule: `alternate` takes them in turn, one for
    each epoch (He et al. 2015, section 2.3), `random` draws a side between the least and the largest for every batch.
    flip: learn from mirrored images, too. epochs, images_per_batch, learning_rate, weight_decay: of `fc` and of `all`.
    average: decay of the running average of the weights, which is what is kept; 0 keeps the last weights.
    holdout: part of the images that is not learned from; the finished classifier is measured on it.
    seed: of everything random.
    """

    trunk: str = "efficientnet_lite0"
    layer: str = ""
    pretrained: bool = True
    levels: tuple[int, ...] = (4, 2, 1)
    pooling: str = "max"
    normalise: bool = True
    head: str = "svm"
    hidden: int = 0
    dropout: float = 0.0
    views: str = "full"
    side: int = 384
    projection: str = "nearest"
    C: float = 1.0
    positive_weight: float = 1.0
    learn: str = "head"
    sizes: tuple[int, ...] = (180, 224)
    size_rule: str = "alternate"
    flip: bool = True
    epochs: int = 30
    images_per_batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    average: float = 0.99
    holdout: float = 0.0
    weights: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("head", HEADS),
            ("pooling", POOLINGS),
            ("size_rule", SIZE_RULES),
            ("learn", LEARNED),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"expected a {name} among {', '.join(known)}, got {getattr(self, name)!r}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        if min(self.levels) < 1 or min(self.sizes) < 1:
            raise ValueError(f"expected levels and sizes of at least 1, got {self.levels} and {self.sizes}")
        parts = self.dropout, self.average, self.holdout
        if not all(0 <= part < 1 for part in parts) or min(self.hidden, self.weight_decay, self.seed) < 0:
            raise ValueError(
                "expected dropout, average and holdout in [0, 1), and hidden, weight_decay and seed of at least 0"
            )
        if self.learn == "all" and self.head == "svm":
            raise ValueError("expected head=fc to learn all layers: a support vector machine reads fixed vectors")

    @property
    def optimizer(self) -> str:
        """Return the name of the optimiser (`detector.optimizers`); there is no choice."""
        return "adamw"

    @property
    def rate_drops(self) -> tuple[float, ...]:
        """Return no drops of the learning rate: it warms up and falls as half a cosine."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}


def classifier_config_from_dict(values: dict[str, Any], source: str) -> ClassifierConfig:
    """Build a ClassifierConfig from plain values. source: where they come from, for the message of a ValueError."""
    return settings_from_dict(values, source, ClassifierConfig)
