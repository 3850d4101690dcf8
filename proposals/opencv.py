"""Propose regions by the selective search of OpenCV's contrib module `ximgproc`, where it is installed.

The wheel `opencv-contrib-python` has it, `opencv-python` has not. Its boxes are the same in every run, but their order
is drawn at random, so they are put in an order of our own before they are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .colour import shrink
from .structures import Proposals, check_image

VERSION = 2
SIDE = 500  # pixels of the longer side that is worked on
MODES = {
    "single": "switchToSingleStrategy",
    "fast": "switchToSelectiveSearchFast",
    "quality": "switchToSelectiveSearchQuality",
}


def has_ximgproc() -> bool:
    """Tell whether the installed OpenCV has selective search."""
    return hasattr(_segmentation(), "createSelectiveSearchSegmentation")


def _segmentation() -> Any:
    return getattr(getattr(cv2, "ximgproc", None), "segmentation", None)


class OpenCVSelectiveSearch:
    """Propose the regions that OpenCV finds, the largest first.

    mode: "single", "fast" or "quality": ever more colour spaces and segmentations. max_boxes: how many boxes are kept
    at most, by default all. An image is worked on at a longer side of 500 pixels at most. Raises ValueError if the mode
    is unknown or OpenCV comes without ximgproc.
    """

    def __init__(self, mode: str = "fast", max_boxes: int | None = None) -> None:
        if mode not in MODES or (max_boxes is not None and max_boxes < 1):
            raise ValueError(
                f"expected a mode of {', '.join(MODES)} and max_boxes of at least 1, got {mode!r} and {max_boxes}"
            )
        if not has_ximgproc():
            raise ValueError(
                f"expected a contrib build of OpenCV, which has ximgproc, got OpenCV {cv2.__version__} without it: "
                "uninstall opencv-python before you install opencv-contrib-python, because two OpenCV wheels must not "
                "be installed side by side"
            )
        self.mode, self.max_boxes = mode, max_boxes

    @property
    def name(self) -> str:
        """Return the name that the command line uses."""
        return f"opencv-{self.mode}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what shapes the boxes; VERSION changes with what is done here, and OpenCV has a version of its own."""
        return {
            "proposer": self.name,
            "version": VERSION,
            "opencv": cv2.__version__,
            "max_boxes": self.max_boxes,
        }

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Propose regions of a (3, H, W) uint8 RGB image, in whole pixels; equal areas in the order of coordinates."""
        check_image(image)
        height, width = int(image.shape[1]), int(image.shape[2])
        small = shrink(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), SIDE)
        search = _segmentation().createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        getattr(search, MODES[self.mode])()
        rects = np.asarray(search.process(), np.int64).reshape(-1, 4)
        whole = np.array([[0, 0, small.shape[1], small.shape[0]]])
        boxes = np.concatenate([whole, np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1)])
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
        boxes = np.unique(np.rint(boxes * scale), axis=0)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ordered = boxes[np.argsort(-areas, kind="stable")[: self.max_boxes]]
        return Proposals(torch.from_numpy(ordered.astype(np.float32)))
