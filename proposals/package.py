"""Propose regions by the PyPI package `selectivesearch`, the best known selective search in Python.

It is slow, since it is written in plain Python, and version 0.4 loses most of colour and texture: it counts hue and
saturation, which end at 1, in bins that reach to 255, and patterns from 0 to 255 in bins that end at 1. It is here for
comparison; `fast.py` is the default.
"""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .colour import Bytes, shrink
from .structures import Proposals, check_image

VERSION = 1
SIDE = 300  # pixels of the longer side that is worked on
SCALES = (50, 100, 200)  # of segmentation; one run each, the regions of all are joined
SIGMA, MIN_SIZE = 0.8, 20  # Gaussian smoothing before segmentation, smallest region, both in pixels

_one_at_a_time = threading.Lock()  # warning filters are shared by all threads


class PackageSelectiveSearch:
    """Propose the regions that the package finds, those of most pixels first.

    An image is worked on at a longer side of 300 pixels, three times, in a second or two all together. max_boxes: how
    many boxes are kept at most.
    """

    name = "selectivesearch"

    def __init__(self, max_boxes: int = 2000) -> None:
        if max_boxes < 1:
            raise ValueError(f"expected max_boxes of at least 1, got {max_boxes}")
        self.max_boxes = max_boxes

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with what is done here, and the package has its own."""
        package = importlib.metadata.version("selectivesearch")
        return {"proposer": self.name, "version": VERSION, "package": package, "max_boxes": self.max_boxes}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose regions of a (3, H, W) uint8 RGB image, in whole pixels; equal sizes in the order of coordinates."""
        check_image(image)
        height, width = int(image.shape[1]), int(image.shape[2])
        small = shrink(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), SIDE)
        regions = np.concatenate([_find_regions(small, scale) for scale in SCALES])
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
        boxes = np.rint(regions[:, :4] * scale)
        order = np.lexsort((*boxes.T[::-1], -regions[:, 4]))
        boxes = boxes[order]
        _, first = np.unique(boxes, axis=0, return_index=True)
        kept = np.sort(first)[: self.max_boxes]
        return Proposals(torch.from_numpy(boxes[kept].astype(np.float32)))


def _find_regions(image: Bytes, scale: int) -> NDArray[np.int64]:
    """Return (R, 5) int64: x1, y1, x2, y2 (exclusive) and the number of pixels of every region of an RGB image."""
    import selectivesearch

    with _one_at_a_time, warnings.catch_warnings():
        # The package asks scikit-image for binary patterns of whole numbers that it holds as floats: no difference.
        warnings.filterwarnings("ignore", "Applying `local_binary_pattern` to floating-point", UserWarning)
        _, found = selectivesearch.selective_search(image, scale=scale, sigma=SIGMA, min_size=MIN_SIZE)
    # A rect is x, y, and the last x and y minus the first: one less than width and height.
    rows = [(x, y, x + w + 1, y + h + 1, region["size"]) for region in found for x, y, w, h in [region["rect"]]]
    return np.array(rows, np.int64)
