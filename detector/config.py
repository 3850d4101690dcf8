"""Hold every setting of a detector and of its training, read from YAML and `key=value` overrides.

The defaults are those of the shipped model; a YAML file in configs/ names only what differs from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

Settings = TypeVar("Settings")

DETECTORS = ("sppnet", "rcnn", "svm")
SVM_LAYERS = ("pool5", "fc6", "fc7")
BOX_REGRESSIONS = ("joint", "ridge", "none")
LEARNED = ("all", "fc")
OPTIMIZERS = ("adamw", "sgd")
# Settings in [0, 1].
_PARTS = (
    "holdout", "positive_fraction", "positive_iou", "repeat_below", "dropout", "average", "nms", "vote", "min_score",
    "readable_score",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """Name every setting; a checkpoint carries its own copy.

    detector: `sppnet`, `rcnn`, which shows the trunk every proposal as a crop of its own, or `svm`, the layers of a
    trained sppnet with support vector machines (`detector.machines`).
    svm_layer, C, box_regression: of `svm`: what the machines read, `pool5`, `fc6` or `fc7`, the weight of an error
    beside the size of the weights, and what corrects boxes, `ridge` regressors, the `joint` layer or `none`.
    trunk, layers: the convolutional layers and which of their outputs are used, finest first; no layers named, as for
    every trunk but EfficientNet-Lite, means the trunk's usual ones (`detector.backbones`).
    pretrained: take the trunk's published ImageNet weights; else random ones that depend on the seed alone.
    weights: a safetensors file to take the trunk's weights from instead; loading the detector needs it again, at this
    path (`detector.backbones.build_trunk` says what it must hold).
    shorter, longest: pixels of the resized image's shorter side, and the most its longer side may have.
    scales: shorter sides at which an image is looked at when there are several; empty for `shorter` alone.
    scale_rule: how each region chooses among them: `area` (paper) or `side` (the authors' code), see `detector.scales`.
    projection: how a box becomes whole cells: `nearest`, `inside`, `paper` or `code` (`detector.boxes.project`).
    region_mean: give fc6 the mean of the last layer's map over the region, beside the pyramid.
    channels: of the reduced map that is pooled. levels: of the pyramid, finest first. hidden: units of fc6 and fc7.
    cascade: how many regions of an image, best first by a small classifier that reads the coarse levels only, go
    through fc6 and fc7; 0 for all of them, without such a classifier. A pyramid of one level
    and R-CNN have none.
    proposals, max_proposals: the proposer's name and how many boxes, best first, an image may have.
    holdout: part of the training images that is not learned from; the finished detector is measured on it.
    epochs, images_per_batch, regions_per_image: how long to train, on what at a time.
    crops_per_image: how many regions of a photo R-CNN keeps the maps of, and `--task pretrain` what the trunk's
    classifier says of, to draw regions_per_image from.
    positive_fraction, positive_iou, negative_iou: the sample of regions (paper, section 4.1).
    repeat_below: classes that fewer than this part of the images show are shown more often; 0 for every image once.
    learn: `all` layers behind the trunk, or `fc`, the fully connected ones alone, as in the paper: the reduction stays
    as it is, so that its maps are cached, at every one of `scales`. random_scale: let every region that `fc` learns
    from be looked at on a scale drawn at random instead of the one that `scale_rule` chooses; `all` learn at one scale.
    optimizer: `adamw`, or `sgd` with a momentum of 0.9 (`detector.optimizers`). rate_drops: parts of the run,
    ascending, at which the learning rate falls tenfold; empty for a warm-up and half a cosine.
    flip: show every second image mirrored. dropout: of fc6 and fc7. box_weight: of the box loss beside the class loss.
    average: decay of the running average of the weights, which is what is kept; 0 keeps the last weights.
    rank_prior: the score of proposal r, best first, is divided by 1 + rank_prior * r / 1000.
    nms: IoU above which the lower of two boxes of one class is dropped. vote: IoU from which boxes are averaged
    into the one that is kept, weighted by score; 1 turns it off. min_score, max_detections: what predict returns.
    readable_score: the score from which `sppnet detect` draws a box.
    """

    detector: str = "sppnet"
    trunk: str = "efficientnet_lite0"
    layers: tuple[str, ...] = ("blocks.4", "blocks.6")
    pretrained: bool = True
    weights: str = ""
    shorter: int = 576
    longest: int = 1152
    scales: tuple[int, ...] = ()
    scale_rule: str = "area"
    projection: str = "nearest"
    region_mean: bool = False
    channels: int = 64
    levels: tuple[int, ...] = (6, 3, 2, 1)
    hidden: int = 1024
    svm_layer: str = "fc7"
    C: float = 0.001
    box_regression: str = "ridge"
    cascade: int = 300
    proposals: str = "fast"
    max_proposals: int = 2000
    holdout: float = 0.0
    epochs: int = 8
    images_per_batch: int = 4
    regions_per_image: int = 64
    crops_per_image: int = 96
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    negative_iou: tuple[float, float] = (0.1, 0.5)
    repeat_below: float = 0.1
    learn: str = "all"
    random_scale: bool = False
    optimizer: str = "adamw"
    rate_drops: tuple[float, ...] = ()
    flip: bool = True
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    box_weight: float = 1.0
    average: float = 0.998
    rank_prior: float = 1.0
    nms: float = 0.3
    vote: float = 0.5
    min_score: float = 0.01
    max_detections: int = 100
    readable_score: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "shorter",
            "longest",
            "channels",
            "hidden",
            "max_proposals",
            "epochs",
            "images_per_batch",
            "crops_per_image",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if any(scale < 1 for scale in self.scales):
            raise ValueError(f"expected scales of at least 1, got {self.scales}")
        if self.detector not in DETECTORS:
            raise ValueError(f"expected a detector among {', '.join(DETECTORS)}, got {self.detector!r}")
        for name, known in (
            ("svm_layer", SVM_LAYERS),
            ("box_regression", BOX_REGRESSIONS),
            ("learn", LEARNED),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"expected a {name} among {', '.join(known)}, got {getattr(self, name)!r}")
        if self.detector == "rcnn" and self.region_mean:
            raise ValueError("expected no region_mean for rcnn: it has a map for each region")
        for name in _PARTS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")
        if not 0 < self.C < math.inf:
            raise ValueError(f"expected a C above 0 and finite, got {self.C}")
        if not 0 <= self.rank_prior < math.inf:
            raise ValueError(f"expected a rank_prior of at least 0 and finite, got {self.rank_prior}")
        for name in ("seed", "cascade"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if self.regions_per_image < 2:
            raise ValueError(f"expected regions_per_image of at least 2, got {self.regions_per_image}")
        if self.learn == "fc" and (self.detector == "rcnn" or self.region_mean):
            raise ValueError("expected learn=all for rcnn and with region_mean: their maps are not cached reduced")
        if list(self.rate_drops) != sorted(self.rate_drops) or not all(0 < part < 1 for part in self.rate_drops):
            raise ValueError(f"expected rate_drops in (0, 1), ascending, got {self.rate_drops}")
        if not 0 <= self.negative_iou[0] < self.negative_iou[1] <= self.positive_iou:
            raise ValueError(f"expected negative_iou as 0 <= low < high <= positive_iou, got {self.negative_iou}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}


def config_from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Build a Config from plain values; unknown keys and wrong types are refused by name.

    source: where the values come from, for the message.
    """
    return settings_from_dict(values, source, Config)


def settings_from_dict(values: Mapping[str, Any], source: str, kind: type[Settings]) -> Settings:
    """Build settings of a kind, a dataclass, from plain values, as `config_from_dict` does."""
    converted = _check_types(values, source, kind)
    try:
        return kind(**converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_types(values: Mapping[str, Any], source: str, kind: type[Any]) -> dict[str, Any]:
    """Convert values to their fields' types. Raises ValueError for an unknown key or a wrong type."""
    types = get_type_hints(kind)
    unknown = [key for key in values if key not in types]
    if unknown:
        raise ValueError(f"{source}: expected settings among {', '.join(types)}, got {', '.join(map(str, unknown))}")
    return {key: _convert(key, value, types[key], source) for key, value in values.items()}


def load_config(path: Path | None, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, then apply `key=value` overrides; either may be missing.

    defaults: what holds where neither says anything (`detector.presets`), instead of the defaults of Config.
    Raises ValueError that names the file or the override, and what was expected.
    """
    return load_settings(path, overrides, Config, defaults)


def load_settings(
    path: Path | None, overrides: Sequence[str], kind: type[Settings], defaults: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings of a kind, a dataclass, as `load_config` does."""
    values, source = read_settings(path, overrides, kind)
    values = {**(defaults or {}), **values}
    if kind is Config and not str(values.get("trunk", Config().trunk)).startswith("efficientnet_lite"):
        values.setdefault("layers", [])  # the default names layers of EfficientNet-Lite
    return settings_from_dict(values, source, kind)


def read_settings(path: Path | None, overrides: Sequence[str], kind: type[Any]) -> tuple[dict[str, Any], str]:
    """Read the values that a YAML file and `key=value` overrides give, and the words for where they come from."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected YAML, got {str(error).splitlines()[0]}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ValueError(f"{path}: expected `key: value` lines, got {type(loaded).__name__}")
        values.update(loaded or {})
    _check_types(values, str(path), kind)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set: expected key=value, got {text!r}")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text}: expected a YAML value after `=`") from error
        _check_types({key.strip(): values[key.strip()]}, f"--set {text}", kind)
    sources = [str(path)] if path else []
    return values, ", ".join([*sources, *(f"--set {text}" for text in overrides)]) or "settings"


def _convert(key: str, value: Any, wanted: Any, source: str) -> Any:
    """Convert a YAML value to a field's type."""
    items = getattr(wanted, "__args__", None)
    if items is not None:
        empty = key not in ("layers", "scales", "rate_drops") and not value
        if not isinstance(value, list | tuple) or empty or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise ValueError(f"{source}: expected a list for {key}, got {value!r}")
        return tuple(_convert(key, item, items[0], source) for item in value)
    if wanted is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 5e-4 as text
        except ValueError:
            pass
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{source}: expected {wanted.__name__} for {key}, got {value!r}")
    return value
