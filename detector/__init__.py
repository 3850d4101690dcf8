"""Find objects in photographs with a spatial pyramid pooling network (SPP-net).

    from detector import load_detector, read_image
    from proposals.registry import make_proposer

    net, image = load_detector("voc-lite0"), read_image("cat.jpg")
    found = net.predict(image, make_proposer("fast")(image))

`detector.structures` states the conventions of boxes, sizes and labels. A name below is imported from its module when
it is first used, so that `import detector` costs nothing.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .checkpoints import list_models, load_detector
    from .config import Config, load_config
    from .datasets import open_datasets
    from .drawing import draw_detections
    from .evaluation import evaluate
    from .images import read_image
    from .pooling import spatial_pyramid_pool
    from .pyramid import SpatialPyramidPool
    from .sppnet import SPPNet
    from .structures import Detections, Detector, FeatureMap, GroundTruth

__all__ = [
    "Config",
    "Detections",
    "Detector",
    "FeatureMap",
    "GroundTruth",
    "SPPNet",
    "SpatialPyramidPool",
    "draw_detections",
    "evaluate",
    "list_models",
    "load_config",
    "load_detector",
    "open_datasets",
    "read_image",
    "spatial_pyramid_pool",
]

_HOMES = {
    "Config": "config",
    "Detections": "structures",
    "Detector": "structures",
    "FeatureMap": "structures",
    "GroundTruth": "structures",
    "SPPNet": "sppnet",
    "SpatialPyramidPool": "pyramid",
    "draw_detections": "drawing",
    "evaluate": "evaluation",
    "list_models": "checkpoints",
    "load_config": "config",
    "load_detector": "checkpoints",
    "open_datasets": "datasets",
    "read_image": "images",
    "spatial_pyramid_pool": "pooling",
}


def __getattr__(name: str) -> typing.Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
